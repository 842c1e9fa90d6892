"""Both sides of the comparison on a GPU get one network, and ratios belong to their round. Running needs nnunetv2."""

import importlib.util
import sys

import pytest

from autoseg.nnunet.networks import network_spec


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("gpu_peer", repository / "scripts" / "gpu_peer.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_plans_describe_the_network_that_autoseg_trains(script):
    for task in (*script.TASKS, *script.SMALL):
        own = task.configuration()
        planned = script.peer_plans(own)["configurations"][own.name]
        assert network_spec(planned, own.dimensions, "plans") == own.network
        assert planned["patch_size"] == list(own.patch_size)
        assert planned["batch_size"] == own.batch_size


def test_sides_take_turns_and_ratios_are_per_round(script):
    calls = []
    times = script.in_turns(
        [lambda: calls.append("peer"), lambda: calls.append("own")], script.torch.device("cpu"), 1, 2
    )
    assert calls == ["peer", "own"] * 3
    assert [len(column) for column in times] == [2, 2]
    row = script.row("step", "bf16 contiguous", [0.010, 0.020, 0.090], [0.005, 0.005, 0.010])
    assert (row["ratio"], row["low"], row["high"]) == (4.0, 2.0, 9.0)
    assert "| step | bf16 contiguous | 20.0 | 5.0 | 4.00 (2.00 to 9.00) |  |" in script.table([row], "a GPU")
