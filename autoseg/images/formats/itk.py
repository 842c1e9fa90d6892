"""SimpleITK, for pictures that Pillow cannot decode."""

from __future__ import annotations

from typing import Any


def simpleitk() -> Any:
    """The module SimpleITK, with ITK's own warnings on stderr switched off; what they say is checked here."""
    import SimpleITK

    module: Any = SimpleITK
    module.ProcessObject_SetGlobalWarningDisplay(False)
    return module
