"""Real data sets: shapes after the crop and spacings are those that nnU-Net 2.8.1 found, and every file is whole."""

import json
import time

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from autoseg.images.compare import compare_geometry
from autoseg.images.formats.files import file_ending, stem, verify_file
from autoseg.images.readers import read_image, read_labels
from autoseg.images.writers import write_labels

pytestmark = pytest.mark.real

SETS = [
    *("acdc_cardiac", "axon_sem", "chase_vessels", "dsb2018_nuclei", "hippocampus"),
    *("ms_lesion_mr", "openkbp_ct", "vnc_em2d", "vnc_em3d"),
]


def cropped_shape(array):
    """Voxels of the box around all that is not zero in any channel, holes filled."""
    mask = binary_fill_holes((array != 0).any(axis=0))
    return [int(np.ptp(indices)) + 1 for indices in np.nonzero(mask)]


@pytest.mark.parametrize("name", SETS)
def test_shapes_and_spacings_equal_the_reference_fingerprint(shared, tmp_path, name):
    fingerprint = json.loads((shared / "golden" / "shared_data" / f"{name}.json").read_text())["fingerprint"]
    folder = shared / "data" / name
    shapes, spacings = [], []
    for label_path in sorted(path for path in (folder / "labelsTr").iterdir() if file_ending(path)):
        ending = file_ending(label_path)
        volume = read_image(sorted((folder / "imagesTr").glob(f"{stem(label_path)}_[0-9][0-9][0-9][0-9]{ending}")))
        labels = read_labels(label_path)
        assert compare_geometry(volume.geometry, labels.geometry) == "identical"
        assert volume.notes == labels.notes == ()
        shapes.append(cropped_shape(volume.array))
        spacings.append(list(volume.geometry.spacing_mm))
    assert shapes == fingerprint["shapes_after_crop"]
    assert spacings == fingerprint["spacings"]
    write_labels(tmp_path / f"case{ending}", labels.array, labels.geometry)
    back = read_labels(tmp_path / f"case{ending}")
    assert back.geometry == labels.geometry
    assert (back.array == labels.array).all()


@pytest.mark.parametrize("name", ["nrrd_examples", "totalseg_example", "dicom_examples/ct3slice_with_seg/seg"])
def test_examples_are_read_and_written_back_exactly(shared, tmp_path, name):
    for path in sorted((shared / "data" / name).iterdir()):
        ending = file_ending(path)
        if ending is None:
            continue
        volume = read_image([path])
        write_labels(tmp_path / f"case{ending}", volume.array[0].astype(np.int32), volume.geometry)
        back = read_image([tmp_path / f"case{ending}"])
        assert back.geometry == volume.geometry


def test_four_hundred_files_are_verified_within_two_seconds(shared):
    paths = sorted((shared / "data" / "hippocampus").rglob("*.nii.gz"))
    start = time.perf_counter()
    for path in paths:
        verify_file(path)
    assert time.perf_counter() - start < 2.0
    assert len(paths) == 406
