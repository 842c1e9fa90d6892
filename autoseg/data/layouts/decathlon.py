"""Medical Segmentation Decathlon: dataset.json with a `training` list; a fourth image axis holds the channels.

Source: medicaldecathlon.com; Antonelli et al. 2022, Nature Communications.
"""

from __future__ import annotations

from pathlib import Path

from autoseg.data.layouts.description import (
    DESCRIPTION,
    LEGACY_FILE_ENDING,
    channels_entry,
    describe,
    read_description,
)
from autoseg.data.layouts.layout import Layout, most_common_ending
from autoseg.data.model import Dataset


def detect_decathlon(root: Path) -> Dataset | None:
    """The dataset in a Decathlon folder; None where the folder is something else.

    Raises:
        RecordFault: dataset.json is faulty; every fault is listed.
    """
    data = read_description(root)
    if data is None or not isinstance(data.get("training"), list):
        return None
    required = (channels_entry(data), "labels", "training")
    declared = describe(data, str(root / DESCRIPTION), required, ("regions_class_order", "numTraining"))
    channels, cases = declared.channels, tuple(declared.cases)
    four_d = len(channels) > 1 and all(len(case.images) == 1 for case in cases)
    return Dataset(
        name=root.resolve().name,
        root=str(root),
        layout="decathlon",
        layout_reason=f"Medical Segmentation Decathlon: {DESCRIPTION} lists {len(cases)} training images with labels"
        + (f", the fourth axis holds {len(channels)} channels" if four_d else ""),
        channels=channels,
        labels=declared.labels,
        cases=cases,
        file_ending=most_common_ending(cases) or LEGACY_FILE_ENDING,
        four_d=four_d,
        announced_cases=declared.announced_cases,
    )


DECATHLON = Layout(
    detect_decathlon, "dataset.json with a `training` list of images (4D for several channels) and labels"
)
