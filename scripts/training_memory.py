"""Peak memory of training steps beside the plan's estimate: each configuration in a process of its own.

    python scripts/training_memory.py WORK...                      # work folders with a plan; batch 2, on the CPU
    python scripts/training_memory.py WORK --batch 0 --device cuda # the planned batch, on a GPU
    python scripts/training_memory.py WORK --precision bf16 --only 2d

The peak is that above the process with torch loaded and no network yet: weights, gradients, optimizer, feature maps,
loss. On a GPU it is what torch's allocator had given out. Two estimates stand beside it, for the same batch: nnU-Net's
measure, which patches are chosen by, and `Plan.step_gib`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from autoseg.core.machine import BYTES_PER_GIB, peak_memory_bytes
from autoseg.core.records import load
from autoseg.planning.plan import Plan, edges

STEPS = 2
"""The second one has the optimizer's state."""


def measured_bytes(plan: Plan, name: str, batch: int, device: str, precision: str) -> int:
    """Peak bytes of two training steps of a configuration with random images, in this process."""
    import torch

    from autoseg.training.losses import make_objective
    from autoseg.training.recipe import load_recipe
    from autoseg.training.step import Compute, start_state, train_step

    configuration, recipe = plan.configurations[name], load_recipe("default")
    compute = Compute(torch.device(device), precision)
    objective = make_objective(recipe.loss, plan.labels, configuration.batch_dice)
    labels = torch.randint(0, plan.labels.head_count, (batch, *configuration.patch_size)).to(compute.device)
    image = compute.place_image(torch.randn(batch, len(plan.channels), *configuration.patch_size))
    before = peak_memory_bytes() or 0
    state = start_state(plan.build_network(name), recipe, compute, configuration.dimensions)
    for _ in range(STEPS):
        train_step(state, image, labels, objective, recipe, compute)
    if compute.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return (peak_memory_bytes() or 0) - before


def row(work: Path, name: str, batch: int, device: str, precision: str) -> str:
    """One line of the table, measured in another process."""
    plan = load(Plan, work / "plan.json")
    own = plan.configurations[name]
    batch = batch or own.batch_size
    own = replace(own, batch_size=batch)
    estimate = replace(plan, configurations={**plan.configurations, name: own}).step_gib(name, precision)
    command = [sys.executable, __file__, str(work), "--only", name, "--batch", str(batch)]
    command += ["--device", device, "--precision", precision, "--job"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = int(done.stdout.splitlines()[-1]) / BYTES_PER_GIB
    network = f"{own.network.description}, {edges(own.patch_size)}"
    what = f"{plan.dataset} {name}, {plan.preset} | {network} | {batch} | {precision}"
    return f"| {what} | {own.memory_gib:.2f} | {estimate:.2f} | {measured:.2f} | {estimate / measured:.2f} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="+", help="work folders with a plan.json")
    parser.add_argument("--only", default="", help="one configuration; by default all")
    parser.add_argument("--batch", type=int, default=2, help="patches per step; 0 for the planned ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        plan = load(Plan, asked.work[0] / "plan.json")
        print(measured_bytes(plan, asked.only, asked.batch, asked.device, asked.precision))
        return
    columns = ("nnU-Net's measure, GiB", "estimate, GiB", "measured, GiB", "estimate / measured")
    print(f"| configuration | network and patch | batch | format | {' | '.join(columns)} |")
    print("|---" * 8 + "|")
    for work in asked.work:
        for name in load(Plan, work / "plan.json").configurations:
            if asked.only in ("", name):
                print(row(work, name, asked.batch, asked.device, asked.precision), flush=True)


if __name__ == "__main__":
    main()
