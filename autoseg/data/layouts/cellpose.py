"""Cellpose-style folders: every image has its label file beside it, with a suffix such as `_masks`.

Source: cellpose documentation, "training data".
"""

from __future__ import annotations

import re
from pathlib import Path

from autoseg.data.layouts.scan import image_files, pair
from autoseg.data.layouts.undeclared import describe_files
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
    labels: dict[str, Path] = {}
    suffixes: set[str] = set()
    for name, file in files.items():
        match = _LABEL_NAME.match(name)
        image = match and next((match["case"] + s for s in _IMAGE_SUFFIXES if match["case"] + s in files), None)
        if match and image:
            labels[image] = file
            suffixes.add(match["suffix"])
    if not labels:
        return None
    images = {name: (file,) for name, file in files.items() if name in labels or not _LABEL_NAME.match(name)}
    shown = ", ".join(f"_{suffix}" for suffix in sorted(suffixes))
    seen = f"cellpose-style folder: {len(labels)} images have a label file beside them, named with {shown}"
    return describe_files(root, "cellpose", pair(images, labels, root), seen, made_for_objects=True)
