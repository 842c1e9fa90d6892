"""AutoSeg: self-configuring biomedical image segmentation.

The front door for scripts is small and lazy, so that `import autoseg` costs nothing:

    plan = autoseg.plan("DATASET")
    report = autoseg.train("DATASET")
    selection = autoseg.select("DATASET")
    model = autoseg.load_model("DATASET")
    labels = model.predict(array, spacing_mm=(3.0, 0.8, 0.8))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.api.model import load_model
    from autoseg.api.preprocess import preprocess
    from autoseg.api.python import plan
    from autoseg.api.select import select
    from autoseg.api.train import train

__version__ = "0.1.0"
__all__ = ["__version__", "load_model", "plan", "preprocess", "select", "train"]

_HOMES = {
    "plan": "autoseg.api.python",
    "train": "autoseg.api.train",
    "preprocess": "autoseg.api.preprocess",
    "select": "autoseg.api.select",
    "load_model": "autoseg.api.model",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autoseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
