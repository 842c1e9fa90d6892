"""Cellpose-style folders: every image has its label file beside it, with a suffix such as `_masks`.

Source: cellpose documentation, "training data".
"""

from __future__ import annotations

from pathlib import Path

from autoseg.data.layouts.layout import Found, Layout, found_in_folders, pair, unused_files
from autoseg.data.naming import by_name, image_files, label_word, side_by_side


def detect_cellpose(root: Path) -> Found | None:
    """What is in a folder with files such as `a.tif` and `a_masks.tif`; None where there is no such pair.

    Cellpose labels number the objects; they become the one class `object`. Label files with a few values only are
    read as classes.
    """
    files = by_name(image_files(root))
    images, partners = side_by_side(files)
    if not partners:
        return None
    labels = {image: files[name] for image, name in partners.items()}
    words = sorted({label_word(name) for name in partners.values()})
    seen = f"cellpose-style folder: {len(labels)} images have a label file beside them, named with {', '.join(words)}"
    return found_in_folders(root, pair({name: (files[name],) for name in images}, labels, root), seen)


CELLPOSE = Layout(detect_cellpose, "a.tif and a_masks.tif side by side", unused_files, made_for_objects=True)
