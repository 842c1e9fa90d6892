"""Which changes suit which file."""

from __future__ import annotations

from tests.fuzz.binary import BMP, GIPL, NIFTI, PNG, TIFF
from tests.fuzz.documents import JSON, META, NRRD, SAFETENSORS, YAML
from tests.fuzz.mutators import BYTES, TEXT, on_unzipped
from tests.fuzz.target import Mutator

MUTATORS: dict[str, tuple[Mutator, ...]] = {
    ".nii.gz": (*on_unzipped((*NIFTI * 4, *BYTES)), *BYTES),
    ".nii": (*NIFTI * 4, *BYTES),
    ".gipl": (*GIPL * 3, *BYTES),
    ".bmp": (*BMP * 4, *BYTES),
    ".png": (*PNG * 5, *BYTES),
    ".tif": (*TIFF * 4, *BYTES),
    ".nrrd": (*NRRD * 2, *BYTES),
    ".nhdr": (*NRRD * 2, *BYTES),
    ".mha": (*META * 2, *BYTES),
    ".mhd": (*META * 2, *BYTES),
    ".json": (*JSON * 4, *TEXT * 2, *BYTES),
    ".jsonl": (*TEXT * 4, *BYTES),
    ".yaml": (*YAML * 8, *TEXT * 3, *BYTES),
    ".csv": (*TEXT * 3, *BYTES),
    ".autoseg": (*SAFETENSORS * 8, *BYTES),
    ".safetensors": (*SAFETENSORS[:1] * 8, *BYTES),
    "": BYTES,
}
"""Changes that suit a file by the ending of its name; the longest ending counts."""


def mutators_for(name: str) -> tuple[Mutator, ...]:
    """The changes that suit a file."""
    return MUTATORS[max((ending for ending in MUTATORS if name.endswith(ending)), key=len)]
