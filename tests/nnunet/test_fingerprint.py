from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from autoseg.core.errors import RecordFault
from autoseg.nnunet.plans import read_nnunet_fingerprint

INTENSITIES = {
    "mean": 1.0,
    "median": 2.0,
    "std": 3.0,
    "min": -1.0,
    "max": 9.0,
    "percentile_00_5": -0.5,
    "percentile_99_5": 8.0,
}
FINGERPRINT = {
    "spacings": [[999, 1, 1], [3.0, 0.5, 0.5]],
    "shapes_after_crop": [[1, 20, 30], [10, 20, 30]],
    "foreground_intensity_properties_per_channel": {"1": {**INTENSITIES, "mean": 7.0}, "0": INTENSITIES},
    "median_relative_size_after_cropping": 0.5,
}


def test_every_field_arrives_under_our_name():
    fingerprint = read_nnunet_fingerprint(FINGERPRINT)
    assert [case.spacing_mm for case in fingerprint.cases] == [(999.0, 1.0, 1.0), (3.0, 0.5, 0.5)]
    assert [case.shape_after_crop for case in fingerprint.cases] == [(1, 20, 30), (10, 20, 30)]
    assert fingerprint.relative_size == pytest.approx(0.5)
    assert [channel.mean for channel in fingerprint.intensities] == [1.0, 7.0]
    assert fingerprint.intensities[0].percentile_99_5 == pytest.approx(8.0)
    assert [case.identifier for case in fingerprint.cases] == sorted(case.identifier for case in fingerprint.cases)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spacings",), [[1.0, 1.0, 1.0]], "1 spacings but 2 shapes"),
        (("spacings", 1), [0.0, 1.0, 1.0], "spacings.1"),
        (("spacings", 0), [float("inf"), 1.0, 1.0], "spacings.0"),
        (("shapes_after_crop", 0), [0, 4, 4], "shapes_after_crop.0"),
        (("shapes_after_crop", 0), [4, 4], "shapes_after_crop.0"),
        (("median_relative_size_after_cropping",), 0.0, "median_relative_size_after_cropping"),
        (("foreground_intensity_properties_per_channel",), {"1": INTENSITIES}, "channels are ['1']"),
        (("foreground_intensity_properties_per_channel",), {}, "channels are []"),
        (("foreground_intensity_properties_per_channel", "1"), {**INTENSITIES, "std": float("nan")}, "channel.1"),
        (("foreground_intensity_properties_per_channel", "1"), {"mean": 1.0}, "median"),
    ],
)
def test_a_fingerprint_that_cannot_be_true_is_refused_by_field(path, value, named):
    data = copy.deepcopy(FINGERPRINT)
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(RecordFault) as fault:
        read_nnunet_fingerprint(data)
    assert named in str(fault.value)


def test_published_fingerprints_are_read(shared: Path):
    files = sorted((shared / "golden" / "published").glob("*.json"))
    assert files
    for file in files:
        data = json.loads(file.read_text())["fingerprint"]
        assert len(read_nnunet_fingerprint(data, file.name).cases) == len(data["spacings"])
