"""`autoseg predict` from files to files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg import predict
from autoseg.api.model import export_model, load_model
from autoseg.core.errors import Busy
from autoseg.core.files import lease
from autoseg.core.geometry import Geometry
from autoseg.core.records import load, save
from autoseg.data.model import Case, Dataset
from autoseg.images.readers import read_labels
from autoseg.images.volume import Volume, plane_geometry
from autoseg.images.writers import write_image, write_labels
from autoseg.inference import predictor, stream
from autoseg.inference.manifest import LOCK_NAME, PredictionManifest
from autoseg.inference.outputs import output_name
from autoseg.networks.unet import UNet
from tests.runs.trained import add_run, add_selection, cascade_plan, tiny_plan, trained_work_folder

TILTED = Geometry(
    (7, 12, 15),
    (2.5, 0.8, 1.1),
    (-12.0, 30.0, 7.5),
    (0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
)


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) + 5


def write_cases(folder: Path, count=3, geometry=TILTED, ending=".nii.gz") -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        array = noise((1, *geometry.shape), index)
        write_image(folder / f"case{index}_0000{ending}", Volume(array, geometry))
    return folder


@pytest.fixture
def work(tmp_path):
    return trained_work_folder(tmp_path, folds=(0,))


@pytest.mark.parametrize("place", ["labelsTr", "imagesTr", "masks", "autoseg", "autoseg/runs/3d_fullres"])
def test_folders_of_a_dataset_and_of_its_work_folder_get_no_label_maps(autoseg, work, tmp_path, place):
    root, images = work.parent, write_cases(tmp_path / "in", 1)
    (root / "dataset.json").write_text("{}")
    if not place.endswith("Tr"):
        case = Case("a", ("pictures/a_0000.nii.gz",), "masks/a.nii.gz")
        save(
            Dataset("x", str(root), "pairs", "", ("MRI",), tiny_plan().labels, (case,), ".nii.gz"),
            work / "dataset.json",
        )
    save(tiny_plan(), work / "plan.json")
    (root / place).mkdir(exist_ok=True, parents=True)
    before = sorted(root.rglob("*"))
    words = ("predict", work, "-i", images, "-o", root / place, "--device", "cpu", "--overwrite")
    ran = autoseg(*words)
    assert (ran.code, "another -o" in ran.stderr) == (2, True)
    assert sorted(root.rglob("*")) == before


def test_label_maps_have_the_grid_and_values_of_the_dataset(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in"), tmp_path / "out"
    ran = autoseg("predict", work, "-i", images, "-o", out, "--device", "cpu", "--json", "--no-report")
    assert ran.code == 0, ran.stderr
    document = ran.document
    assert set(document) == {"cases", "device", "peak_ram_bytes", "model", "notes"}
    assert document["device"] == "cpu"
    assert document["peak_ram_bytes"] > 1 << 20
    model = load_model(work, device="cpu")
    for index in range(3):
        case = document["cases"][f"case{index}"]
        assert (case["status"], case["error"]) == ("done", None)
        written = read_labels(Path(case["output"]))
        assert np.allclose(written.geometry.corners, TILTED.corners, atol=1e-4)
        assert np.array_equal(written.array, model.predict(noise(TILTED.shape, index), TILTED.spacing_mm))
    assert sorted(path.name for path in out.iterdir()) == [*(f"case{i}.nii.gz" for i in range(3)), "manifest.json"]


def test_a_notebook_predicts_as_the_command_does(autoseg, work, tmp_path):
    images, options = write_cases(tmp_path / "in", 1), ("--no-report", "--no-mirroring", "--overlap", "0.25")
    assert autoseg("predict", work, "-i", images, "-o", tmp_path / "shell", "--device", "cpu", *options).code == 0
    image, out = images / "case0_0000.nii.gz", tmp_path / "notebook"
    manifest = predict(str(work), str(image), str(out), device="cpu", report=False, mirroring=False, overlap=0.25)
    assert replace(manifest.cases["case0"], seconds=0) == replace(
        load(PredictionManifest, tmp_path / "shell" / "manifest.json").cases["case0"], seconds=0
    )
    assert sorted(path.name for path in out.iterdir()) == ["case0.nii.gz", "manifest.json"]


def test_a_bad_case_fails_alone_and_the_manifest_names_it(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in"), tmp_path / "out"
    broken = images / "case1_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    write_image(images / "holes_0000.nii.gz", Volume(np.full((1, *TILTED.shape), np.nan, np.float32), TILTED))
    ran = autoseg("predict", work, "-i", images, "-o", out, "--device", "cpu", "--json")
    assert ran.code == 4
    states = {name: case["status"] for name, case in ran.document["cases"].items()}
    assert states == {"case0": "done", "case1": "failed", "case2": "done", "holes": "failed"}
    manifest = load(PredictionManifest, out / "manifest.json")
    assert "case1_0000" in (manifest.cases["case1"].error or "")
    assert "NaN" in (manifest.cases["holes"].error or "")
    assert manifest.cases["case1"].input != manifest.cases["case0"].input
    assert manifest.labels.file_values == (0, 100, 200)
    assert (manifest.model, manifest.device) == (load_model(work).files.record.name, "cpu")
    assert not (out / "case1.nii.gz").exists()


def test_a_few_infinite_voxels_are_replaced(autoseg, work, tmp_path, caplog):
    array = noise((1, 20, 20, 20))
    array[0, 3, 4, 5] = np.inf
    write_image(tmp_path / "spot.nii.gz", Volume(array, Geometry((20, 20, 20))))
    ran = autoseg("predict", work, "-i", tmp_path / "spot.nii.gz", "-o", tmp_path / "out", "--device", "cpu")
    assert ran.code == 0
    assert "1 of 1 cases done" in ran.stdout


def test_missing_channels_fail_alone_and_nothing_usable_is_refused(autoseg, tmp_path):
    work = trained_work_folder(tmp_path, tiny_plan(channels=2), folds=(0,))
    images = write_cases(tmp_path / "in", 2)
    refused = autoseg("predict", work, "-i", images, "-o", tmp_path / "out", "--device", "cpu")
    assert refused.code == 3
    assert "case0_0001" in refused.stderr
    write_image(images / "case1_0001.nii.gz", Volume(noise((1, *TILTED.shape), 7), TILTED))
    ran = autoseg("predict", work, "-i", images, "-o", tmp_path / "out", "--device", "cpu", "--json")
    assert ran.code == 4
    assert [case["status"] for case in ran.document["cases"].values()] == ["failed", "done"]


def test_probabilities_are_written_beside_the_labels(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    assert autoseg("predict", work, "-i", images, "-o", out, "--device", "cpu", "--probabilities").code == 0
    with np.load(out / "case0.npz") as stored:
        probabilities = stored["probabilities"]
    assert (probabilities.shape, probabilities.dtype) == ((3, *TILTED.shape), np.float16)
    lead = np.diff(np.sort(probabilities.astype(np.float32), 0)[-2:], axis=0)[0]
    labels = read_labels(out / "case0.nii.gz").array
    assert np.array_equal(labels[lead > 0], np.array([0, 100, 200])[probabilities.argmax(0)][lead > 0])


def test_options_of_speed_change_the_probabilities_and_those_of_memory_nothing(autoseg, work, tmp_path):
    images, outputs = write_cases(tmp_path / "in", 1, Geometry((20, 24, 22))), []
    for index, words in enumerate(([], ["--no-mirroring"], ["--overlap", "0"], ["--max-ram", "0.001"])):
        out, more = tmp_path / f"out{index}", ["--device", "cpu", "--probabilities", *words]
        assert autoseg("predict", work, "-i", images, "-o", out, *more).code == 0
        with np.load(out / "case0.npz") as stored:
            outputs.append(stored["probabilities"].astype(np.float32))
    assert {output.shape for output in outputs} == {(3, 20, 24, 22)}
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01
    assert np.abs(outputs[0] - outputs[2]).max() > 0.01
    assert np.array_equal(outputs[0], outputs[3])


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    (images / "case1_0000.nii.gz").write_bytes(b"nonsense")
    ran = autoseg("predict", work, "-i", images, "-o", out, "--dry-run", "--json")
    assert ran.code == 4
    good = ran.document["cases"]["case0"]
    assert (good["shape"], good["output"]) == ([7, 12, 15], "case0.nii.gz")
    assert good["prepared_shape"] == [9, 10, 17]
    assert good["windows"] == 2 * 2 * 4
    assert good["memory_gib"] > 0
    assert "error" in ran.document["cases"]["case1"]
    assert not out.exists()
    assert "dry-run" in autoseg("predict", work, "-i", images, "-o", out, "--dry-run").stdout


def test_pictures_come_back_as_pictures(autoseg, tmp_path):
    work = trained_work_folder(tmp_path, tiny_plan(file_ending=".png"), "2d", (0,))
    pixels = np.random.default_rng(0).integers(1, 255, (1, 1, 20, 30)).astype(np.float32)
    write_image(tmp_path / "cell.png", Volume(pixels, plane_geometry((20, 30))))
    assert autoseg("predict", work, "-i", tmp_path / "cell.png", "-o", tmp_path / "out", "--device", "cpu").code == 0
    assert read_labels(tmp_path / "out" / "cell.png").array.shape == (1, 20, 30)


@pytest.mark.parametrize(
    ("image", "planned", "expected"),
    [
        ("a_0000.nii.gz", ".nii.gz", "a.nii.gz"),
        ("a.nii", ".nii.gz", "a.nii.gz"),
        ("a.nrrd", ".nii.gz", "a.nrrd"),
        ("a.png", ".png", "a.png"),
        ("a.nii.gz", ".mha", "a.nii.gz"),
    ],
)
def test_label_maps_are_named_after_the_image_and_in_its_format(image, planned, expected):
    assert output_name(Case("a", (image,)), planned) == expected


def test_the_model_that_is_not_there_is_an_answer_with_a_remedy(autoseg, tmp_path):
    images = write_cases(tmp_path / "in", 1)
    ran = autoseg("predict", tmp_path, "-i", images, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "autoseg train" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_an_image_is_never_replaced_by_its_label_map(autoseg, work, tmp_path):
    image = tmp_path / "in" / "x.nii.gz"
    write_image(image, Volume(noise((1, *TILTED.shape)), TILTED))
    before = image.read_bytes()
    ran = autoseg("predict", work, "-i", image.parent, "-o", image.parent)
    assert (ran.code, "would replace" in ran.stderr) == (2, True)
    assert image.read_bytes() == before


MAIN_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory")
"""As torch says it; it has a class of its own for the memory of devices only."""


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no more"), MAIN_MEMORY, MemoryError()], ids=repr)
def test_lack_of_memory_is_met_with_smaller_batches_then_with_a_file(autoseg, tmp_path, monkeypatch, error):
    """Memory ends in the middle of a case, with any batch, and then wherever tiles are added up in it."""
    work = trained_work_folder(tmp_path, folds=(0,))
    images, compute, allocate, batches = write_cases(tmp_path / "in", 2), UNet.forward, predictor.allocate, []

    def scarce(self, tiles):
        batches.append(len(tiles))
        if len(batches) > 2 and len(tiles) > 2:
            raise error
        return compute(self, tiles)

    def scarcer(shape, device, most_bytes, scratch):
        if batches and batches[-1] <= 2 and most_bytes != 0:
            raise error
        return allocate(shape, device, most_bytes, scratch)

    words = ("predict", work, "-i", images, "--device", "cpu", "--no-report", "-o")
    assert autoseg(*words, tmp_path / "plenty").code == 0
    monkeypatch.setattr(UNet, "forward", scarce)
    monkeypatch.setattr(predictor, "allocate", scarcer)
    ran = autoseg(*words, tmp_path / "scarce")
    assert ran.code == 0, ran.stderr
    assert max(batches[:3]) > 2 >= max(batches[-3:])
    assert "1 tiles at a time" in ran.stderr
    assert "in a file" in ran.stderr
    for name in ("case0.nii.gz", "case1.nii.gz"):
        assert np.array_equal(*(read_labels(tmp_path / folder / name).array for folder in ("plenty", "scarce")))
    assert sorted(path.suffix for path in (tmp_path / "scarce").iterdir()) == [".gz", ".gz", ".json"]


def test_faults_of_the_program_are_not_taken_for_a_lack_of_memory(autoseg, work, tmp_path, monkeypatch):
    tried = []

    def wrong(self, tiles):
        tried.append(len(tiles))
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(UNet, "forward", wrong)
    images = write_cases(tmp_path / "in", 1)
    ran = autoseg("predict", work, "-i", images, "-o", tmp_path / "out", "--device", "cpu", "--json")
    assert (ran.code, len(tried)) == (4, 1)
    assert "shapes do not match" in ran.document["cases"]["case0"]["error"]


def test_without_any_memory_the_case_fails_with_what_to_do(autoseg, work, tmp_path, monkeypatch):
    def none(self, tiles):
        raise MemoryError

    monkeypatch.setattr(UNet, "forward", none)
    images = write_cases(tmp_path / "in", 1)
    ran = autoseg("predict", work, "-i", images, "-o", tmp_path / "out", "--device", "cpu", "--json")
    assert ran.code == 4
    assert "memory is not enough" in ran.document["cases"]["case0"]["error"]


SLOW = """
import sys, time
from autoseg.networks.unet import UNet
compute, slow_from = UNet.forward, int(sys.argv.pop(1))
count = [0]
def slow(self, tiles):
    count[0] += 1
    if count[0] > slow_from:
        time.sleep(0.3)
    return compute(self, tiles)
