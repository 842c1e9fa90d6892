"""What each precision and memory format costs with planned networks, in processor seconds, beside what the check chose.

    OMP_NUM_THREADS=1 python scripts/numerics_table.py WORK/plan.json [WORK/plan.json ...] --batch 1

The ways take turns on the whole planned patch; medians of the ratios to single precision, contiguous.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from autoseg.core.machine import processor
from autoseg.core.records import load
from autoseg.launch.devices import use_cores
from autoseg.launch.numerics import check_prediction, check_training
from autoseg.launch.precision import native_types, prediction_pass, training_pass
from autoseg.planning.plan import Configuration, Plan
from autoseg.training.step import Compute

CPU = torch.device("cpu")
PLAIN = Compute(CPU)


def measured(plan: Plan, configuration: Configuration, batch: int, rounds: int) -> list[str]:
    """Rows of the table: verb, what was chosen, and of each way its seconds and how many times as fast it is."""
    network, channels = plan.build_network(configuration.name), plan.input_channels(configuration.name)
    image = torch.randn(batch, channels, *configuration.patch_size)
    precisions = ("fp32", *native_types(CPU))
    ways = [Compute(CPU, kind, layout) for kind in precisions for layout in ("contiguous", "channels_last")]
    rows = []
    for verb, one_pass in (("train", training_pass), ("predict", prediction_pass)):
        found = (
            check_training(network, (configuration,), channels, CPU)
            if verb == "train"
            else check_prediction(network, configuration, channels, CPU, precisions[-1])
        )
        seconds: dict[Compute, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way in ways if number % 2 else ways[::-1]:
                placed = way.place_network(network, configuration.dimensions)
                begin = time.process_time()
                one_pass(placed, image, way)
                seconds[way].append(time.process_time() - begin)
        ratios = {
            way: statistics.median(a / b for a, b in zip(seconds[PLAIN][1:], own[1:], strict=True))
            for way, own in seconds.items()
        }
        cells = [f"{statistics.median(own[1:]):.2f} s, {ratios[way]:.2f}" for way, own in seconds.items()]
        chosen = found.compute(CPU)
        rows.append(f"{verb} | {chosen.precision} {chosen.memory_format} | {' | '.join(cells)}")
    return rows


def main() -> None:
    """Prints one row per plan, configuration and verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--configuration", action="append", default=[])
    options = parser.parse_args()
    print(
        f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {native_types(CPU)}, {use_cores()} threads", end=""
    )
    print(f", torch {torch.__version__}; columns: fp32 contiguous, channels last, then half precision likewise")
    for path in options.plans:
        plan = load(Plan, path)
        for name in options.configuration or plan.configurations:
            for row in measured(plan, plan.configurations[name], options.batch, options.rounds):
                own = plan.configurations[name]
                print(f"{plan.dataset} {plan.preset} {name} {own.patch_size} | {row}")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
