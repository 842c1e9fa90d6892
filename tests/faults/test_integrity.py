"""Damaged datasets: every corruption is named by case and file, none passes silently, nothing crashes."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from autoseg.core.geometry import Geometry
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels

SHAPE = (12, 16, 14)
FLIPS, TRUNCATIONS = 200, 50


def write_case(folder: Path, case: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.normal(100, 20, (1, *SHAPE)).astype(np.float32)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4:8, 5:11, 4:9] = 1
    labels[6:8, 7:9, 5:7] = 2
    geometry = Geometry(SHAPE, (2.0, 1.0, 1.0), (5.0, -3.0, 8.0))
    write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", Volume(image, geometry))
    write_labels(folder / "labelsTr" / f"{case}.nii.gz", labels, geometry)


def describe(folder: Path, cases: int) -> None:
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def plan(folder: Path) -> tuple[int, dict[str, list[dict]], str]:
    """Exit code, problems by case and standard error of `autoseg plan --json`."""
    command = [sys.executable, "-m", "autoseg", "plan", str(folder), "--json", "--no-probe", "--jobs", "2", "-q"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert "Traceback" not in ran.stderr
    check = json.loads((folder / "autoseg" / "check.json").read_text())
    problems: dict[str, list[dict]] = {}
    for problem in check["problems"]:
        problems.setdefault(problem["case"], []).append(problem)
    return ran.returncode, problems, ran.stderr


def flip_bit(path: Path, generator: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    body = range(20, len(content))  # behind the gzip header, whose time stamp and name no checksum covers
    content[int(generator.choice(body))] ^= 1 << int(generator.integers(8))
    path.write_bytes(bytes(content))


def is_harmless(path: Path, before: bytes) -> bool:
    """Whether the decompressed bytes are as before: a flipped padding bit at the end of a stream changes nothing."""
    try:
        return gzip.decompress(path.read_bytes()) == before
    except (OSError, EOFError, zlib.error):
        return False


def truncate(path: Path, generator: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(generator.integers(0, len(content)))])


@pytest.mark.timeout(280)
def test_every_bit_flip_and_truncation_is_refused_by_name(tmp_path):
    generator = np.random.default_rng(7)
    names = [f"case_{number:03d}" for number in range(FLIPS + TRUNCATIONS + 1)]
    for number, case in enumerate(names):
        write_case(tmp_path, case, number)
    describe(tmp_path, len(names))
    damaged = {}
    for number, case in enumerate(names[:-1]):
        image, labels = tmp_path / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "labelsTr" / f"{case}.nii.gz"
        damaged[case] = labels if number % 8 == 7 else image
        before = gzip.decompress(damaged[case].read_bytes())
        (flip_bit if number < FLIPS else truncate)(damaged[case], generator)
        if is_harmless(damaged[case], before):
            del damaged[case]
    assert len(damaged) >= FLIPS + TRUNCATIONS - 8  # in the tiny label files some bits mean nothing
    code, problems, _ = plan(tmp_path)
    assert code == 0  # one sound case is left
    for case, path in damaged.items():
        refusals = [entry for entry in problems.get(case, []) if entry["severity"] == "refused"]
        assert refusals, f"{path.name} passed silently"
        assert any(path.name in (entry["file"] or "") for entry in refusals)
        assert all(entry["do"] for entry in refusals)
    assert names[-1] not in problems


def rewrite_voxels(path: Path, change) -> None:
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    changed = SimpleITK.GetImageFromArray(change(array))
    changed.CopyInformation(image)
    SimpleITK.WriteImage(changed, str(path))


def with_value(value):
    def change(array):
        array = array.astype(np.float32)
        array[3, 4, 5] = value
        return array

    return change


def mostly_nan(array):
    array = array.astype(np.float32)
    array[:6] = np.nan
    return array


def rewrite_grid(path: Path, change) -> None:
    SimpleITK.WriteImage(change(SimpleITK.ReadImage(str(path))), str(path))


def flipped(image):
    return SimpleITK.Flip(image, [True, False, False])


def shifted(image):
    image.SetOrigin(tuple(value + 5.0 for value in image.GetOrigin()))
    return image


def cropped(image):
    return SimpleITK.Crop(image, [0, 0, 1], [0, 0, 0])


def four_d(image):
    return SimpleITK.JoinSeries([image, image])


IMAGE, LABELS = "imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"
DAMAGES = {
    "label_gap": (
        LABELS,
        lambda path: rewrite_voxels(path, lambda a: np.where(a == 2, 7, a).astype(np.uint8)),
        "refused",
    ),
    "label_negative": (LABELS, lambda path: rewrite_voxels(path, lambda a: a.astype(np.int16) - 1), "refused"),
    "label_half": (LABELS, lambda path: rewrite_voxels(path, with_value(0.5)), "refused"),
    "label_nan": (LABELS, lambda path: rewrite_voxels(path, with_value(np.nan)), "refused"),
    "label_empty": (LABELS, lambda path: rewrite_voxels(path, lambda a: a * 0), "warning"),
    "label_missing": (LABELS, lambda path: path.unlink(), "refused"),
    "label_flipped": (LABELS, lambda path: rewrite_grid(path, flipped), "note"),
    "label_shifted": (LABELS, lambda path: rewrite_grid(path, shifted), "refused"),
    "label_cropped": (LABELS, lambda path: rewrite_grid(path, cropped), "refused"),
    "label_4d": (LABELS, lambda path: rewrite_grid(path, four_d), "refused"),
    "image_one_nan": (IMAGE, lambda path: rewrite_voxels(path, with_value(np.nan)), "warning"),
    "image_inf": (IMAGE, lambda path: rewrite_voxels(path, with_value(np.inf)), "warning"),
    "image_mostly_nan": (IMAGE, lambda path: rewrite_voxels(path, mostly_nan), "refused"),
    "image_constant": (IMAGE, lambda path: rewrite_voxels(path, lambda a: a * 0 + 5), "warning"),
    "image_4d": (IMAGE, lambda path: rewrite_grid(path, four_d), "refused"),
    "image_is_text": (IMAGE, lambda path: path.write_text("not an image"), "refused"),
    "image_is_empty": (IMAGE, lambda path: path.write_bytes(b""), "refused"),
}


@pytest.mark.timeout(120)
def test_every_kind_of_damage_is_named(tmp_path):
    for number, case in enumerate([*DAMAGES, "imageless", "sound", "twin"]):
        write_case(tmp_path, case, number)
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(tmp_path / folder / f"sound{ending}", tmp_path / folder / f"twin{ending}")
    describe(tmp_path, len(DAMAGES) + 3)
    for case, (pattern, damage, _) in DAMAGES.items():
        damage(tmp_path / pattern.format(case))
    (tmp_path / IMAGE.format("imageless")).unlink()
    code, problems, _ = plan(tmp_path)
    assert code == 0
    assert "labelsTr/imageless.nii.gz" in {entry["file"] for entry in problems[None]}
    for case, (_, _, severity) in DAMAGES.items():
        assert severity in {entry["severity"] for entry in problems.get(case, [])}, case
    everything = [entry for entries in problems.values() for entry in entries]
    assert any("twin" in entry["what"] or entry["case"] == "twin" for entry in everything)
    assert len({entry["code"] for entry in everything}) >= 8
