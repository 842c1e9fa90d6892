#!/usr/bin/env python3
"""Writes the pages of the documentation that the code itself holds: planning rules, error codes, command line.

    scripts/generate_docs.py            write docs/reference/*.md
    scripts/generate_docs.py --check    write nothing; fail if a page is not what the code says

Edit docstrings and explanations in the code, then run it. It needs the `docs` extra only for looking at the result.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "docs" / "reference"
RULE_MODULES = {
    "Rules": "autoseg.planning.rules",
    "U-Nets and their memory": "autoseg.networks.kinds.unet",
    "Left and right": "autoseg.planning.lateral",
}
"""Heading -> module whose public functions decide something."""

NETWORK_RULES = ("for_patch", "enlarged_patch", "feature_map_elements")
"""Methods by which a kind of network decides."""

ABOUT_RULES = (
    "Every decision of a plan is made by one of these functions. Each is pure: it looks at the fingerprint and at "
    "the preset, returns a value and the sentence that explains it. `autoseg explain DATASET` shows the values and "
    "sentences for your data, and a pin replaces any of them ([the plan](../guides/plan.md))."
)
ABOUT_ERRORS = (
    "Every problem has a code that never changes its meaning; `autoseg explain E0401` says the same as this "
    "page. Those without an exit code concern single cases: the case is refused or remarked on, and the others "
    "go on; a command that is left with none ends with 3 ([exit codes](../work-folder.md#exit-codes))."
)
ABOUT_COMMANDS = (
    "What `autoseg VERB --help` says. Every option can also be given as an environment variable, for example "
    "`AUTOSEG_TRAIN_BUDGET=8h`; none has to be."
)
_NOTICE = "<!-- Written by scripts/generate_docs.py from the code; edit it there. -->"
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")


@dataclass(frozen=True, slots=True)
class Docstring:
    """The parts of a Google docstring that a page shows: what comes before the sections, and the source."""

    text: str
    source: str | None


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the pages; the exit code."""
    parser = argparse.ArgumentParser(description="Writes docs/reference/*.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is outdated")
    options = parser.parse_args(arguments)
    outdated = [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in outdated:
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], "utf-8")
        print(f"{'outdated' if options.check else 'wrote'} {path.relative_to(REPOSITORY)}")
    if outdated and options.check:
        print("run scripts/generate_docs.py", file=sys.stderr)
        return 1
    return 0


def pages() -> dict[Path, str]:
    """Every generated page and what it should hold."""
    makers: dict[str, Callable[[], str]] = {
        "rules.md": rules_page,
        "errors.md": errors_page,
        "command-line.md": command_line_page,
    }
    return {REFERENCE / name: f"{_NOTICE}\n\n{make().strip()}\n" for name, make in makers.items()}


def rules_page() -> str:
    """The planning rules in reading order, each with its sentence, its source and the constants it uses."""
    parts = [
        "# Planning rules",
        ABOUT_RULES,
    ]
    for heading, name in RULE_MODULES.items():
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        about = split_docstring(module.__doc__ or "")
        parts += [f"## {heading}", prose(about.text), *_source(about)]
        parts += _constants(module)
        for function in _public_functions(module):
            own = split_docstring(function.__doc__ or "")
            parts += [f"### {function.__name__}", prose(own.text), *_source(own)]
    return "\n\n".join([*parts, *_presets()])


def split_docstring(text: str) -> Docstring:
    """What a docstring says before its sections, and its source."""
    kept: list[str] = []
    source: list[str] | None = None
    is_inside = False
    for line in inspect.cleandoc(text).splitlines():
        if line.startswith("Source: "):
            source, is_inside = [line.removeprefix("Source: ")], False
        elif _SECTION.match(line):
            is_inside = True
        elif source is not None and line.startswith(" "):
            source.append(line.strip())
        elif not (is_inside and (line.startswith(" ") or not line)):
            is_inside = False
            kept.append(line)
    return Docstring("\n".join(kept).strip(), " ".join(source) if source else None)


