"""Cellpose-style folders: every image has its label file beside it, with a suffix such as `_masks`.

Source: cellpose documentation, "training data".
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from autoseg.data.inputs import image_files
from autoseg.data.layouts.description import describe_files
from autoseg.data.layouts.layout import Layout, pair, unused_files
from autoseg.data.model import Dataset
from autoseg.images.formats.files import stem

_LABEL_NAME = re.compile(r"^(?P<case>.+?)[_-](?P<suffix>cp_masks|masks?|segmentation|seg|labels?)$", re.IGNORECASE)
_IMAGE_SUFFIXES = ("", "_img", "_image", "_im")
_OTHER_OUTPUTS = re.compile(r"[_-](flows|outlines|overlay|probs?)(_|$)", re.IGNORECASE)


def detect_cellpose(root: Path) -> Dataset | None:
    """The dataset in a folder with files such as `a.tif` and `a_masks.tif`; None where there is no such pair.

    Cellpose labels number the objects; they become the one class `object`. Label files with a few values only are
    read as classes.

    Raises:
        DataRefused: no label file can be read, or none holds a class.
    """
    files = {stem(file): file for file in image_files(root) if not _OTHER_OUTPUTS.search(stem(file))}
    found = {image: name for name in files if (image := _image_of(name, files))}
    if not found:
        return None
    labels = {image: files[name] for image, name in found.items()}
    images = {name: (file,) for name, file in files.items() if name in labels or not _LABEL_NAME.match(name)}
    suffixes = {f"_{match['suffix']}" for name in found.values() if (match := _LABEL_NAME.match(name))}
    seen = (
        f"cellpose-style folder: {len(labels)} images have a label file beside them, "
        f"named with {', '.join(sorted(suffixes))}"
    )
    return describe_files(root, "cellpose", pair(images, labels, root), seen, made_for_objects=True)


def _image_of(name: str, names: Container[str]) -> str | None:
    """The name of the image that a file is the label file of; None where it is none."""
    match = _LABEL_NAME.match(name)
    candidates = [match["case"] + suffix for suffix in _IMAGE_SUFFIXES] if match else []
    return next((candidate for candidate in candidates if candidate in names), None)


CELLPOSE = Layout(detect_cellpose, "a.tif and a_masks.tif side by side", unused_files)
