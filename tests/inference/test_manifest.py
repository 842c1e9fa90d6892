"""What an earlier prediction leaves to do depends on every file that is read for an image."""

import json

import numpy as np
import pytest

from autoseg.core.geometry import Geometry
from autoseg.core.records import save
from autoseg.data.model import Case, label_set_of
from autoseg.images.formats.files import files_of, hash_of_written
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from autoseg.inference.manifest import CaseOutcome, PredictionManifest, find_predictions, hash_of_images


@pytest.mark.parametrize("ending", [".nii.gz", ".mhd", ".tif"])
def test_a_change_in_any_file_of_an_image_changes_its_hash(tmp_path, ending):
    image = tmp_path / f"case{ending}"
    write_image(image, Volume(np.zeros((1, 3, 4, 5), np.uint8), Geometry((3, 4, 5))))
    hashes = {hash_of_images(Case("case", (str(image),)))}
    for file in files_of(image):
        file.write_bytes(file.read_bytes() + b" ")
        hashes.add(hash_of_images(Case("case", (str(image),))))
    assert len(hashes) == 1 + len(files_of(image))


def test_a_spacing_that_appears_beside_a_stack_changes_its_hash(tmp_path):
    image = tmp_path / "case_0000.tif"
    write_image(image, Volume(np.zeros((1, 3, 4, 5), np.uint8), Geometry((3, 4, 5))))
    (tmp_path / "case_0000.json").unlink()
    before = hash_of_images(Case("case", (str(image),)))
    (tmp_path / "case_0000.json").write_text(json.dumps({"spacing": [3, 1, 1]}))
    assert hash_of_images(Case("case", (str(image),))) != before


LABELS = label_set_of({"background": (0,), "organ": (1,)})
GRID = Geometry((3, 4, 5))


def predicted(folder, **outcomes):
    """A folder of label maps a and b, and their manifest."""
    cases = {}
    for name in "ab":
        write_labels(folder / f"{name}.nii.gz", np.ones(GRID.shape, np.uint8), GRID)
        cases[name] = CaseOutcome("done", f"{name}.nii.gz", 1.0, None, "x", hash_of_written(folder / f"{name}.nii.gz"))
    save(PredictionManifest(2, "0", "m", "cpu", True, 0.5, LABELS, cases | outcomes), folder / "manifest.json")
    return folder


def test_label_maps_are_found_by_their_manifest(tmp_path):
    found = find_predictions(predicted(tmp_path))
    assert {name: file.name for name, file in found.files.items()} == {"a": "a.nii.gz", "b": "b.nii.gz"}
    assert (found.failures, found.notes) == ({}, ())


def test_a_case_that_failed_has_no_label_map_whatever_lies_there(tmp_path):
    found = find_predictions(predicted(tmp_path, a=CaseOutcome("failed", None, 0.0, "damaged", None)))
    assert list(found.files) == ["b"]
    assert found.failures == {"a": "damaged"}


def test_a_second_file_of_a_case_is_not_taken_for_its_label_map(tmp_path):
    folder = predicted(tmp_path)
    write_labels(folder / "a.mha", np.zeros(GRID.shape, np.uint8), GRID)
    assert find_predictions(folder).files["a"].name == "a.nii.gz"


def test_corrected_and_added_label_maps_are_used_with_a_note(tmp_path):
    folder = predicted(tmp_path)
    for name in ("a", "c"):
        write_labels(folder / f"{name}.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    found = find_predictions(folder)
    assert sorted(found.files) == ["a", "b", "c"]
    assert [note.split()[0] for note in found.notes] == ["a.nii.gz", "c.nii.gz"]


def test_a_label_map_that_is_gone_is_a_failure(tmp_path):
    folder = predicted(tmp_path)
    (folder / "a.nii.gz").unlink()
    assert list(find_predictions(folder).failures) == ["a"]


def test_without_a_manifest_two_files_of_a_case_are_refused(tmp_path):
    for name in ("a.nii.gz", "a.mha", "b.nii.gz"):
        write_labels(tmp_path / name, np.zeros(GRID.shape, np.uint8), GRID)
    found = find_predictions(tmp_path)
    assert list(found.files) == ["b"]
    assert "a.mha, a.nii.gz" in found.failures["a"]
