"""Out-of-fold predictions made of noise, and score tables whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoseg.core.geometry import Geometry
from autoseg.data.labels import to_file_values
from autoseg.data.model import LabelSet
from autoseg.images.writers import write_labels
from autoseg.inference.out_of_fold import kept_heads, probabilities_file
from autoseg.selection.candidates import all_ensembles
from autoseg.selection.choose import ScoreTable, nested_groups
from autoseg.selection.ensemble_dice import OutOfFoldFiles

SHAPE = (3, 5, 6)
THREE = LabelSet({"background": (0,), "one": (1,), "two": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
IGNORE = LabelSet({"background": (0,), "one": (1,), "two": (2,)}, ignore=3)


def decided(probabilities, labels, certain=255):
    """Training values of stored probabilities (kept heads, ...), by the book; whole numbers, so that ties are ties."""
    probabilities = probabilities.astype(np.int64)
    if labels.has_regions:
        out = np.zeros(probabilities.shape[1:], np.int64)
        for value, head in zip(labels.regions_class_order, probabilities, strict=True):
            out[2 * head > certain] = value
        return out
    background = certain - probabilities.sum(0, keepdims=True)
    return np.concatenate([background, probabilities]).argmax(0)


def noise(rng, labels, shape=SHAPE):
    """Probabilities times 255 (kept heads, z, y, x) of a network that knows nothing."""
    if labels.has_regions:
        return rng.integers(0, 256, (kept_heads(labels), *shape)).astype(np.uint8)
    logits = rng.normal(0, 2, (labels.head_count, *shape))
    softmax = np.exp(logits) / np.exp(logits).sum(0)
    return (softmax[1:] * 255).astype(np.uint8)


def write_case(folder: Path, name: str, rng, labels: LabelSet, configurations: int, kept=None) -> OutOfFoldFiles:
    """A case with a reference and predictions of several configurations; `kept[i]`: with probabilities."""
    kept = kept or (True,) * configurations
    geometry = Geometry(SHAPE)
    values = [0, 1, 2] if labels.ignore is None else [0, 1, 2, 3]
    reference = folder / f"{name}.nii.gz"
    write_labels(reference, to_file_values(rng.choice(values, SHAPE), labels), geometry)
    predictions, probabilities = [], []
    for index in range(configurations):
        own = folder / f"configuration_{index}"
        content = noise(rng, labels)
        write_labels(own / f"{name}.nii.gz", to_file_values(decided(content, labels), labels), geometry)
        predictions.append(own / f"{name}.nii.gz")
        path = probabilities_file(own, name)
        if kept[index]:
            with path.open("wb") as stream:
                rows = np.moveaxis(content, 0, 1)
                np.savez_compressed(stream, shape=SHAPE, start=(0, 0, 0), order=(0, 1, 2), probabilities=rows)
        probabilities.append(path if kept[index] else None)
    return OutOfFoldFiles(name, 0, reference, tuple(predictions), tuple(probabilities))


def table_of(dice, configurations, folds=5) -> ScoreTable:
    """A table of the given Dice (ensembles, cases, classes)."""
    dice = np.asarray(dice, float)
    cases = dice.shape[1]
    return ScoreTable(
        configurations=tuple(configurations),
        ensembles=all_ensembles(len(configurations)),
        classes=tuple(f"class_{index}" for index in range(dice.shape[2])),
        cases=tuple(f"case_{index}" for index in range(cases)),
        groups=nested_groups(np.arange(cases) % folds),
        dice=dice,
    )


def simulated_table(rng, truth, cases=40, between_cases=0.08, noise=0.03) -> ScoreTable:
    """Scores of every ensemble around its true mean: cases are harder or easier, ensembles add noise."""
    hard = rng.normal(0, between_cases, (1, cases, 1))
    own = rng.normal(0, noise, (len(truth), cases, 1))
    count = next(n for n in range(1, 6) if len(all_ensembles(n)) == len(truth))
    return table_of(np.asarray(truth)[:, None, None] + hard + own, [f"c{index}" for index in range(count)])
