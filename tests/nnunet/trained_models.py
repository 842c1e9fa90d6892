"""Models that nnU-Net itself trained on synthetic data, with the label maps that it predicted: what we must equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "data" / "nnunet"
TINY, REGIONS = ROOT / "Dataset950_Tiny", ROOT / "Dataset951_TinyRegions"


@dataclass(frozen=True)
class Prediction:
    """A label map of nnU-Net's and what it was made with."""

    model: Path
    configuration: str
    folds: tuple[int, ...]
    mirroring: bool
    images: tuple[Path, ...]
    labels: Path

    def __str__(self) -> str:
        return f"{self.configuration} folds {self.folds} mirroring {self.mirroring}"


def predictions() -> Iterator[Prediction]:
    """All of them."""
    for dataset, trained in ((TINY, "nnUNetTrainer__nnUNetPlans"), (REGIONS, "nnUNetTrainer__nnUNetResEncUNetMPlans")):
        images = tuple(sorted((dataset / "images").iterdir()))
        for folder in sorted((dataset / "predicted").iterdir()):
            configuration, rest = folder.name.split("_folds_")
            folds, mirroring = rest.split("_mirroring_")
            yield Prediction(
                dataset / f"{trained}__{configuration}",
                configuration,
                tuple(map(int, folds.split("+"))),
                mirroring == "1",
                images,
                next(folder.iterdir()),
            )
