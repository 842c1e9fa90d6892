"""A dataset of a few tiny volumes with differing slice distances, planned."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset
from autoseg.planning.plan import Plan

SHAPE = (6, 12, 10)


def write_volume(path: Path, array: np.ndarray, slice_mm: float = 3.0) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.transpose(), np.diag([1.0, 1.0, slice_mm, 1.0])).to_filename(path)


def write_tiny_dataset(folder: Path, cases: int = 4, slices_mm: tuple[float, ...] = (3.0, 3.0, 2.0, 4.0)) -> None:
    rng = np.random.default_rng(0)
    for index in range(cases):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:4, 2:6, 2:6] = 1
        labels[4, 2:6, 2:6] = 2
        image = rng.normal(9, 1, SHAPE).astype(np.float32)
        slice_mm = slices_mm[index % len(slices_mm)]
        write_volume(folder / "imagesTr" / f"case_{index}_0000.nii.gz", image, slice_mm)
        write_volume(folder / "labelsTr" / f"case_{index}.nii.gz", labels, slice_mm)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "thing": 1, "other": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@dataclass(frozen=True)
class Planned:
    folder: Path
    workspace: Workspace
    dataset: Dataset
    fingerprint: Fingerprint
    plan: Plan


def planned_tiny_dataset(folder: Path, **options: object) -> Planned:
    from autoseg.api.plan import plan_dataset
    from autoseg.planning.planner import PlanOptions

    write_tiny_dataset(folder, **options)  # type: ignore[arg-type]
    workspace = Workspace(folder / "autoseg")
    planned = plan_dataset(folder, workspace, PlanOptions(), jobs=1)
    return Planned(folder, workspace, planned.dataset, planned.survey.fingerprint, planned.plan)
