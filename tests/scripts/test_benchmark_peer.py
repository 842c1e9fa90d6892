"""The benchmark against nnU-Net, with a stand-in for nnU-Net: every stage runs, takes turns, writes, and resumes."""

import importlib.util
import json
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.core.geometry import Geometry
from autoseg.images.readers import read_labels
from autoseg.images.writers import write_labels
from scripts import gpu_peer
from scripts.benchmark import jobs, phantoms, rounds, sides, stages
from scripts.benchmark.figures import CommandFailed, run_command, tree_seconds
from scripts.benchmark.machine import machine_line


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("benchmark_peer", repository / "scripts" / "benchmark_peer.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class FakeSides(sides.Sides):
    """Commands and jobs leave the folders that the real ones leave; peer takes 4 CPU seconds, AutoSeg one."""

    def __init__(self, scratch, data):
        super().__init__(scratch, data)
        self.calls = []

    def peer(self, verb, *options, peak=False, environment=None):
        self.calls.append(("peer", verb, environment))
        if verb == "plan_and_preprocess":
            folder = self.peer_preprocessed(self._dataset(options))
            folder.mkdir(parents=True)
            (folder / "nnUNetPlans.json").write_text("{}")
        if verb == "predict_from_modelfolder":
            self._predicted(options)
        return {"wall": 8.0, "cpu": 4.0, "load": 0.5, **({"peak_gib": 6.0} if peak else {})}

    def own(self, *arguments, peak=False):
        self.calls.append(("own", arguments[0]))
        if arguments[0] == "plan":
            (self._after("--work", arguments) / "plan.json").parent.mkdir(parents=True)
            (self._after("--work", arguments) / "plan.json").write_text("{}")
        if arguments[0] == "predict":
            assert sides.Path(arguments[1]).is_file()
            self._predicted(arguments)
        return {"wall": 4.0, "cpu": 1.0, "load": 0.5, **({"peak_gib": 1.5} if peak else {})}

    def job(self, name, *arguments):
        self.calls.append(("job", name))
        if name == "weights":
            self.peer_model(stages.Task(**json.loads(arguments[0]))).mkdir(parents=True)
        if name == "import":
            model = self.own_model(stages.Task(**json.loads(arguments[0])))
            model.parent.mkdir(parents=True, exist_ok=True)
            model.touch()
        if name == "compare":
            return iter([{"voxels with equal labels, %": 99.97, "mean Dice of AutoSeg": 0.8}])
        if name in ("step", "forward"):
            figures = {"wall": 1.0, "cpu": 1.0, "load": 0.0}
            return iter([{rounds.PEER: figures, rounds.OWN: figures}] * (int(arguments[2]) - int(arguments[1])))
        return iter([{"wall": 1.0, "cpu": 1.0, "load": 0.0}])

    def konfai_predict(self, task):
        self.predicted(task, "konfai").mkdir(parents=True, exist_ok=True)
        return {"wall": 6.0, "cpu": 3.0, "load": 0.5}

    def _predicted(self, options):
        assert list(self._after("-i", options).iterdir())
        self._after("-o", options).mkdir(parents=True, exist_ok=True)

    def _dataset(self, options):
        number = options[options.index("-d") + 1]
        return next(path.name[11:] for path in (self.scratch / "nnUNet_raw").glob(f"Dataset{number}_*"))

    @staticmethod
    def _after(option, options):
        return sides.Path(options[options.index(option) + 1])


@pytest.fixture(scope="module")
def tiny():
    shape = (6, 24, 24)
    return replace(stages.SMALL, cases=2, pictures=2, large_ct=shape, volume=shape, organs=shape)


@pytest.fixture
def data(tmp_path):
    for name, ending in (("hippocampus", ".nii.gz"), ("openkbp_ct", ".nii.gz"), ("dsb2018_nuclei", ".png")):
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / "data" / name / folder).mkdir(parents=True)
        (tmp_path / "data" / name / "dataset.json").write_text("{}")
        for case in "abc":
            (tmp_path / "data" / name / "imagesTr" / f"{case}_0000{ending}").write_bytes(
                b"x" * (5 if case == "a" else 3)
            )
    return tmp_path / "data"


