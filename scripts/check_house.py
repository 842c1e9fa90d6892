"""The rules that keep the code readable, checked over the tree; exits with 1 and one line per breach.

    python scripts/check_house.py                 every rule, over all packages
    python scripts/check_house.py --measure       what the tree measures: lines, files, dataclasses, complexity
    python scripts/check_house.py autoseg/images  one package only

The rules and their reasons are in CONTRIBUTING.md. Complexity is radon's, which counts comprehensions; ruff checks what
it can check itself (unused names, docstrings, prints, comments that are code).
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from radon.complexity import cc_visit

REPOSITORY = Path(__file__).resolve().parents[1]

MOST_FILES = 12
"""Modules in a folder, `__init__.py` included."""

ONE_FILE_PER_VERB = ("api", "cli")
"""Folders that may hold more: one file per verb."""

MOST_COMPLEXITY = 10
MOST_PARAMETERS = 6
MOST_FUNCTION_LINES = 40
MOST_FILE_LINES = 400

SMALLEST_MODULE = 120
"""A module shorter than this, in lines, that only one other imports, belongs into that one."""

REGISTRY_FOLDERS = ("api", "cli", "formats", "layouts", "transforms", "callbacks", "executors", "kinds", "networks")
"""Verbs, entries of tables, and the torch modules that a kind of network needs, stand alone however short they are."""

NEVER_SAID = {
    "crew": "executor, workers",
    "sitting": "work interval",
    "sittings": "work intervals",
    "sketch": "quantiles, summary",
    "outlook": "progress",
    "blend": "ensemble weights",
    "blends": "ensemble weights",
    "votes": "dice, one_hot",
    "diary": "logger, history",
    "pacer": "time budget",
    "horizon": "segment of the schedule",
    "ledger": "log",
    "taps": "interpolation",
    "conclude": "select and report",
    "honest": "malformed; nested cross-validation score",
    "rightly": "correctly",
    "whoever": "what, the one that",
}
"""Words that the field does not use, and what is said instead."""

FORMER = "# former name"
"""Marks a line that reads what an earlier version wrote under a name not used any more."""

MAKES_PATHS = ("autoseg.core.configs", "autoseg.core.workspace")
"""Modules that may say where a folder lies relative to another."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True, slots=True)
class Module:
    """A source file with its syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Dotted name, as imports say it."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")


def read_modules(folders: Iterable[Path]) -> list[Module]:
    """Every Python file below the folders, by path."""
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    texts = {file.relative_to(REPOSITORY): file.read_text(encoding="utf-8") for file in files}
    return [Module(path, text, ast.parse(text)) for path, text in texts.items()]


def code_lines(module: Module) -> set[int]:
    """Numbers of the lines that are neither empty, comment nor docstring."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - _docstring_lines(module.tree)


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Lines of every string that stands alone as a statement: docstrings, and what describes a constant."""
    alone = (node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    return {
        line
        for node in alone
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def functions(module: Module) -> Iterator[tuple[str, int, int]]:
    """Name, line and complexity of every function and method, nested ones included."""
    waiting, seen = list(cc_visit(module.text)), set()
    while waiting:
        block = waiting.pop()
        waiting += [*getattr(block, "methods", ()), *getattr(block, "closures", ())]
        is_function = not hasattr(block, "methods")
        if is_function and (block.lineno, block.name) not in seen:
            seen.add((block.lineno, block.name))
            yield block.name, block.lineno, block.complexity


def dataclasses_of(module: Module) -> list[str]:
    """Names of the records that a module declares."""
    classes = (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))
    return [node.name for node in classes if any(_makes_record(mark) for mark in node.decorator_list)]


def _makes_record(mark: ast.expr) -> bool:
    return "dataclass" in ast.unparse(mark) or ast.unparse(mark) == "record"


def complexity_breaches(modules: Iterable[Module]) -> Iterator[str]:
    """Functions with too many branches, comprehensions counted."""
    for module in modules:
        for name, line, complexity in functions(module):
            if complexity > MOST_COMPLEXITY:
                yield f"{module.path}:{line} {name}: complexity {complexity}, at most {MOST_COMPLEXITY}"


def size_breaches(modules: Iterable[Module]) -> Iterator[str]:
    """Long files, long functions, and functions of many parameters."""
    for module in modules:
        if (lines := module.text.count("\n")) > MOST_FILE_LINES:
            yield f"{module.path}: {lines} lines, at most {MOST_FILE_LINES}"
        code = code_lines(module)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _function_breaches(module, node, code)


def _function_breaches(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, code: set[int]) -> Iterator[str]:
    place = f"{module.path}:{node.lineno} {node.name}"
    own = sum(line in code for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))
    if own > MOST_FUNCTION_LINES:
        yield f"{place}: {own} lines of code, at most {MOST_FUNCTION_LINES}"
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    count = sum(argument.arg not in ("self", "cls") for argument in given)
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    takes_plain_values = any("click" in mark or "option" in mark or mark == "triton.jit" for mark in marks)
    if count > MOST_PARAMETERS and not takes_plain_values and "api" not in module.path.parts:
        yield f"{place}: {count} parameters, at most {MOST_PARAMETERS}; a record holds more"


def folder_breaches(modules: Iterable[Module]) -> Iterator[str]:
    """Folders of many files, and three files that share a prefix, which is a folder in disguise."""
    by_folder: dict[Path, list[str]] = {}
    for module in modules:
        by_folder.setdefault(module.path.parent, []).append(module.path.stem)
    for folder, names in by_folder.items():
        if folder.name in ONE_FILE_PER_VERB:
            continue
        if len(names) > MOST_FILES:
            yield f"{folder}: {len(names)} files, at most {MOST_FILES}"
        prefixes = Counter(name.split("_")[0] for name in names if not name.startswith("_"))
        yield from (f"{folder}: {count} files begin with {prefix}_" for prefix, count in prefixes.items() if count > 2)


def lonely_breaches(modules: list[Module]) -> Iterator[str]:
    """Short modules that a single other one imports."""
    importers: dict[str, list[str]] = {}
    for module in modules:
        for name in _imported(module):
            importers.setdefault(name, []).append(module.name)
    for module in modules:
        is_entry = module.path.parent.name in REGISTRY_FOLDERS or module.path.stem.startswith("__")
        own = importers.get(module.name, [])
        if not is_entry and len(own) == 1 and (lines := module.text.count("\n")) < SMALLEST_MODULE:
            yield f"{module.path}: {lines} lines, imported by {own[0]} alone; it belongs there"


def _imported(module: Module) -> set[str]:
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found - {module.name}


def word_breaches(modules: Iterable[Module]) -> Iterator[str]:
    """Words of the code's own that the field does not use, in names, messages and docstrings."""
    for module in modules:
        for number, line in enumerate(module.text.splitlines(), start=1):
            if FORMER in line:
                continue
            said = {word.lower() for word in _WORD.findall(line)} & NEVER_SAID.keys()
            yield from (f"{module.path}:{number} says {word!r}; say: {NEVER_SAID[word]}" for word in sorted(said))


