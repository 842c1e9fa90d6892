"""The same tiny cases, arranged in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from autoseg.core.geometry import Geometry
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels

GRID = Geometry(shape=(4, 6, 5), spacing_mm=(3.0, 1.0, 1.5), origin_mm=(5.0, -7.0, 11.0))
NAMES = ("case_a", "case_b", "case_c")
CLASSES = {"background": 0, "liver": 1, "tumor": 2}


def image_of(name: str, channels: int = 1) -> np.ndarray:
    """Intensities (c, z, y, x) of a case, whole numbers 1 to 200."""
    seed = sum(map(ord, name))
    return np.random.default_rng(seed).integers(1, 200, (channels, *GRID.shape)).astype(np.float32)


def labels_of(name: str, values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Labels (z, y, x) of a case, every value present."""
    seed = 7 + sum(map(ord, name))
    ranks = np.random.default_rng(seed).integers(0, len(values), GRID.shape)
    ranks.flat[: len(values)] = range(len(values))
    return np.array(values)[ranks]


def describe(root: Path, channels: int = 1, **changes: object) -> None:
    """Writes a dataset.json; a change to None leaves the key out."""
    data = {
        "channel_names": {str(index): f"MR{index}" for index in range(channels)},
        "labels": CLASSES,
        "numTraining": len(NAMES),
        "file_ending": ".nii.gz",
        **changes,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def write_channels(folder: Path, name: str, channels: int, ending: str) -> list[str]:
    """One file per channel, named with its index; returns their names."""
    image = image_of(name, channels)
    files = [f"{name}_{index:04d}{ending}" for index in range(channels)]
    for index, file in enumerate(files):
        write_image(folder / file, Volume(image[index : index + 1], GRID))
    return files


def nnunet(root: Path, channels: int = 1, ending: str = ".nii.gz", **changes: object) -> Path:
    for name in NAMES:
        write_channels(root / "imagesTr", name, channels, ending)
        write_labels(root / "labelsTr" / f"{name}{ending}", labels_of(name), GRID)
    describe(root, channels, file_ending=ending, **changes)
    return root


def decathlon(root: Path, channels: int = 1) -> Path:
    for name in NAMES:
        write_image(root / "imagesTr" / f"{name}.nii.gz", Volume(image_of(name, channels), GRID))
        write_labels(root / "labelsTr" / f"{name}.nii.gz", labels_of(name), GRID)
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in reversed(NAMES)]
    data = {
        "name": "tiny",
        "modality": {str(index): f"MR{index}" for index in range(channels)},
        "labels": {str(value): name for name, value in CLASSES.items()},
        "numTraining": len(NAMES),
        "training": listed,
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(data))
    return root


def paired(root: Path, channels: int = 1, folders: tuple[str, str] = ("images", "labels")) -> Path:
    for name in NAMES:
        if channels > 1:
            write_channels(root / folders[0], name, channels, ".nii.gz")
        else:
            write_image(root / folders[0] / f"{name}.nii.gz", Volume(image_of(name), GRID))
        write_labels(root / folders[1] / f"{name}.nii.gz", labels_of(name), GRID)
    return root


def cellpose(root: Path, suffix: str = "_masks", ending: str = ".nii.gz") -> Path:
    for name in NAMES:
        write_image(root / f"{name}{ending}", Volume(image_of(name), GRID))
        write_labels(root / f"{name}{suffix}{ending}", labels_of(name), GRID)
    return root


def manifest_csv(root: Path, channels: int = 1) -> Path:
    columns = [f"image_{index}" for index in range(channels)] if channels > 1 else ["image"]
    rows = [",".join(["case", *columns, "label"])]
    for name in NAMES:
        files = write_channels(root / "somewhere", name, channels, ".nii.gz")
        write_labels(root / "else" / f"{name}_seg.nrrd", labels_of(name), GRID)
        rows.append(",".join([name, *(f"somewhere/{file}" for file in files), f"else/{name}_seg.nrrd"]))
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def manifest_json(root: Path, channels: int = 1) -> Path:
    cases = []
    for name in NAMES:
        files = write_channels(root / "somewhere", name, channels, ".nii.gz")
        write_labels(root / "else" / f"{name}.nii.gz", labels_of(name), GRID)
        cases.append({"case": name, "image": [f"somewhere/{f}" for f in files], "label": f"else/{name}.nii.gz"})
    (root / "manifest.json").write_text(json.dumps({"cases": cases, "labels": CLASSES}))
    return root


def listed_nnunet(root: Path, channels: int = 1) -> Path:
    """nnU-Net's `dataset` key: cases lie outside the dataset's folder."""
    outside = root.parent / f"{root.name}_elsewhere"
    table = {}
    for name in NAMES:
        files = write_channels(outside, name, channels, ".nii.gz")
        write_labels(outside / f"{name}_labels.nii.gz", labels_of(name), GRID)
        relative = [f"../{outside.name}/{file}" for file in files]
        table[name] = {"images": relative, "label": str(outside / f"{name}_labels.nii.gz")}
    describe(root, channels, dataset=table)
    return root


ARRANGEMENTS = {
    "nnunet": nnunet,
    "nnunet, listed": listed_nnunet,
    "decathlon": decathlon,
    "paired": paired,
    "cellpose": cellpose,
    "manifest, csv": manifest_csv,
    "manifest, json": manifest_json,
}
