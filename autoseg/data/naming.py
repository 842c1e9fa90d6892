"""Names of image files: which case and channel a file belongs to, and which label file goes with which image.

Plan, predict and evaluate all ask here, so that the same files give the same cases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from autoseg.images.formats.files import is_image, stem

_CHANNEL_INDEX = re.compile(r"^(?P<case>.+)_(?P<index>\d{4})$", re.ASCII)

_LABEL_WORDS = r"(?:cp_masks|masks?|labels?|segmentations?|seg|annotations?|ground_?truth|gt)"
_IMAGE_WORDS = r"(?:images?|imgs?|im|scans?|volumes?|vol)"
_AT_THE_END = r"(?<=.)[_\-.]{words}$"
_AT_THE_BEGINNING = r"^{words}(?:[_\-.](?=.)|(?=\d))"
_MOST_WORDS = 2
"""Words that are taken off the end of a name: Slicer saves "p0-label.seg.nrrd"."""

_OTHER_OUTPUTS = re.compile(r"[_-](flows|outlines|overlay|probs?)(_|$)", re.IGNORECASE)
"""Files of Cellpose beside an image that are neither image nor labels."""


def image_files(folder: Path) -> tuple[Path, ...]:
    """Images in a folder, files or folders themselves, sorted by name; hidden ones are left out."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple(entry for entry in entries if is_image(entry))


def subfolder(root: Path, names: Iterable[str]) -> Path | None:
    """The first folder below `root` with one of the names, upper and lower case alike."""
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir(), reverse=True) if entry.is_dir()}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def name_of(file: Path) -> str:
    """The file's name without its ending, composed (NFC): macOS and others write the same accents differently."""
    return unicodedata.normalize("NFC", stem(file))


def by_name(files: Iterable[Path]) -> dict[str, Path]:
    """Name -> file; of two files of one name, which differ in their ending only, the first."""
    found: dict[str, Path] = {}
    for file in files:
        found.setdefault(name_of(file), file)
    return found


def split_channel(name: str) -> tuple[str, int | None]:
    """The case and the channel index of a file stem `<case>_0000`; the index is None where the name has none."""
    match = _CHANNEL_INDEX.match(name)
    return (match["case"], int(match["index"])) if match else (name, None)


def by_channel(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Case -> channel index -> file, for the files that carry an index."""
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        case, index = split_channel(name_of(file))
        if index is not None:
            found.setdefault(case, {}).setdefault(index, file)
    return found


def partners(images: Collection[str], labels: Iterable[str]) -> dict[str, str]:
    """Image name -> name of its label file.

    Equal names go together; then a label's name without its word, as `a_mask`, `a-label`, `a.seg` of `a`; then both
    without their words, as `img0001` and `label0001`, where only one image fits.
    """
    found = {name: name for name in labels if name in images}
    waiting = sorted(set(labels) - found.keys(), reverse=True)
    found = {**_fitting({image: [image] for image in images}, waiting), **found}
    shortened: dict[str, list[str]] = {}
    for image in images:
        for short in {image, *_without(_IMAGE_WORDS, image)}:
            shortened.setdefault(short, []).append(image)
    return {**_fitting(shortened, set(waiting) - set(found.values())), **found}


def _fitting(images: Mapping[str, Sequence[str]], labels: Iterable[str]) -> dict[str, str]:
    """Image -> label file whose name, or name without its word, is a key of `images` that stands for one image."""
    found: dict[str, str] = {}
    for name in labels:
        own = next((images[short] for short in (name, *_without(_LABEL_WORDS, name)) if short in images), ())
        if len(own) == 1:
            found.setdefault(own[0], name)
    return found


def side_by_side(names: Collection[str]) -> tuple[set[str], dict[str, str]]:
    """The images among names of one folder, and image -> label file, where label files lie beside their images.

    Without any such pair every name is an image. With one, label files without an image are no images either.
    """
    shortened = {name: {*_without(_LABEL_WORDS, name)} for name in names if not _OTHER_OUTPUTS.search(name)}
    lent = set().union(*shortened.values())  # `a_seg` is an image where `a_seg_mask` is there
    labels = {name for name, short in shortened.items() if short and name not in lent}
    pairs = partners(shortened.keys() - labels, labels)
    if not pairs:
        return set(names), {}
    return {name for name in shortened.keys() - labels if name in pairs or not shortened[name]}, pairs


def label_files(folder: Path) -> dict[str, Path]:
    """Name -> file of the label maps in a folder; images that lie beside their label files are left out."""
    files = by_name(image_files(folder))
    images, pairs = side_by_side(files)
    return {name: file for name, file in files.items() if name not in images} if pairs else files


def label_word(name: str) -> str:
    """The word that makes a name one of a label file, with its separator ("_masks"); empty where there is none."""
    short = next(_without(_LABEL_WORDS, name), name)
    return name.removeprefix(short) if name.startswith(short) else name.removesuffix(short)


def _without(words: str, name: str) -> Iterator[str]:
    """The name without one of the words at its end, without two of them, and without one at its beginning."""
    short = name
    for _ in range(_MOST_WORDS):
        shorter = re.sub(_AT_THE_END.format(words=words), "", short, flags=re.IGNORECASE)
        if shorter == short:
            break
        yield (short := shorter)
    begins = re.sub(_AT_THE_BEGINNING.format(words=words), "", name, flags=re.IGNORECASE)
    if begins != name:
        yield begins


def has_whole_name(case: str, images: Iterable[str]) -> bool | None:
    """Whether a case is named by the whole name of its only image; None where this name ends in no index anyway.

    Then `frame_0000` is the name of a case, and not channel 0 of the case `frame`.
    """
    names = [name_of(Path(image)) for image in images]
    has_index = any(split_channel(name)[1] is not None for name in names)
    return names == [case] if has_index else None


def has_label_words(pairs: Iterable[tuple[str, str | None]]) -> bool:
    """Whether some images (image file, label file) are called as label files of others are (`a` and `a_mask`).

    Where label files lie beside the images, the names are what tells them apart.
    """
    files = [(Path(image), None if label is None else Path(label)) for image, label in pairs]
    if any(label is not None and label.parent == image.parent for image, label in files):
        return False
    names = {name_of(image) for image, _ in files}
    images, _ = side_by_side(names | {split_channel(name)[0] for name in names})
    return not names <= images