def prose(text: str) -> str:
    """Text as Markdown: what HTML or Markdown would take for markup is escaped, except inside backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if index % 2 else _escaped(piece) for index, piece in enumerate(pieces))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([*|\[\]])", r"\\\1", re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text))


def _source(docstring: Docstring) -> list[str]:
    return [f"*Source: {prose(docstring.source.rstrip('.'))}.*"] if docstring.source else []


def _public_functions(module: ModuleType) -> Iterator[Callable[..., Any]]:
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            yield value
        if inspect.isclass(value) and value.__module__ == module.__name__:
            yield from (getattr(value, method) for method in NETWORK_RULES if method in vars(value))


def _constants(module: ModuleType) -> list[str]:
    """A table of the module's documented constants; one line of words may describe several."""
    body = ast.parse(inspect.getsource(module)).body
    rows, names = [], []
    for statement in body:
        if isinstance(statement, ast.Assign):
            assigned = [node.id for node in ast.walk(statement.targets[0]) if isinstance(node, ast.Name)]
            is_constant = all(re.fullmatch(r"[A-Z][A-Z0-9_]+", name) for name in assigned)
            names = [*names, *assigned] if is_constant else []
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and names:
            values = ", ".join(f"`{name} = {getattr(module, name)!r}`" for name in names)
            rows.append(f"| {values} | {prose(' '.join(str(statement.value.value).split()))} |")
            names = []
        else:
            names = []
    return ["| constant | what it is |\n|---|---|\n" + "\n".join(rows)] if rows else []


def _presets() -> Iterator[str]:
    """What differs between the presets."""
    from autoseg.core.configs import read_yaml, shipped

    presets = {name: read_yaml(path) for name, path in shipped("presets").items()}
    keys = list(presets["reference"])
    columns = ["reference", *sorted(name for name in presets if name != "reference")]
    yield "## Presets"
    yield (
        "A preset is a set of constants for the rules, not other code. `autoseg plan --preset NAME`, or a YAML file of "
        "your own with the same keys."
    )
    head = f"| constant | {' | '.join(f'`{name}`' for name in columns)} |\n|---|{'---|' * len(columns)}\n"
    yield head + "\n".join(
        f"| `{key}` | {' | '.join(prose(str(presets[name].get(key))) for name in columns)} |" for key in keys
    )


def errors_page() -> str:
    """Every error code, what it means, what helps, and the exit code of a command that ends with it."""
    from autoseg.data.problems import PROBLEM_CODES

    classes = {kind.code: kind for kind in error_classes()}
    rows = []
    for code in sorted({*classes, *PROBLEM_CODES}):
        problem, kind = PROBLEM_CODES.get(code), classes.get(code)
        meaning = problem.meaning if problem else split_docstring((kind and kind.__doc__) or "").text.splitlines()[0]
        remedy = problem.remedy if problem else "the message says what to do"
        leave = str(kind.exit_code) if kind else ""
        rows.append(f'| <a id="{code.lower()}"></a>{code} | {prose(meaning)} | {prose(remedy)} | {leave} |')
    return "\n\n".join(
        [
            "# Error codes",
            ABOUT_ERRORS,
            "| code | what it means | what helps | exit code |\n|---|---|---|---|\n" + "\n".join(rows),
        ]
    )


def error_classes() -> list[type[Any]]:
    """All kinds of AutoSegError that have a code of their own, wherever they are defined."""
    import autoseg
    from autoseg.core.errors import AutoSegError

    for module in pkgutil.walk_packages(autoseg.__path__, "autoseg."):
        if module.name not in ("autoseg.__main__", "autoseg.networks.fused_norm"):  # the second one needs Triton
            importlib.import_module(module.name)
    found: dict[str, type[Any]] = {}
    waiting: list[type[Any]] = [AutoSegError]
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if "code" in vars(kind) and kind is not AutoSegError:
            found.setdefault(kind.code, kind)
    return [found[code] for code in sorted(found)]


def command_line_page() -> str:
    """Every verb with its arguments and options."""
    from autoseg.cli.main import cli

    parts = [
        "# Command line",
        ABOUT_COMMANDS,
    ]
    context = click.Context(cli, info_name="autoseg")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None:
            parts += list(_command(command, f"autoseg {name}", context))
    return "\n\n".join(parts)


def _command(command: click.Command, title: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=command.name)
    level = "#" * title.count(" ")
    usage = " ".join([title, *command.collect_usage_pieces(context)])
    help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"#{level} {title}\n\n```text\n{usage}\n```\n\n{prose(help_text)}"
    records = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    rows = [f"| `{_cell(record[0])}` | {prose(record[1])} |" for record in records if record is not None]
    if rows:
        yield "| option | meaning |\n|---|---|\n" + "\n".join(rows)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _command(inner, f"{title} {name}", context)


def _cell(code: str) -> str:
    """Code inside a table's cell, where a bar would end the cell."""
    return " ".join(code.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
