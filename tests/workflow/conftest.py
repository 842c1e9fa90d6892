from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Training with one thread, in this process and in those that it starts; bit-exact and quick for tiny networks."""
    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before[0])
    if before[1] is None:
        del os.environ["OMP_NUM_THREADS"]
