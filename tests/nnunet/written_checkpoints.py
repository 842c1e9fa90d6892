"""Checkpoints as nnU-Net's trainer writes them, and malicious ones, which try to make a file appear."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def nnunet_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Our parameters under all the names that nnU-Net's modules give them."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict().items():
        state[name] = tensor
        if name.startswith("encoder."):
            state[f"decoder.{name}"] = tensor
        for brick, index in ((".conv.", "0"), (".norm.", "1")):
            if brick in name:
                state[name.replace(brick, f".all_modules.{index}.")] = tensor
    return state


def content(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Everything that nnU-Net keeps in a checkpoint."""
    import numpy as np

    return {
        "network_weights": state,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-2, "betas": (0.9, 0.99)}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "dice": [np.zeros(2)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    } | changes


class Executes:
    """Calls a function with arguments when it is unpickled, as a malicious file does."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Builds:
    """Sets attributes of a fresh object when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path, ("x",), {"touch": str(self.canary)}


def malicious(canary: Path) -> dict[str, Any]:
    """Objects that would create the file `canary` if anything executed them."""
    import builtins
    import functools
    import importlib
    import os
    import runpy
    import shutil
    import subprocess

    line = f"open({str(canary)!r}, 'w').close()"
    script = canary.with_name("script.py")
    script.write_text(line)
    return {
        "os.system": Executes(os.system, f"touch {canary}"),
        "subprocess.check_call": Executes(subprocess.check_call, ["touch", str(canary)]),
        "builtins.eval": Executes(builtins.eval, line),
        "builtins.exec": Executes(builtins.exec, line),
        "builtins.open": Executes(builtins.open, str(canary), "w"),
        "builtins.getattr": Executes(getattr, Executes(importlib.import_module, "os"), "system"),
        "__import__": Executes(__import__, "os"),
        "functools.partial": Executes(functools.partial, os.system, f"touch {canary}"),
        "runpy.run_path": Executes(runpy.run_path, str(script)),
        "shutil.copy": Executes(shutil.copy, str(script), str(canary)),
        "Path.touch": Executes(Path.touch, canary),
        "torch.load": Executes(torch.load, str(canary)),
        "torch.hub": Executes(torch.hub.load, str(canary.parent), "x", "local"),
        "torch.save": Executes(torch.save, torch.zeros(1), str(canary)),
        "torch.compile": Executes(torch.compile, os.system),
        "torch.Tensor.tofile": Executes(torch.from_file, str(canary), True, 4),
        "pickle.loads": Executes(pickle.loads, pickle.dumps(Executes(os.system, f"touch {canary}"))),
        "state of an object": Builds(canary),
    }


def write_raw_pickle(path: Path, code: bytes) -> Path:
    """A checkpoint whose pickle is the given bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path
