"""Presets, recipes and YAML files are found by name or path, and read as plain data."""

import pytest

from autoseg.core.configs import configs_folder, find_config, read_yaml
from autoseg.core.errors import MissingInput, RecordFault, UsageError


def test_configs_lie_beside_or_inside_the_package():
    assert (configs_folder() / "presets" / "reference.yaml").is_file()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean resenc-m"):
        find_config("resenc_m", "presets")


def test_a_path_is_taken_as_it_is(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: 1\n")
    assert find_config(str(file), "presets") == file
    with pytest.raises(MissingInput, match="there is no file"):
        find_config(str(tmp_path / "other.yml"), "presets")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "!!python/object/apply:os.system ['true']", "\xff\xfe"])
def test_bad_yaml_is_refused_and_runs_nothing(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordFault):
        read_yaml(file)


def test_missing_yaml_is_named(tmp_path):
    with pytest.raises(MissingInput):
        read_yaml(tmp_path / "none.yaml")
