"""Finding and reading the presets and recipes that come with AutoSeg, and the user's own YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.registry import choose

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def configs_folder() -> Path:
    """The folder of presets and recipes: inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped(kind: str) -> dict[str, Path]:
    """Name -> YAML file of everything shipped of a kind ("presets" or "recipes")."""
    return {path.stem: path for path in sorted((configs_folder() / kind).glob("*.yaml"))}


def find_config(name: str, kind: str) -> Path:
    """The YAML file that `name` means: a shipped one, or a path ending in .yaml or .yml.

    Raises:
        MissingInput: the path does not exist.
        UsageError: no shipped one has this name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise MissingInput(f"there is no file {name}", where=name, do="check the path")
        return path
    return choose(name, shipped(kind), kind.removesuffix("s"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; plain data only, no code.

    Raises:
        MissingInput: there is no such file.
        RecordFault: it is not YAML, or not a mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML follows YAML 1.1, where `1e-3` is text; here it is the number that YAML 1.2 says it is."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError as error:
        raise MissingInput(f"there is no file {path}", where=str(path), do="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordFault(f"not valid YAML: {error}", where=str(path), do="correct the file") from error
    if not isinstance(content, dict):
        raise RecordFault("expected `name: value` lines", where=str(path), do="correct the file")
    return content
