"""The line that every benchmark prints: processor and what it computes, GPU, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from autoseg.core.machine import BYTES_PER_GIB, available_cores, processor
from autoseg.launch.precision import cpu_features

CAPABILITIES = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")
"""Instruction sets that decide how fast a CPU computes a network, the best first."""


def machine_line(*packages: str) -> str:
    """Processor, cores, memory, the best of its instruction sets, GPUs, and the versions of Python and of packages."""
    features = cpu_features()
    capability = next((name for name in CAPABILITIES if name in features), "no AVX2").upper().replace("_", "-")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / BYTES_PER_GIB:.0f} GiB"
    parts = [f"{processor()} with {capability}", f"{available_cores()} cores", memory, ", ".join(gpus) or "no GPU"]
    versions = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    if gpus:
        versions.append(f"cuDNN {torch.backends.cudnn.version()}")
    return f"{', '.join(parts)}; {', '.join(versions)}"


def commit() -> str:
    """The commit of this checkout, with a mark if files were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return torch.__version__ if package == "torch" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