@pytest.fixture
def results(tmp_path):
    return rounds.Results(tmp_path / "out", "a machine")


def test_every_stage_finds_what_it_needs_when_it_runs_alone(script, data, tmp_path, tiny, results, monkeypatch):
    monkeypatch.setattr(phantoms, "_SMALL_SHAPE", (4, 16, 16))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # KonfAI is installed
    for stage in rounds.POSITIONS:
        own = FakeSides(tmp_path / stage, data)
        (found, *_) = comparisons = stages.Stages(own, tiny).comparisons([stage])
        for comparison in comparisons:
            row = results.measure(comparison, 2, resume=False)
            assert len(row["rounds"]) == 2
        assert list(row["rounds"][0]) == list(reversed(row["rounds"][1])) or found.stage in ("step", "forward")
    text = rounds.table(results.rows())
    assert text.splitlines()[0].startswith("a machine; ")
    assert "| fingerprint and plan, hippocampus | 4 CPU s, 8 s | 1 CPU s, 4 s | 4.00 (4.00 to 4.00) | 2.00 " in text
    assert "| 6.00 GiB, 4 CPU s | 1.50 GiB, 1 CPU s | memory 4.00 (4.00 to 4.00) | 2.00 " in text
    assert "KonfAI against AutoSeg | 3 CPU s, 6 s | 1 CPU s, 4 s | 3.00 " in text
    assert "voxels with equal labels, % | | 99.97 |" in text


def test_a_network_that_has_learned_nothing_is_no_comparison(data, tmp_path, tiny, results):
    own = FakeSides(tmp_path, data)
    own.job = lambda name, *arguments: (
        iter([{"voxels with equal labels, %": 100.0, "mean Dice of AutoSeg": 0.1}])
        if name == "compare"
        else FakeSides.job(own, name, *arguments)
    )
    with pytest.raises(CommandFailed, match="not learned enough"):
        results.measure(stages.Stages(own, tiny).comparisons(["pictures"])[0], 1, resume=False)


def test_rounds_that_are_there_count_and_another_machine_is_refused(results, tmp_path):
    asked = []

    def measure(numbers):
        asked.append(list(numbers))
        side = {"wall": 2.0, "cpu": 2.0, "load": 0.0}
        yield from rounds.turns({rounds.PEER: lambda: side, rounds.OWN: lambda: side}, numbers)

    comparison = rounds.Comparison("plan", "plan", "", measure)
    results.measure(comparison, 1, resume=True)
    assert len(results.measure(comparison, 3, resume=True)["rounds"]) == 3
    assert len(results.measure(comparison, 1, resume=False)["rounds"]) == 1
    assert asked == [[0], [1, 2], [0]]
    with pytest.raises(SystemExit, match="another --out"):
        rounds.Results(results.folder, "another machine").measure(comparison, 3, resume=True)


def test_a_run_that_is_cut_off_leaves_its_finished_rounds(results):
    def measure(numbers):
        yield {rounds.PEER: {"wall": 4.0, "cpu": 3.0, "load": 0.0}, rounds.OWN: {"wall": 1.0, "cpu": 1.0, "load": 0.0}}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.measure(rounds.Comparison("plan", "plan", "", measure), 3, resume=False)
    assert "3.00 (3.00 to 3.00) | 4.00 (4.00 to 4.00) | 1 |" in rounds.table(results.rows())


def test_a_third_side_stands_beside_the_program_that_it_is_not(results):
    sides_of_round = {
        name: {"wall": seconds, "cpu": seconds, "load": 0.0}
        for name, seconds in (
            (rounds.PEER, 6.0),
            (rounds.OWN, 2.0),
            ("AutoSeg in fp32", 3.0),
            (stages.PEER_ACTIVE, 8.0),
        )
    }
    comparison = rounds.Comparison("step", "step", "", lambda numbers: iter([sides_of_round] * len(numbers)))
    results.measure(comparison, 1, resume=False)
    text = rounds.table(results.rows())
    assert "| step: nnU-Net against AutoSeg in fp32 | 6 CPU s, 6 s | 3 CPU s, 3 s | 2.00 " in text
    assert "| step: nnU-Net, threads spinning against AutoSeg | 8 CPU s, 8 s | 2 CPU s, 2 s | 4.00 " in text


