"""Paired folders: images in one, labels in the other, the same file name without its ending."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path

from autoseg.core.errors import DataRefused
from autoseg.data.inputs import by_channel, image_files
from autoseg.data.layouts.layout import Found, Layout, found_in_folders, pair, subfolder, unused_files, with_channels
from autoseg.images.formats.files import stem

IMAGE_FOLDERS = ("images", "imagesTr", "image", "imgs", "img", "raw", "x")
LABEL_FOLDERS = (
    *("labels", "labelsTr", "label", "masks", "mask", "annotations", "annotation"),
    *("segmentations", "segmentation", "segs", "seg", "ground_truth", "groundtruth", "gt", "targets", "y"),
)

_LABEL_SUFFIX = re.compile(
    r"[_-](masks?|labels?|segmentation|seg|annotation|gt|groundtruth|ground_truth)$", re.IGNORECASE
)


def detect_paired(root: Path) -> Found | None:
    """What is in a folder with one subfolder for images and one for labels; None where the folder has no such two.

    A label file has its image's name, or this with a suffix such as `_mask`. Where the names agree only without a
    channel index (`case_0000.png`, `case_0001.png` and `case.png`), the files are the channels of one case.

    Raises:
        DataRefused: the folders are there but no names agree.
    """
    images, labels = subfolder(root, IMAGE_FOLDERS), subfolder(root, LABEL_FOLDERS)
    if images is None or labels is None:
        return None
    label_files = {stem(file): file for file in image_files(labels)}
    single = {stem(file): (file,) for file in image_files(images)}
    channels = by_channel(image_files(images))
    whole, split = _matched(label_files, single), _matched(label_files, channels)
    partners = whole if len(whole) >= len(split) else split
    if not partners:
        raise DataRefused(
            f"{images.name}/ and {labels.name}/ have no file names in common "
            f"({len(single)} images such as {_first(single)}, {len(label_files)} labels such as {_first(label_files)})",
            where=str(root),
            do="give each label file the name of its image, or write a manifest.csv with the columns case,image,label",
        )
    indices = sorted({index for entry in channels.values() for index in entry})
    files = single if partners is whole else with_channels(channels, indices)
    cases = pair(files, partners, root)
    seen = f"paired folders: {images.name}/ and {labels.name}/ have {len(partners)} file names in common"
    return found_in_folders(root, cases, seen)


def _matched(label_files: dict[str, Path], names: Container[str]) -> dict[str, Path]:
    """Case name -> label file, for the label files whose name, or name without suffix, is among `names`."""
    matched: dict[str, Path] = {}
    for name, file in label_files.items():
        case = next((candidate for candidate in (name, _LABEL_SUFFIX.sub("", name)) if candidate in names), None)
        if case is not None:
            matched.setdefault(case, file)
    return matched


def _first(names: Iterable[str]) -> str:
    return min(names, default="none")


PAIRED = Layout(
    detect_paired, "images/a.png and labels/a.png (also images/masks, img/mask, imagesTr/labelsTr)", unused_files
)
