"""The Triton kernels against PyTorch in double precision, in Triton's interpreter: the GPU's arithmetic on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from autoseg.networks import channels_last_ops

pytest.importorskip("triton", reason="triton is not installed (it is made for Linux)")

CHECK = """
import json, sys
import torch
from torch.nn import functional as F
from autoseg.networks.fused_norm import norm_and_leaky_relu

def errors(shape, dtype, slope, mean):
    generator = torch.Generator().manual_seed(sum(shape))
    image = (3 * torch.randn(shape, generator=generator) + mean).to(dtype)
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    gradient = torch.randn(shape, generator=generator).to(dtype)
    order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    exact = [tensor.double().requires_grad_() for tensor in (image, weight, bias)]
    expected = F.leaky_relu(F.instance_norm(exact[0], weight=exact[1], bias=exact[2], eps=1e-5), slope)
    expected.backward(gradient.double())
    found = [image.contiguous(memory_format=order), weight, bias]
    for tensor in found:
        tensor.requires_grad_()
    output = norm_and_leaky_relu(*found, 1e-5, slope)
    assert output.dtype == dtype and output.is_contiguous(memory_format=order)
    output.backward(gradient)  # contiguous, as a loss may give it
    pairs = [(output, expected), *((one.grad, other.grad) for one, other in zip(found, exact))]
    return [float((one.double() - other).norm() / other.norm()) for one, other in pairs]

cases = json.loads(sys.argv[1])
print(json.dumps([errors(shape, getattr(torch, dtype), slope, mean) for shape, dtype, slope, mean in cases]))
"""

SHAPES = [(2, 32, 9, 17, 13), (1, 3, 4, 5, 6), (2, 320, 4, 4, 4), (3, 64, 40, 33), (2, 5, 1, 1, 3), (1, 70, 16, 8, 8)]


def errors(cases: list[Any]) -> list[list[float]]:
    """Relative errors of output and gradients of features, weight and bias, of every case."""
    command = [sys.executable, "-W", "ignore", "-c", CHECK, json.dumps(cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[list[float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("dtype", "most"), [("float32", 5e-6), ("bfloat16", 6e-3), ("float16", 1e-3)])
def test_output_and_gradients_are_those_of_double_precision(dtype: str, most: float) -> None:
    cases = [(shape, dtype, slope, 7.0) for shape in SHAPES for slope in (0.01, 1.0)]
    for case, found in zip(cases, errors(cases), strict=True):
        assert max(found) < most, (case, found)


def test_the_variance_is_exact_where_the_mean_is_far_from_zero() -> None:
    ((output, *_),) = errors([((2, 4, 40, 40), "float32", 0.01, 1000.0)])
    assert output < 2e-4  # the features themselves are rounded to 6e-5; sums of squares would lose all digits


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton works here")
def test_where_triton_cannot_build_kernels_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    channels_last_ops.triton_works.cache_clear()
    for _ in range(2):
        assert not channels_last_ops.triton_works(torch.device("cpu"))  # which it has no driver for
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "install a C compiler" in caplog.text


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from autoseg.networks import fused_loss, fused_norm

KERNELS = {
    fused_norm: ("_sum_forward", "_combine", "_apply_forward", "_sum_backward", "_apply_backward"),
    fused_loss: ("_sum", "_score", "_differentiate"),
}
FEATURES = ("features", "logits", "gradient", "output")
SUMS = ("partial", "statistics", "sums", "weight", "bias", "loss", "slopes", "upstream")
FIXED = {"STEPS": 4, "HEIGHT": 256, "WIDTH": 32, "MOST": 256, "SAMPLES": 2, "BATCH_DICE": False, "IS_REGIONS": False}

KINDS = {**dict.fromkeys(FEATURES, "*bf16"), **dict.fromkeys(SUMS, "*fp32"), **dict.fromkeys(FIXED, "constexpr")}
KINDS |= {"epsilon": "fp32", "slope": "fp32", "smooth": "fp32", "labels": "*i16", "table": "*i8"}

for module, kernels in KERNELS.items():
    for kernel in kernels:
        names = getattr(module, kernel).arg_names
        fixed = {(place,): FIXED[name] for place, name in enumerate(names) if name in FIXED}
        source = ASTSource(getattr(module, kernel), {name: KINDS.get(name, "i32") for name in names}, fixed)
        print(kernel, len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


def test_every_kernel_compiles_for_a_gpu(tmp_path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    sizes = dict(line.split() for line in done.stdout.splitlines())
    assert len(sizes) == 8
    assert all(int(size) > 1000 for size in sizes.values())
