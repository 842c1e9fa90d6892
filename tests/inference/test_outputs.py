"""What a prediction finds in its folder is kept, replaced or removed by what AutoSeg knows of it."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest

from autoseg.core.errors import UsageError
from autoseg.core.geometry import Geometry
from autoseg.core.records import load, save
from autoseg.data.model import Case, label_set_of
from autoseg.images.formats.files import files_of
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from autoseg.inference.manifest import CaseOutcome, PredictionManifest, find_predictions, hash_of_images
from autoseg.inference.outputs import OutputFolder

GRID = Geometry((3, 4, 5), (2.0, 1.0, 1.0))
LABELS = label_set_of({"background": (0,), "organ": (1,)})


def manifest(overlap: float = 0.5) -> PredictionManifest:
    return PredictionManifest(2, "0", "model", "", True, overlap, LABELS)


def write(outputs: OutputFolder, case: Case, name: str, value: int = 1) -> None:
    """What a prediction does with a case."""
    path = outputs.folder / name
    labels = np.full(GRID.shape, value, np.uint8)
    write_labels(path, labels, GRID, lambda paths: outputs.begin(case.identifier, paths))
    written, beside = outputs.written(path, [])
    content = hash_of_images(case)
    outputs.finish(case.identifier, CaseOutcome("done", name, 1.0, None, content, written, beside=beside))


def fail(outputs: OutputFolder, case: Case) -> None:
    outputs.finish(case.identifier, CaseOutcome("failed", None, 0.0, "damaged", hash_of_images(case)))


@pytest.fixture
def case(tmp_path):
    image = tmp_path / "in" / "a.mhd"
    write_image(image, Volume(np.zeros((1, *GRID.shape), np.float32), GRID))
    return Case("a", (str(image),))


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def again(out, case, name, overlap=0.5, overwrite=False) -> OutputFolder:
    outputs = OutputFolder(out, manifest(overlap), overwrite)
    outputs.keep_done([case], [name], has_probabilities=False)
    return outputs


def names(out):
    return sorted(path.name for path in out.iterdir() if path.name != "manifest.json")


ENDINGS = [".nii.gz", ".mhd", ".tif", ".nrrd"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_unchanged_is_kept(out, case, ending):
    write(OutputFolder(out, manifest()), case, f"a{ending}")
    assert again(out, case, f"a{ending}").manifest.cases["a"].status == "done"


@pytest.mark.parametrize("index", range(2))
def test_a_change_in_any_file_of_the_image_is_noticed(out, case, index):
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    file = files_of(case_path := out.parent / "in" / "a.mhd")[index]
    assert str(case_path) in case.images
    file.write_bytes(file.read_bytes() + b"\n")
    outputs = again(out, case, "a.nii.gz")
    assert outputs.manifest.cases == {}
    write(outputs, case, "a.nii.gz", 0)
    assert names(out) == ["a.nii.gz"]


def test_a_label_map_of_other_options_is_not_kept_because_another_case_was_predicted_since(out, case):
    other = Case("b", case.images)
    write(OutputFolder(out, manifest(0.9)), case, "a.nii.gz")
    write(again(out, other, "b.nii.gz"), other, "b.nii.gz")  # or: both with 0.5, and stopped before the first
    assert find_predictions(out).notes == (
        "a.nii.gz is of another model, or of other options, than the last prediction",
    )
    assert again(out, case, "a.nii.gz").manifest.cases == {}
    assert again(out, other, "b.nii.gz").manifest.cases["b"].status == "done"
    assert again(out, case, "a.nii.gz", 0.9).manifest.cases["a"].status == "done"


def test_what_a_former_version_noted_counts_for_the_cases_of_its_last_prediction(out, case):
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    content = json.loads((out / "manifest.json").read_text())
    outcome = content["cases"]["a"]
    del outcome["made_by"]
    (out / "manifest.json").write_text(json.dumps(content))
    assert again(out, case, "a.nii.gz").manifest.cases["a"].status == "done"
    (out / "manifest.json").write_text(json.dumps({**content, "cases": {}, "earlier": {"a": outcome}}))
    assert again(out, case, "a.nii.gz").manifest.cases == {}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_file_of_our_own_is_made_again(out, case, ending):
    write(OutputFolder(out, manifest()), case, f"a{ending}")
    voxels = next((file for file in files_of(out / f"a{ending}") if "raw" in file.suffix), out / f"a{ending}")
    voxels.write_bytes(voxels.read_bytes()[: voxels.stat().st_size // 2])
    outputs = again(out, case, f"a{ending}")
    assert outputs.manifest.cases == {}
    write(outputs, case, f"a{ending}")
    assert again(out, case, f"a{ending}").manifest.cases["a"].status == "done"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_corrected_label_map_stays_and_is_named(out, case, ending):
    write(OutputFolder(out, manifest()), case, f"a{ending}")
    write_labels(out / f"a{ending}", np.arange(60, dtype=np.uint8).reshape(GRID.shape) % 2, GRID)
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
    for _ in range(2):
        outputs = again(out, case, f"a{ending}")
        outcome = outputs.manifest.cases["a"]
        assert (outcome.status, outcome.output) == ("failed", f"a{ending}")
        assert "kept" in (outcome.error or "")
        outputs.save(outputs.manifest)
    assert kept == {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
    assert again(out, case, f"a{ending}", overwrite=True).manifest.cases == {}


def test_another_model_does_not_replace_a_corrected_label_map(out, case):
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    write_labels(out / "a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    outcome = again(out, case, "a.nii.gz", overlap=0.25).manifest.cases["a"]
    assert (outcome.status, outcome.output) == ("failed", None)


def test_a_label_map_of_somebody_else_stays(out, case):
    write_labels(out / "a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    outputs = again(out, case, "a.nii.gz")
    assert "not written by AutoSeg" in (outputs.manifest.cases["a"].error or "")
    with pytest.raises(UsageError):
        write(outputs, case, "a.nii.gz")
    write(again(out, case, "a.nii.gz", overwrite=True), case, "a.nii.gz")
    assert again(out, case, "a.nii.gz").manifest.cases["a"].status == "done"


@pytest.mark.parametrize("content", ["folder", "link"])
def test_a_folder_or_link_in_the_place_of_a_label_map_stays(out, case, content):
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    (out / "a.nii.gz").unlink()
    if content == "folder":
        (out / "a.nii.gz").mkdir()
        (out / "a.nii.gz" / "mine.txt").write_text("mine")
    else:
        (out / "a.nii.gz").symlink_to(out / "not-fetched.nii.gz")
    outputs = again(out, case, "a.nii.gz")
    assert "kept" in (outputs.manifest.cases["a"].error or "")
    with pytest.raises(UsageError):
        write(outputs, case, "a.nii.gz")
    assert (out / "a.nii.gz" / "mine.txt").exists() or (out / "a.nii.gz").is_symlink()
    if content == "folder":
        with pytest.raises(UsageError, match="is a folder"):
            write(again(out, case, "a.nii.gz", overwrite=True), case, "a.nii.gz")
        assert (out / "a.nii.gz" / "mine.txt").exists()


@pytest.mark.parametrize("name", ["manifest.json", "report.html"])
def test_a_link_to_what_is_not_there_is_not_replaced(out, name):
    (out / name).symlink_to(out / "not-fetched")
    with pytest.raises(UsageError):
        OutputFolder(out, manifest()).check_report(out / "report.html")
    OutputFolder(out, manifest(), overwrite=True).check_report(out / "report.html")


def test_what_lies_beside_a_label_map_that_is_gone_stays_the_users(out, case):
    outputs = OutputFolder(out, manifest())
    write(outputs, case, "a.nii.gz")
    (out / "a.npz").write_text("of AutoSeg")
    written, beside = outputs.written(out / "a.nii.gz", [out / "a.npz"])
    outcome = CaseOutcome("done", "a.nii.gz", 1.0, None, hash_of_images(case), written, beside=beside)
    outputs.finish("a", outcome)
    (out / "a.npz").write_text("changed")
    (out / "a.nii.gz").unlink()
    assert "a.npz" in (again(out, case, "a.nii.gz").manifest.cases["a"].error or "")


def test_a_side_car_of_somebody_else_keeps_its_case_from_being_written(out, case):
    (out / "a.json").write_text('{"notes": "mine"}')
    with pytest.raises(UsageError, match=r"a\.json"):
        write(again(out, case, "a.tif"), case, "a.tif")
    assert (out / "a.json").read_text() == '{"notes": "mine"}'
    assert names(out) == ["a.json"]


def test_a_case_that_fails_now_has_no_label_map(out, case):
    write(OutputFolder(out, manifest()), case, "a.tif")
    assert names(out) == ["a.json", "a.tif"]
    fail(again(out, case, "a.tif"), case)
    assert names(out) == []
    assert load(PredictionManifest, out / "manifest.json").cases["a"].output is None


def test_a_case_that_fails_now_keeps_what_was_corrected(out, case):
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    write_labels(out / "a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    fail(OutputFolder(out, manifest()), case)
    assert names(out) == ["a.nii.gz"]
    outcome = load(PredictionManifest, out / "manifest.json").cases["a"]
    assert outcome.output is None
    assert "a.nii.gz" in outcome.notes[0]


def test_a_case_has_one_label_map_whatever_its_format(out, case):
    write(OutputFolder(out, manifest()), case, "a.tif")
    write(again(out, case, "a.mha"), case, "a.mha")
    assert names(out) == ["a.mha"]


def test_files_of_cases_that_were_not_predicted_now_stay_known(out, case):
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    other = Case("b", case.images)
    write(OutputFolder(out, manifest()), other, "b.nii.gz")
    assert set(load(PredictionManifest, out / "manifest.json").earlier) == {"a"}
    assert again(out, case, "a.nii.gz").manifest.cases["a"].status == "done"


def test_a_stop_between_a_label_map_and_the_manifest_leaves_no_foreign_file(out, case):
    outputs = OutputFolder(out, manifest())
    write_labels(out / "a.tif", np.ones(GRID.shape, np.uint8), GRID, lambda paths: outputs.begin("a", paths))
    outputs = again(out, case, "a.tif")
    assert outputs.manifest.cases == {}
    write(outputs, case, "a.tif")
    assert again(out, case, "a.tif").manifest.cases["a"].status == "done"


@pytest.mark.parametrize("place", ["a.tif", "a.json"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_is_changed_after_such_a_stop_is_the_users(out, case, place, is_replaced):
    write(OutputFolder(out, manifest()), case, "a.tif")
    outputs = again(out, case, "a.tif", overlap=0.25)
    assert outputs.manifest.cases == {}
    other = Geometry(GRID.shape, (3.0, 1.0, 1.0))

    def stop(files):
        outputs.begin("a", files)
        if not is_replaced:
            raise UsageError("stopped")

    with suppress(UsageError):
        write_labels(out / "a.tif", np.zeros(GRID.shape, np.uint8), other, stop)
    assert again(out, case, "a.tif").manifest.cases == {}
    (out / place).write_bytes((out / place).read_bytes() + b"\n")
    outputs = again(out, case, "a.tif")
    assert place in (outputs.manifest.cases["a"].error or "")
    with pytest.raises(UsageError):
        write(outputs, case, "a.tif")


@pytest.mark.parametrize("content", ["{", '{"notes": "mine"}', "[]"])
def test_a_manifest_of_somebody_else_is_not_replaced(out, content):
    (out / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        OutputFolder(out, manifest())
    assert OutputFolder(out, manifest(), overwrite=True).manifest.cases == {}


def test_a_report_of_somebody_else_is_not_replaced(out):
    report = out / "report.html"
    outputs = OutputFolder(out, manifest())
    outputs.check_report(report)
    report.write_text("mine")
    with pytest.raises(UsageError, match=r"report\.html"):
        outputs.check_report(report)
    OutputFolder(out, manifest(), overwrite=True).check_report(report)


def test_a_manifest_cannot_name_files_outside_its_folder(out, case):
    (out.parent / "precious").write_text("mine")
    write(OutputFolder(out, manifest()), case, "a.nii.gz")
    data = json.loads((out / "manifest.json").read_text())
    data["cases"]["a"]["beside"] = {"../precious": ""}
    (out / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(UsageError):
        OutputFolder(out, manifest())


def test_manifests_of_the_first_version_go_on(out, case):
    write(OutputFolder(out, manifest()), case, "a.tif")
    data = json.loads((out / "manifest.json").read_text())
    data["version"] = 1
    for name in ("earlier", "report"):
        del data[name]
    for name in ("beside", "notes"):
        del data["cases"]["a"][name]
    (out / "manifest.json").write_text(json.dumps(data))
    (out / "report.html").write_text("AutoSeg's own")
    outputs = again(out, case, "a.tif")
    assert outputs.manifest.cases["a"].status == "done"
    outputs.check_report(out / "report.html")
    save(outputs.manifest, out / "manifest.json")
    fail(again(out, case, "a.tif"), case)
    assert names(out) == ["report.html"]
