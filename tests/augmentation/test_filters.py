"""Blur and low resolution, as matrices along the axes, against independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from torch.nn import functional as F

from autoseg.augmentation.along_axes import coarsening_matrix, gaussian_matrix, multiply_along_axes, reflected
from autoseg.augmentation.transforms.blur import Blur, blur_radius
from autoseg.augmentation.transforms.low_resolution import LowResolution
from tests.augmentation.patches import SPECS, applied


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), sigma=st.floats(0.5, 1.0))
def test_the_blur_equals_a_correlation_mirrored_at_the_border(n: int, sigma: float) -> None:
    line = torch.randn(n, dtype=torch.float64)
    radius = blur_radius(sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    expected = correlate1d(line.numpy(), weights / weights.sum(), mode="mirror")
    mine = gaussian_matrix(n, sigma, radius).double() @ line
    np.testing.assert_allclose(mine.numpy(), expected, atol=1e-6)


def test_the_kernel_is_as_long_as_the_reference_s() -> None:
    assert [blur_radius(sigma) for sigma in (0.5, 0.6, 0.75, 0.8, 1.0)] == [1, 2, 2, 2, 3]


@pytest.mark.parametrize("n", range(1, 41))
def test_low_resolution_equals_pytorch_s_interpolation(n: int) -> None:
    for coarse in range(max(1, n // 2), n + 1):
        nearest = (2 * torch.arange(coarse) + 1) * n // (2 * coarse)
        is_tie = (2 * torch.arange(coarse) + 1) * n % (2 * coarse) == 0
        theirs = F.interpolate(torch.arange(float(n))[None, None], coarse, mode="nearest-exact")[0, 0]
        assert (nearest == theirs)[~is_tie].all()  # at a tie, PyTorch's single precision may take the voxel before
        line = torch.randn(1, 1, n)
        expected = F.interpolate(line[..., nearest], n, mode="linear")
        torch.testing.assert_close(coarsening_matrix(n, coarse) @ line[0, 0], expected[0, 0], atol=1e-4, rtol=0)


@given(st.integers(-50, 50), st.integers(1, 8))
def test_reflection_stays_inside_and_keeps_what_is_inside(index: int, n: int) -> None:
    assert 0 <= reflected(index, n) < n
    assert reflected(index, n) == reflected(-index, n)
    if 0 <= index < n:
        assert reflected(index, n) == index


def test_matrices_act_along_their_own_axis() -> None:
    volume = torch.randn(3, 4, 5, dtype=torch.float64)
    matrices = [torch.randn(n, n, dtype=torch.float64) for n in volume.shape]
    expected = torch.einsum("ai,bj,ck,ijk->abc", *matrices, volume)
    torch.testing.assert_close(multiply_along_axes(volume, matrices), expected)
    skipped = torch.einsum("bj,ijk->ibk", matrices[1], volume)
    torch.testing.assert_close(multiply_along_axes(volume, [None, matrices[1], None]), skipped)


@pytest.mark.parametrize("matrix", [gaussian_matrix(9, 0.7, 2), coarsening_matrix(9, 5)])
def test_filters_keep_constants(matrix: torch.Tensor) -> None:
    torch.testing.assert_close(matrix.sum(1), torch.ones(9))
    assert bool((matrix >= 0).all())


def test_only_the_channels_drawn_are_filtered() -> None:
    image = torch.randn(2, 8, 9)
    blurred = applied(Blur(), image, (None, (0.7, 0.9)), SPECS["2d"])
    coarse = applied(LowResolution(), image, (0.6, None), SPECS["2d"])
    assert torch.equal(blurred[0], image[0])
    assert blurred[1].std() < image[1].std()
    assert torch.equal(coarse[1], image[1])
    assert not torch.equal(coarse[0], image[0])


def test_low_resolution_in_dummy_2d_keeps_slices_apart() -> None:
    image = torch.randn(1, 4, 8, 8)
    both = applied(LowResolution(), image, (0.5,), SPECS["dummy 2d"])
    alone = applied(LowResolution(), image[:, 1:2], (0.5,), SPECS["dummy 2d"])
    torch.testing.assert_close(both[:, 1:2], alone)


def test_filters_are_drawn_as_often_as_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    blurs = [Blur().draw(generator, SPECS["3d"], 2) for _ in range(4000)]
    drawn = [channel for blur in blurs if blur is not None for channel in blur]
    assert len(drawn) / 8000 == pytest.approx(0.2, abs=0.02)
    sigmas = torch.tensor([channel for channel in drawn if channel is not None])
    assert len(sigmas) / len(drawn) == pytest.approx(0.5, abs=0.04)
    assert sigmas.shape[1] == 3
    assert 0.5 <= float(sigmas.min()) < 0.51
    assert 0.99 < float(sigmas.max()) < 1.0
    coarsenings = [LowResolution().draw(generator, SPECS["3d"], 2) for _ in range(4000)]
    scales = [scale for one in coarsenings if one is not None for scale in one]
    assert len(scales) / 8000 == pytest.approx(0.25, abs=0.02)
    kept = [scale for scale in scales if scale is not None]
    assert len(kept) / len(scales) == pytest.approx(0.5, abs=0.04)
    assert np.mean(kept) == pytest.approx(0.75, abs=0.02)