def path_breaches(modules: Iterable[Module]) -> Iterator[str]:
    """Folders guessed from others: `core.workspace` makes every path."""
    for module in modules:
        for number, line in enumerate(module.text.splitlines(), start=1):
            if re.search(r"\.parent\.parent|\.parents\[[1-9]", line) and module.name not in MAKES_PATHS:
                yield f"{module.path}:{number} guesses a folder from another"


def private_breaches(modules: Iterable[Module]) -> Iterator[str]:
    """Tests that use a package's private helpers."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autoseg"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                yield from (f"{module.path}:{node.lineno} imports {name}" for name in private)


def measure(modules: list[Module]) -> dict[str, int]:
    """What the tree measures."""
    by_folder = Counter(module.path.parent for module in modules if module.path.parent.name not in ONE_FILE_PER_VERB)
    complexities = [complexity for module in modules for _, _, complexity in functions(module)]
    return {
        "code lines": sum(len(code_lines(module)) for module in modules),
        "files": len(modules),
        "dataclasses": sum(len(dataclasses_of(module)) for module in modules),
        f"functions above complexity {MOST_COMPLEXITY}": sum(own > MOST_COMPLEXITY for own in complexities),
        "files in the largest folder (api and cli aside)": max(by_folder.values(), default=0),
    }


def main() -> int:
    """Prints breaches or measures; 1 if there is a breach."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[REPOSITORY / "autoseg"])
    parser.add_argument("--measure", action="store_true", help="print what the tree measures, and no breach")
    arguments = parser.parse_args()
    folders = [folder.resolve() for folder in arguments.folders]
    modules = read_modules(folders)
    if arguments.measure:
        for what, value in measure(modules).items():
            print(f"{value:7d}  {what}")
        return 0
    kinds = (complexity_breaches, size_breaches, folder_breaches, word_breaches, path_breaches)
    breaches = [line for kind in kinds for line in kind(modules)]
    everything = read_modules([REPOSITORY / "autoseg"])
    lonely = lonely_breaches(everything)
    own = {str(module.path) for module in modules}
    breaches += [line for line in lonely if line.split(":")[0] in own]
    breaches += list(private_breaches(read_modules([REPOSITORY / "tests"])))
    print("\n".join(breaches) or f"{len(modules)} files, no breach")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