UNet.forward = slow
from autoseg.cli.main import main
main()
"""


@pytest.mark.parametrize(("signal_number", "after_cases", "code"), [(signal.SIGTERM, 1, 75), (signal.SIGINT, 0, 130)])
def test_a_stop_keeps_what_is_done(repository, work, tmp_path, signal_number, after_cases, code):
    """Tiles are slow from the first one of the second case on, or from the very first on."""
    images, out = write_cases(tmp_path / "in", 4, Geometry((30, 30, 30))), tmp_path / "out"
    tiles = len(load_model(work, device="cpu").ensemble.members[0].predictor.tiling((15, 30, 30)).batches(16))
    words = ["predict", str(work), "-i", str(images), "-o", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tiles * after_cases), *words], cwd=repository, stderr=subprocess.PIPE
    )
    begin = time.monotonic()
    while not (out.exists() if after_cases == 0 else (out / "manifest.json").exists()):
        assert time.monotonic() - begin < 60
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors.decode()
    assert (out / "case0.nii.gz").exists() == bool(after_cases)
    if after_cases:
        cases = json.loads((out / "manifest.json").read_text())["cases"]
        assert {case["status"] for case in cases.values()} == {"done"}
        assert 1 <= len(cases) < 4
        assert sorted(path.name for path in out.glob("*.nii.gz")) == sorted(case["output"] for case in cases.values())


@pytest.fixture
def computed(monkeypatch):
    """Names of the cases that were computed, in order."""
    names, read = [], stream.read_in

    def noted(helper, task):
        names.append(task.case.identifier)
        return read(helper, task)

    monkeypatch.setattr(stream, "read_in", noted)
    return names


def test_the_same_command_again_does_only_what_is_missing(autoseg, work, tmp_path, computed):
    images, out = write_cases(tmp_path / "in", 4), tmp_path / "out"
    words = ["predict", work, "-i", images, "-o", out, "--device", "cpu", "--no-report", "--json"]
    first = autoseg(*words).document
    assert computed == ["case0", "case1", "case2", "case3"]
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    write_image(images / "case0_0000.nii.gz", Volume(noise((1, *TILTED.shape), 77), TILTED))
    (out / "case1.nii.gz").unlink()
    (out / "case2.nii.gz").write_bytes(b"edited by somebody")
    computed.clear()
    again = autoseg(*words).document
    assert computed == ["case0", "case1", "case2"]
    assert set(again["cases"]) == set(first["cases"])
    after = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    assert [after[f"case{index}.nii.gz"] == before[f"case{index}.nii.gz"] for index in (1, 2, 3)] == [True] * 3


@pytest.mark.parametrize("is_bundle", [False, True], ids=["runs", "bundle"])
def test_with_everything_done_before_nothing_is_loaded_or_written(autoseg, work, tmp_path, is_bundle):
    images, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    model = export_model(work, tmp_path / "model.autoseg") if is_bundle else work
    command = ("predict", model, "-i", images, "-o", out, "--device", "cpu")
    assert autoseg(*command).code == 0
    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    arguments = [str(model), str(images), str(out)]
    code = f"import sys; from autoseg import predict; print(len(predict(*{arguments!r}).cases), 'torch' in sys.modules)"
    again = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert again.stdout.split() == ["2", "False"]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == written
    (out / "report.html").unlink()
    assert autoseg(*command).code == 0
    assert (out / "report.html").is_file()


def test_a_report_of_fewer_cases_is_not_taken_for_the_present_one(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    command = ("predict", work, "-i", images, "-o", out, "--device", "cpu")
    assert autoseg(*command).code == 0
    write_cases(images, 2)
    assert autoseg(*command, "--no-report").code == 0
    assert "case1" not in (out / "report.html").read_text(encoding="utf-8")
    assert autoseg(*command).code == 0
    assert "case1" in (out / "report.html").read_text(encoding="utf-8")


def test_an_unusable_case_leaves_the_others_in_the_manifest_however_often_it_is_asked_for(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    for ending in (".nii", ".nii.gz"):  # which of both is meant?
        (images / f"odd_0000{ending}").write_bytes((images / "case0_0000.nii.gz").read_bytes())
    command = ("predict", work, "-i", images, "-o", out, "--device", "cpu", "--no-report")
    for _ in range(3):
        autoseg(*command)
        cases = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["cases"]
        assert {name: own["status"] for name, own in cases.items()} == {
            "case0": "done",
            "case1": "done",
            "odd": "failed",
        }


def test_a_refused_device_leaves_the_folder_as_it_was(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    command = ("predict", work, "-i", images, "-o", out, "--no-report")
    assert autoseg(*command, "--device", "cpu").code == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    write_cases(images, 3)
    (images / "case0_0000.nii").write_bytes(b"which of both is meant?")
    assert autoseg(*command, "--device", "cuda:99").code == 2
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("change", [["--no-mirroring"], ["--overlap", "0.25"], ["--probabilities"], ["--fold", "1"]])
def test_another_command_does_everything(autoseg, tmp_path, computed, change):
    work = trained_work_folder(tmp_path)
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    words = ["predict", work, "-i", images, "-o", out, "--device", "cpu", "--no-report"]
    assert autoseg(*words).code == 0
    assert autoseg(*words, *change).code == 0
    assert autoseg(*words, *change).code == 0
    assert computed == ["case0", "case0"]


def test_a_manifest_that_is_none_is_not_replaced_unless_asked_for(autoseg, work, tmp_path, computed):
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    words = ["predict", work, "-i", images, "-o", out, "--device", "cpu", "--no-report"]
    assert autoseg(*words).code == 0
    (out / "manifest.json").write_text("{")
    refused = autoseg(*words)
    assert (refused.code, "--overwrite" in refused.stderr) == (2, True)
    assert autoseg(*words, "--overwrite").code == 0
    assert computed == ["case0", "case0"]


def test_two_predictions_do_not_share_a_folder(autoseg, work, tmp_path, computed):
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    words = ["predict", work, "-i", images, "-o", out, "--device", "cpu", "--no-report"]
    with lease(out / LOCK_NAME, Busy("elsewhere")):
        refused = autoseg(*words)
        assert (refused.code, "another process" in refused.stderr) == (75, True)
        assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    assert autoseg(*words).code == 0
    assert sorted(path.name for path in out.iterdir()) == ["case0.nii.gz", "manifest.json"]


def test_a_corrected_label_map_is_kept_and_its_case_listed(autoseg, work, tmp_path, computed):
    images, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    words = ["predict", work, "-i", images, "-o", out, "--device", "cpu", "--json"]
    assert autoseg(*words).code == 0
    mine = read_labels(out / "case0.nii.gz")
    write_labels(out / "case0.nii.gz", np.full_like(mine.array, 100), mine.geometry)
    before = (out / "case0.nii.gz").read_bytes()
    ran = autoseg(*words)
    assert (ran.code, "kept" in ran.document["cases"]["case0"]["error"]) == (4, True)
    assert (out / "case0.nii.gz").read_bytes() == before
    assert computed == ["case0", "case1"]
    assert autoseg(*words, "--overwrite").code == 0
    assert (out / "case0.nii.gz").read_bytes() != before
    assert computed == ["case0", "case1", "case0"]


def test_a_report_is_written_beside_the_label_maps(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    assert autoseg("predict", work, "-i", images, "-o", out, "--device", "cpu").code == 0
    text = (out / "report.html").read_text()
    assert all(name in text for name in ("case0", "case1", "liver"))


def test_a_report_that_cannot_be_written_costs_no_label_map(autoseg, work, tmp_path):
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    ran = autoseg("predict", work, "-i", images, "-o", out, "--device", "cpu")
    assert (ran.code, "report could not be written" in ran.stderr) == (0, True)
    assert (out / "case0.nii.gz").exists()


def test_a_dry_run_counts_everything_that_predicts(autoseg, tmp_path):
    plan = cascade_plan()
    work = trained_work_folder(tmp_path, plan, "3d_lowres", (0,))
    add_run(work, plan, "3d_cascade_fullres", 0)
    images, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    words = ["-i", images, "-o", out, "--dry-run", "--json"]
    alone = [
        autoseg("predict", work, *words, "--configuration", name).document["cases"]["case0"]
        for name in ("3d_lowres", "3d_cascade_fullres")
    ]
    add_selection(work, plan, {"3d_lowres": 1, "3d_cascade_fullres": 1}, folds=(0,))
    together = autoseg("predict", work, *words).document["cases"]["case0"]
    assert together["windows"] == alone[1]["windows"] > alone[0]["windows"]
    assert together["prepared_shape"] == alone[1]["prepared_shape"]
    assert together["memory_gib"] > alone[1]["memory_gib"] > alone[0]["memory_gib"]


def test_an_output_folder_that_cannot_be_made_is_one_box(autoseg, work, tmp_path):
    images = write_cases(tmp_path / "images", 1)
    (tmp_path / "file").touch()
    ran = autoseg("predict", work, "-i", images, "-o", tmp_path / "file" / "out", "--device", "cpu")
    assert (ran.code, "cannot be made" in ran.stderr) == (2, True)
