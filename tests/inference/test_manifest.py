"""What an earlier prediction leaves to do depends on every file that is read for an image."""

import json

import numpy as np
import pytest

from autoseg.core.geometry import Geometry
from autoseg.data.model import Case
from autoseg.images.formats.files import files_of
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image
from autoseg.inference.manifest import hash_of_images


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
    (tmp_path / "case.json").unlink()
    before = hash_of_images(Case("case", (str(image),)))
    (tmp_path / "case_0000.json").write_text(json.dumps({"spacing": [3, 1, 1]}))
    assert hash_of_images(Case("case", (str(image),))) != before
