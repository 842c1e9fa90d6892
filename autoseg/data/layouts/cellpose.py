"""Cellpose-style folders: every image has its label file beside it, with a suffix such as `_masks`.

Source: cellpose documentation, "training data".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from autoseg.data.inputs import image_files
from autoseg.data.layouts.layout import Found, Layout, found_in_folders, pair, unused_files
from autoseg.images.formats.files import stem

_LABEL_NAME = re.compile(r"^(?P<case>.+?)[_-](?P<suffix>cp_masks|masks?|segmentation|seg|labels?)$", re.IGNORECASE)
_IMAGE_SUFFIXES = ("", "_img", "_image", "_im")
_OTHER_OUTPUTS = re.compile(r"[_-](flows|outlines|overlay|probs?)(_|$)", re.IGNORECASE)


def detect_cellpose(root: Path) -> Found | None:
    """What is in a folder with files such as `a.tif` and `a_masks.tif`; None where there is no such pair.

    Cellpose labels number the objects; they become the one class `object`. Label files with a few values only are
    read as classes.
    """
    files = {stem(file): file for file in image_files(root) if not _OTHER_OUTPUTS.search(stem(file))}
    partners = _partners(files)
    if not partners:
        return None
    labels = {image: files[name] for image, name in partners.items()}
    images = {name: (file,) for name, file in files.items() if name in labels or not _LABEL_NAME.match(name)}
    suffixes = sorted({"_" + _LABEL_NAME.sub(r"\g<suffix>", name) for name in partners.values()})
    seen = f"cellpose-style folder: {len(labels)} images have a label file beside them, named with "
    return found_in_folders(root, pair(images, labels, root), seen + ", ".join(suffixes))


def _partners(names: Collection[str]) -> dict[str, str]:
    """Image name -> label file name, for the names that are an image's with a suffix of label files."""
    partners = {}
    for name in names:
        match = _LABEL_NAME.match(name)
        candidates = [match["case"] + suffix for suffix in _IMAGE_SUFFIXES] if match else []
        image = next((candidate for candidate in candidates if candidate in names), None)
        if image is not None:
            partners[image] = name
    return partners


CELLPOSE = Layout(detect_cellpose, "a.tif and a_masks.tif side by side", unused_files, made_for_objects=True)
