"""AutoSeg: self-configuring biomedical image segmentation.

The front door for scripts is small and lazy, so that `import autoseg` costs nothing:

    model = autoseg.load_model("DATASET/autoseg")
    labels = model.predict(array, spacing_mm=(3.0, 0.8, 0.8))
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from autoseg.workflow.model import load_model

        return load_model
    raise AttributeError(f"module 'autoseg' has no attribute {name!r}")
