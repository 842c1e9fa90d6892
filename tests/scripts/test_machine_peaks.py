"""The peaks of the machine, and the operations of networks that are counted beside them."""

import importlib.util
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("machine_peaks", repository / "scripts" / "machine_peaks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_operations_are_those_of_the_convolutions(script):
    # two stages of 4 and 8 channels on 8 x 8: the counted convolutions, each multiplication and addition one operation
    network = script.Network("tiny", (8, 8), (4, 8), batch_size=1, heads=3)
    fine, coarse = 64, 16
    encoder = fine * 9 * (1 * 4 + 4 * 4) + coarse * 9 * (4 * 8 + 8 * 8)
    decoder = coarse * 4 * (8 * 4) + fine * 9 * (8 * 4 + 4 * 4) + fine * 4 * 3
    assert script.count(network)[1] == 2 * (encoder + decoder)


def test_the_planned_hippocampus_network_costs_what_the_documentation_says(script, repository):
    step, *_ = script.count(script.NETWORKS[0])
    assert f"{step / 1e9:.0f} GFLOP" in (repository / "docs" / "performance.md").read_text()


def test_rates_are_positive_and_reported(script):
    threads = torch.get_num_threads()
    lines = list(script.report(is_small=True))
    assert torch.get_num_threads() == threads
    assert sum(line.startswith("| ") for line in lines) == 7 + 2  # the rates and the first network
