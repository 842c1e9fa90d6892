"""The documentation says what the code does: generated pages, commands, links, examples."""

import importlib.util
import re
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.api.explain import explain_code
from autoseg.cli.main import cli
from autoseg.core.errors import AutoSegError
from tests.docs.markdown import blocks

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def generator(repository):
    spec = importlib.util.spec_from_file_location("generate_docs", repository / "scripts" / "generate_docs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_code_says(generator, capsys):
    assert generator.main(["--check"]) == 0, "run scripts/generate_docs.py and commit docs/reference"


def test_an_outdated_page_is_found_and_written_anew(generator, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(generator, "REPOSITORY", tmp_path)
    monkeypatch.setattr(generator, "pages", lambda: {tmp_path / "docs" / "page.md": "new\n"})
    assert generator.main(["--check"]) == 1
    assert not (tmp_path / "docs").exists()
    assert generator.main([]) == 0
    assert (tmp_path / "docs" / "page.md").read_text() == "new\n"
    assert generator.main(["--check"]) == 0


def test_every_code_of_the_index_is_explained_on_the_command_line_too(generator):
    codes = re.findall(r"</a>(E\d{4}) ", generator.errors_page())
    assert len(codes) == len(set(codes)) > 30
    for code in codes:
        assert explain_code(code)


def test_every_kind_of_error_with_its_own_code_is_in_the_index(generator):
    kinds = generator.error_classes()
    assert all(issubclass(kind, AutoSegError) for kind in kinds)
    assert {"E0101", "E0701", "E0801"} <= {kind.code for kind in kinds}
    assert all(kind.code in generator.errors_page() for kind in kinds)


def test_every_rule_is_on_the_page_with_its_constants(generator):
    text = generator.rules_page()
    for name in ("target_spacing", "batch_size", "needs_lowres", "for_patch", "feature_map_elements"):
        assert f"### {name}\n" in text
    assert "`ANISOTROPY = 3.0`" in text
    assert "`resenc-l`" in text


def test_a_docstring_is_split_into_what_it_says_and_its_source(generator):
    split = generator.split_docstring(
        """First line.

        More, about <x> and `y_z`.

        Args:
            one: not shown.

        Raises:
            Never: not shown.

        Source: somewhere,
            page 3.
        """
    )
    assert split.text == "First line.\n\nMore, about <x> and `y_z`."
    assert split.source == "somewhere, page 3."
    assert generator.prose(split.text) == "First line.\n\nMore, about &lt;x&gt; and `y_z`."


@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=60))
@settings(max_examples=80, deadline=None)
def test_prose_leaves_no_markup_outside_of_code(generator, text):
    shown = re.sub(r"`[^`]*`", "", generator.prose(text))
    assert "<" not in shown
    assert not re.search(r"(?<!\\)[*|\[\]]", shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_name_verbs_and_options_that_exist(page):
    faults = [
        f"line {block.line}: {fault}"
        for block in blocks(page)
        for words in block.commands
        for fault in _faults(cli, words)
    ]
    assert faults == []


def _faults(command, words):
    """What a command line names and `command` does not have."""
    if isinstance(command, click.Group):
        known = command.list_commands(click.Context(command))
        if not words or words[0].startswith(("-", "[")):
            return []
        if any(verb not in known for verb in words[0].split("|")):
            return [f"no verb {words[0]!r}"]
        inner = command.get_command(click.Context(command), words[0].split("|")[0])
        return _faults(inner, words[1:])
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    return [f"{command.name} has no {word}" for word in words if re.match(r"--?[a-z]", word) and word not in known]


def test_a_command_that_does_not_exist_is_found():
    assert _faults(cli, ["plann", "x"]) == ["no verb 'plann'"]
    assert _faults(cli, ["plan", "x", "--pins"]) == ["plan has no --pins"]
    assert _faults(cli, ["plan", "x", "--pin", "y.yaml"]) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds_without_a_warning(repository, tmp_path, monkeypatch):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(repository / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    index = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "fonts.googleapis" not in index
    assert (tmp_path / "site" / "guides" / "selection.html").exists()
