"""What every test may rely on: reference data inside the repository, real data beside it, and few threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True)  # a change is judged by the same examples every time
if os.environ.get("CI"):
    settings.load_profile("ci")

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch, numpy or SimpleITK start their thread pools
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ.setdefault(variable, "1")

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does it: several workers share the cores

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_vectors() -> Path:
    """Folder of reference inputs and outputs; its README says how they were made."""
    return REPOSITORY / "tests" / "data" / "golden" / "vectors"


@pytest.fixture(scope="session")
def golden_generated() -> Path:
    """Folder of random fingerprints with the plans that nnU-Net 2.8.1 makes of them."""
    return REPOSITORY / "tests" / "data" / "golden" / "generated"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and larger reference files beside the repository; the test is skipped where they are absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder `shared` beside the repository (real data), which is not here")
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Training with one thread, in this process and in those that it starts; bit-exact and quick for tiny networks."""
    import torch

    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before[0])
    if before[1] is None:
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads that compute, whatever the machine has."""
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The processes of a test session share what they find out about the machine, and nothing with other sessions."""
    folder = tmp_path_factory.getbasetemp()
    os.environ["AUTOSEG_CACHE"] = str(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder / "cache")
