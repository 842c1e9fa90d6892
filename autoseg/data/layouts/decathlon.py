"""Medical Segmentation Decathlon: dataset.json with a `training` list; a fourth image axis holds the channels.

Source: medicaldecathlon.com; Antonelli et al. 2022, Nature Communications.
"""

from __future__ import annotations

from pathlib import Path

from autoseg.data.layouts.description import DESCRIPTION, channels_entry, describe, entry, read_description
from autoseg.data.layouts.layout import Found, Layout


def detect_decathlon(root: Path) -> Found | None:
    """What is in a Decathlon folder; None where the folder is something else.

    Raises:
        RecordFault: dataset.json is faulty; every fault is listed.
    """
    data = read_description(root)
    if data is None or not isinstance(entry(data, "training"), list):
        return None
    required = (channels_entry(data), "labels", "training")
    declared = describe(data, str(root / DESCRIPTION), required, ("regions_class_order", "numTraining"))
    cases, channels = tuple(declared.cases), len(declared.channels)
    seen = f"Medical Segmentation Decathlon: {DESCRIPTION} lists {len(cases)} training images with labels"
    four_d = channels > 1 and all(len(case.images) == 1 for case in cases)
    seen += f", the fourth axis holds {channels} channels" if four_d else ""
    return Found(cases, seen, declared, four_d=four_d)


DECATHLON = Layout(
    detect_decathlon, "dataset.json with a `training` list of images (4D for several channels) and labels"
)
