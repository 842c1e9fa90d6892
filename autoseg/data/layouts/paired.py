"""Paired folders: images in one, labels in the other, the same file name without its ending."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from autoseg.core.errors import DataRefused
from autoseg.data.layouts.layout import Found, Layout, found_in_folders, pair, unused_files, with_channels
from autoseg.data.naming import by_channel, by_name, image_files, partners, subfolder
from autoseg.images.foreign import foreign_files
from autoseg.images.formats.files import SUPPORTED_ENDINGS

IMAGE_FOLDERS = (
    *("images", "imagesTr", "image", "imgs", "img", "scans", "scan", "volumes", "volume"),
    *("pictures", "picture", "photos", "photo", "inputs", "input", "raw", "x"),
)
LABEL_FOLDERS = (
    *("labels", "labelsTr", "label", "masks", "mask", "annotations", "annotation"),
    *("segmentations", "segmentation", "segs", "seg", "ground_truth", "groundtruth", "gt", "targets", "y"),
)


def detect_paired(root: Path) -> Found | None:
    """What is in a folder with one subfolder for images and one for labels; None where the folder has no such two.

    A label file has its image's name, or this with a word such as `_mask` (`data.naming.partners`). Where the names
    agree only without a channel index (`case_0000.png`, `case_0001.png` and `case.png`), the files are the channels of
    one case.

    Raises:
        DataRefused: the folders are there but no names agree.
    """
    images, labels = subfolder(root, IMAGE_FOLDERS), subfolder(root, LABEL_FOLDERS)
    if images is None or labels is None:
        return None
    label_files = by_name(image_files(labels))
    single = {name: (file,) for name, file in by_name(image_files(images)).items()}
    channels = by_channel(image_files(images))
    whole, split = partners(single, label_files), partners(channels, label_files)
    is_whole = len(whole) >= len(split)
    names = whole if is_whole else split
    if not names:
        raise _without_pairs(images, labels, single, label_files)
    indices = sorted(set().union(*channels.values()))
    files = single if is_whole else with_channels(channels, indices)
    cases = pair(files, {image: label_files[name] for image, name in names.items()}, root)
    agree = "file names in common" if all(map(str.__eq__, names, names.values())) else "matching file names"
    seen = f"paired folders: {images.name}/ and {labels.name}/ have {len(names)} {agree}"
    return found_in_folders(root, cases, seen)


def _without_pairs(
    images: Path, labels: Path, image_names: Collection[str], label_names: Collection[str]
) -> DataRefused:
    foreign = foreign_files([images, labels])
    do = "give each label file the name of its image, or write a manifest.csv with the columns case,image,label"
    if image_names and label_names:
        what = f"{images.name}/ and {labels.name}/ have no file names in common "
        what += f"({_some(image_names, 'image')}, {_some(label_names, 'label')})"
    else:
        what = f"{(labels if image_names else images).name}/ holds no file that can be read"
        do = "; ".join(found.kind.remedy for found in foreign) or f"give {', '.join(SUPPORTED_ENDINGS)}"
    return DataRefused(what, where=str(images.parent), why="; ".join(map(str, foreign)) or None, do=do)


def _some(names: Collection[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} such as {min(names)}"


PAIRED = Layout(
    detect_paired, "images/a.png and labels/a.png (also scans/masks, img/mask, imagesTr/labelsTr, ...)", unused_files
)
