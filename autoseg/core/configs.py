"""Finding and reading the presets and recipes that come with AutoSeg, and the user's own YAML files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.registry import choose

LARGEST_YAML_BYTES = 1 << 17
"""Of a recipe, pin or preset, which have some kilobytes (assumption)."""

DEEPEST_NESTING = 20
"""Of lists and tables in each other; a pin has 4."""

_YAML_TAGS = "tag:yaml.org,2002:"
_PLAIN_KINDS = ("str", "int", "float", "bool", "null", "seq", "map")
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

    Values are texts, numbers, true, false, null, lists and tables. What YAML has beyond these (dates, sets, bytes,
    tags, references with * and &) is refused, as is a key given twice: each would be read as something else than its
    writer meant, or unfold to more than memory holds.

    Raises:
        MissingInput: there is no such file.
        RecordFault: it is not YAML, or not such a mapping; with line and key.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML follows YAML 1.1, where `1e-3` is text; here it is the number that YAML 1.2 says it is."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        if (size := path.stat().st_size) > LARGEST_YAML_BYTES:
            raise ValueError(f"{size} bytes are more than the {LARGEST_YAML_BYTES} that are read")
        loader = Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        _refuse_beyond_json(node, set(), 0)
        content = None if node is None else loader.construct_document(node)
    except FileNotFoundError as error:
        raise MissingInput(f"there is no file {path}", where=str(path), do="check the path") from error
    except RecursionError as error:
        raise RecordFault("nested too deeply", where=str(path), do="correct the file") from error
    except (yaml.YAMLError, ValueError) as error:  # of undecodable text, and of numbers of thousands of digits
        raise RecordFault(f"not valid YAML: {error}", where=str(path), do="correct the file") from error
    if not isinstance(content, dict):
        raise RecordFault("expected `name: value` lines", where=str(path), do="correct the file")
    return content


def _refuse_beyond_json(node: Any, seen: set[int], depth: int) -> None:
    """A ValueError for what JSON could not hold, before anything is made of it; PyYAML shares the nodes of aliases."""
    if node is None:
        return
    place = f"line {node.start_mark.line + 1}"
    if id(node) in seen:
        raise ValueError(f"{place} is referred to with *: write the value out wherever it is meant")
    seen.add(id(node))
    if depth > DEEPEST_NESTING:
        raise ValueError(f"{place}: nested deeper than {DEEPEST_NESTING}")
    kind = node.tag.removeprefix(_YAML_TAGS)
    if kind not in _PLAIN_KINDS:
        raise ValueError(f"{place}: {kind} is not supported; quote the value if it is meant as text")
    if kind == "map":
        _refuse_odd_keys([key for key, _ in node.value], place)
    for child in _children(node):
        _refuse_beyond_json(child, seen, depth + 1)


def _children(node: Any) -> list[Any]:
    if isinstance(node.value, str):
        return []
    return [one for child in node.value for one in (child if isinstance(child, tuple) else (child,))]


def _refuse_odd_keys(keys: list[Any], place: str) -> None:
    odd = [key.start_mark.line + 1 for key in keys if key.tag != f"{_YAML_TAGS}str"]
    if odd:
        raise ValueError(f"line {odd[0]}: a key must be a text")
    for name, count in Counter(key.value for key in keys).most_common(1):
        if count > 1:
            raise ValueError(f"{place}: {name} is given twice")