def test_the_table_is_written_between_its_markers_again_and_again(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{rounds.BEGIN}\nold\n{rounds.END}\nafter\n")
    for _ in range(2):
        rounds.write_between(page, "the table")
    assert page.read_text() == f"before\n{rounds.BEGIN}\nthe table\n{rounds.END}\nafter\n"
    page.write_text("nothing here\n")
    with pytest.raises(SystemExit):
        rounds.write_between(page, "table")
    assert page.read_text() == "nothing here\n"


def test_the_documentation_has_a_place_for_the_table(repository):
    text = (repository / "docs" / "benchmarks.md").read_text()
    assert text.index(rounds.BEGIN) < text.index(rounds.END)


def test_figures_of_a_command_hold_its_children(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"]
    before = tree_seconds()
    figures, _ = run_command(command, os.environ, peak=True)
    assert figures["cpu"] >= 0.3
    assert tree_seconds() - before >= 0.3
    assert 0 < figures["peak_gib"] < 1
    with pytest.raises(CommandFailed, match="ended with 3"):
        run_command([sys.executable, "-c", "raise SystemExit(3)"], os.environ)


def test_drawn_cases_hold_every_class_and_equal_looks_have_equal_places(tmp_path, monkeypatch):
    image, labels = phantoms.ct((20, 60, 60), (5.0, 2.0, 2.0), 3, 0)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    middle = [np.median(image[labels == value]) for value in (1, 2, 3)]
    assert np.allclose(middle, phantoms.INTENSITIES_HU, atol=20)
    monkeypatch.setattr(phantoms, "_SMALL_SHAPE", (40, 60, 60))
    monkeypatch.setattr(phantoms, "_SMALL_SPACING_MM", (2.5, 2.0, 2.0))
    phantoms.draw(tmp_path, phantoms.Drawing(6, "Ts", (10, 20, 30), (2.0, 1.0, 1.0)))
    values = [np.unique(read_labels(path).array) for path in sorted((tmp_path / "labelsTr").iterdir())]
    assert set(np.concatenate(values)) == set(range(7))
    assert read_labels(tmp_path / "labelsTs" / f"{phantoms.LARGE_CASE}.nii.gz").array.shape == (10, 20, 30)


def test_the_machine_line_names_what_a_cpu_figure_depends_on():
    line = machine_line("torch", "numpy", "no-such-package")
    assert "torch 2" in line
    assert "no-such-package not installed" in line
    assert "cores" in line


def test_what_is_compared_is_what_autoseg_would_compute(tmp_path):
    task = gpu_peer.SMALL[0]
    network = task.configuration().network.build(1, 3)
    own = types.SimpleNamespace(network=network, configuration=task.configuration(), task=task)
    for predicting in (False, True):
        compute = jobs.chosen_compute(own, predicting=predicting)
        assert compute.precision in ("fp32", jobs.own_precision())
    logits = jobs._own_logits(own, torch.zeros(1, *task.image), compute)()
    assert logits.shape == (3, *task.image)


def test_agreement_and_dice_are_those_of_the_label_maps(tmp_path):
    values = np.zeros((2, 4, 4), np.uint8)
    values[:, :2] = 1
    changed = values.copy()
    changed[0, 0, 0] = 0
    for name, labels in (("one", values), ("other", changed), ("references", values)):
        write_labels(tmp_path / name / "a.nii.gz", labels, Geometry((2, 4, 4)))
    (tmp_path / "other" / "predictions.json").write_text("{}")
    found = jobs.compare(*(tmp_path / name for name in ("one", "other", "references")))
    assert found["voxels with equal labels, %"] == pytest.approx(100 * 31 / 32)
    assert found["mean Dice of AutoSeg"] == pytest.approx(2 * 15 / (15 + 16))
