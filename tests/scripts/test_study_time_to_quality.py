"""A tiny study: cases set aside, costs measured, two contenders trained and scored, and written for people."""

import importlib.util
import json
import sys

import pytest

from autoseg.core.records import read_json
from tests.preprocessing.tiny_dataset import write_tiny_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"validation_steps": 1, "steps_per_epoch": 2}


@pytest.fixture(scope="module")
def script(repository):
    path = repository / "scripts" / "study_time_to_quality.py"
    spec = importlib.util.spec_from_file_location("study_time_to_quality", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_study_is_done_once_and_written_for_people(script, tmp_path, monkeypatch, capsys):
    write_tiny_dataset(tmp_path / "data" / "tiny", cases=6)
    monkeypatch.setattr(script, "STUDIED", {"tiny": script.Studied("3d_fullres", 2)})
    contenders = {"cpu": script.Contender("cpu", "cpu", SHORT), "fast": script.Contender("cpu", "fast", SHORT, 0.5)}
    monkeypatch.setattr(script, "CONTENDERS", contenders)
    monkeypatch.setattr(script, "fastest_precision", lambda _contest: "fp32")
    monkeypatch.setattr(script, "ROUNDS", 1)
    # a step that costs 0.3 virtual seconds: 0.04 minutes are a handful of steps, wherever the test runs
    monkeypatch.setattr(script, "in_turns", lambda steps: {key: step() or 0.6 for key, step in steps.items()})
    command = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--datasets", "tiny"]
    command += ["--contenders", "cpu", "fast", "--minutes", "0.04", "--seeds", "0"]
    assert script.main(command) == 0
    results = script.load_results(tmp_path / "out" / "results")
    assert [(own["contender"], own["steps"]) for own in results] == [("cpu", 6), ("fast", 6)]
    unseen = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out/tiny/unseen/labelsTr").iterdir()}
    trained = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out/tiny/train/labelsTr").iterdir()}
    assert (len(unseen), len(trained), unseen & trained) == (2, 4, set())
    assert all(set(own["dice"]) == unseen for own in results)
    plans = tmp_path / "out" / "tiny" / "plans"
    widths = [read_json(plans / name / "plan.json")["configurations"]["3d_fullres"] for name in ("cpu", "cpu-0.5")]
    assert [own["network"]["features_per_stage"] for own in widths] == [[16, 32], [8, 32]]
    assert "mean Dice" in capsys.readouterr().out
    assert script.main(command) == 0
    assert capsys.readouterr().out == ""  # nothing is done twice
    page = tmp_path / "time-to-quality.md"
    mark = "<!-- study: written by scripts/study_time_to_quality.py -->"
    page.write_text(f"before\n{mark}\nold\n{mark}\nafter\n")
    for _ in range(2):
        assert script.main([*command, "--report", str(tmp_path)]) == 0
    text = page.read_text()
    assert (text.startswith("before"), text.count(mark), "old" in text, text.endswith("after\n")) == (
        True,
        2,
        False,
        True,
    )
    dice = f"{script.overall(next(own['dice'] for own in results if own['contender'] == 'fast')):.4f}"
    assert f"| 0.04 | `fast` | {dice} | {dice} (" in text
    assert (tmp_path / "time-to-quality.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "time-to-quality.json").read_text())) == 2


def test_the_time_to_the_dice_of_the_reference_lies_between_budgets(script):
    def scored(dice):
        return [{"a": {"x": dice}, "b": {"x": dice}}]

    own = {
        ("nnU-Net", 5): scored(0.5),
        ("nnU-Net", 20): scored(0.8),
        ("cpu", 5): scored(0.7),
        ("cpu", 10): scored(0.9),
        ("fast", 5): scored(0.85),
        ("slow", 20): scored(0.1),
    }
    found = dict(sys.modules["study_report"].minutes_to_reference(own))
    assert found == {"nnU-Net": 20, "cpu": pytest.approx(7.5), "fast": 5, "slow": None}
