"""The Triton kernels of the loss against double precision, in Triton's interpreter: the GPU's arithmetic on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed (it is made for Linux)")

CHECK = """
import itertools, json, sys
import torch
from autoseg.data.model import LabelSet
from autoseg.training import losses

PLAIN = {"background": (0,), "a": (1,), "b": (2,), "never there": (3,)}
NESTED = {"background": (0,), "whole": (1, 2), "core": (2,), "never there": (3, 4)}
SETS = {
    "classes": LabelSet(PLAIN),
    "classes, ignore": LabelSet(PLAIN, ignore=4),
    "one class": LabelSet({"background": (0,), "a": (1,)}),
    "20 classes": LabelSet({str(i): (i,) for i in range(20)}),
    "regions": LabelSet(NESTED, regions_class_order=(1, 2, 3)),
    "regions, ignore": LabelSet(NESTED, ignore=5, regions_class_order=(1, 2, 3)),
}
SHAPES = {"3d": (2, 7, 9, 5), "2d": (3, 11, 13), "voxel": (1, 1, 1, 1), "two parts": (1, 8, 16, 5)}

def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-12))

def errors(label_set, shape, batch_dice, dtype, is_channels_last):
    generator = torch.Generator().manual_seed(sum(shape))
    size = (shape[0], label_set.head_count, *shape[1:])
    logits = (3 * torch.randn(size, generator=generator)).to(dtype)
    if is_channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last if len(size) == 4 else torch.channels_last_3d)
    present = min(3, label_set.largest_value + 1)
    labels = torch.randint(0, present, shape, generator=generator).to(torch.int16)
    if label_set.ignore is not None:
        labels[torch.rand(shape, generator=generator) < 0.3] = label_set.ignore
        labels[0] = label_set.ignore  # a sample without any annotation
    labels[-1, 0] = -1
    exact = logits.double().requires_grad_()
    expected = losses.dice_ce(exact, labels, label_set, batch_dice)
    (0.7 * expected).backward()
    found = logits.clone(memory_format=torch.preserve_format).requires_grad_()
    losses.has_kernels = lambda _logits: True
    value = losses.dice_ce(found, labels, label_set, batch_dice)
    losses.has_kernels = lambda _logits: False
    (0.7 * value).backward()
    assert value.dtype == torch.float32 and found.grad.dtype == dtype
    if label_set.ignore is not None:
        assert not found.grad.movedim(1, 0)[:, labels == label_set.ignore].any()
    return [relative(value, expected), relative(found.grad, exact.grad)]

found = {}
for number, (name, kind) in enumerate(itertools.product(SETS, SHAPES)):
    for dtype in (torch.float32, (torch.bfloat16, torch.float16)[number % 2]):
        batch_dice = dtype == torch.float32 if number % 3 else dtype != torch.float32
        key = f"{name}, {kind}, {str(dtype)[6:]}, batch Dice {batch_dice}"
        found[key] = errors(SETS[name], SHAPES[kind], batch_dice, dtype, bool(number % 4))
print(json.dumps(found))
"""

LARGEST = {"float32": 2e-6, "bfloat16": 6e-3, "float16": 1e-3}
"""Relative error of a gradient, rounded to the logits' kind in the end; the loss itself stays in float32."""


def test_loss_and_gradient_are_those_of_double_precision() -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHECK]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 48
    for case, (loss, gradient) in found.items():
        kind = next(own for own in LARGEST if own in case)
        assert loss < 2e-6, (case, loss)
        assert gradient < LARGEST[kind], (case, gradient)
