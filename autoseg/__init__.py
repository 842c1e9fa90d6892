"""AutoSeg: self-configuring biomedical image segmentation.

What scripts and notebooks call is small and loaded when used, so that `import autoseg` costs nothing:

    plan = autoseg.plan("DATASET")
    trained = autoseg.train("DATASET")
    selection = autoseg.select("DATASET")
    autoseg.predict("DATASET", "IMAGES", "OUTPUT")
    model = autoseg.load_model("DATASET")
    labels = model.predict(array, spacing_mm=(3.0, 0.8, 0.8))

The functions of the other verbs are in `autoseg.api`, one module per verb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.api.evaluate import evaluate
    from autoseg.api.model import export_model, import_model, load_model
    from autoseg.api.plan import plan
    from autoseg.api.predict import predict
    from autoseg.api.preprocess import preprocess
    from autoseg.api.select import select
    from autoseg.api.train import train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "evaluate",
    "export_model",
    "import_model",
    "load_model",
    "plan",
    "predict",
    "preprocess",
    "select",
    "train",
]

_MODULES = {"export_model": "model", "import_model": "model", "load_model": "model"}
"""Modules of `autoseg.api` whose function has another name."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(f"autoseg.api.{_MODULES.get(name, name)}"), name)
    raise AttributeError(f"module 'autoseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
