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


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "a bomb of aliases": bomb(9),
    "one alias": "a: &a [1]\nb: *a",
    "an unknown alias": "a: *nothing",
    "deep lists": "a: " + "[" * 100_000,
    "deep tables": "{a: " * 30_000,
    "deep keys": "? " * 60_000,
    "a key twice": "lr: 1\nepochs: 2\nlr: 3",
    "a key twice, deeper": "a: [{b: 1, b: 2}]",
    "a date": "a: 2026-01-01",
    "bytes": "a: !!binary aGk=",
    "a set": "a: !!set {b, c}",
    "a merge": "a: {<<: {b: 1}}",
    "a list as key": "[1, 2]: 3",
    "a number as key": "1: 2",
    "NaN as key": ".nan: 2",
    "a word of YAML as key": "no: 2",
    "a number of 5000 digits": "a: " + "9" * 5000,
    "a zero byte": "\0",
    "too many bytes": "a: " + "x" * 200_000,
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_at_once(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RecordFault) as caught:
        read_yaml(file)
    assert caught.value.where == str(file)


def test_plain_yaml_is_read_as_before(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("a: {b: [1, 1e-3, .5, true, null, text, 'yes']}\nc: |\n  lines\n# remark\n")
    assert read_yaml(file) == {"a": {"b": [1, 1e-3, 0.5, True, None, "text", "yes"]}, "c": "lines\n"}
