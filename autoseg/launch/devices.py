"""Which device computes, and with how many threads: the one place that looks at the machine for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from autoseg import __version__
from autoseg.core.errors import UsageError
from autoseg.core.machine import physical_cores, processor
from autoseg.launch.precision import cpu_features

_DRIVER = Path("/proc/driver/nvidia/version")
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE")


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device that `--device` means, and a sentence saying why.

    Args:
        name: "auto" (CUDA, else Apple's GPU, else the CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return _best_device()
    kind, _, number = name.partition(":")
    if name in ("cpu", "mps", "cuda") or (kind == "cuda" and number.isdigit()):
        _require(name, kind, int(number or 0))
        return torch.device(name), f"device {name}{_title(kind, int(number or 0))}, as asked for"
    raise UsageError(f"unknown device {name!r}", where="--device", do="choose auto, cpu, cuda, cuda:N or mps")


def choose_devices(name: str = "auto") -> tuple[tuple[torch.device, ...], str]:
    """The devices that work side by side, and a sentence saying why.

    Args:
        name: as `choose_device` takes it, but "auto" means all CUDA GPUs; or several of them with commas.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto" and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        titles = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
        return tuple(torch.device("cuda", number) for number in range(count)), f"{count} CUDA GPUs ({titles})"
    chosen = [choose_device(part.strip()) for part in name.split(",")]
    return tuple(device for device, _ in chosen), "; ".join(because for _, because in chosen)


def use_cores(threads: int | None = None) -> int:
    """Sets torch's threads and returns their number: one per physical core that this process may use.

    `OMP_NUM_THREADS` is obeyed. Bit-equal results need an equal number of threads, so runs record it.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    count = threads or (int(wanted) if wanted.isdigit() and int(wanted) else physical_cores())
    torch.set_num_threads(count)
    return count


def identity(device: torch.device) -> dict[str, str]:
    """All that numerics depend on beside the network: the device, the versions, and settings of the libraries."""
    common = {
        "autoseg": __version__,
        "torch": str(torch.__version__),
        "build": torch.__config__.show(),
        **{name: os.environ[name] for name in _LIMITS if name in os.environ},
    }
    if device.type == "cuda":
        driver = _DRIVER.read_text() if _DRIVER.is_file() else ""
        cudnn = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        return {**common, "gpu": str(torch.cuda.get_device_properties(device)), "driver": driver, "cudnn": cudnn}
    features = " ".join(sorted(cpu_features()))
    return {**common, "processor": processor(), "features": features, "threads": str(torch.get_num_threads())}


def cache_folder() -> Path | None:
    """Where the user's programs keep what can be made again: AUTOSEG_CACHE, or the system's place; None without one."""
    if own := os.environ.get("AUTOSEG_CACHE"):
        return Path(own)
    try:
        usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    except RuntimeError:  # nobody's home
        return None
    return Path(os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME") or usual) / "autoseg"


def _best_device() -> tuple[torch.device, str]:
    if torch.cuda.is_available():
        return torch.device("cuda:0"), f"device cuda:0{_title('cuda', 0)}: a CUDA GPU is there"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "device mps: Apple's GPU is there"
    return torch.device("cpu"), f"device cpu ({physical_cores()} cores): no GPU that torch can use"


def _require(name: str, kind: str, number: int) -> None:
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[kind]
    if number >= count:
        is_built = kind != "cuda" or torch.version.cuda is not None
        reason = f"torch sees {count} of them" if is_built else "this torch was built without CUDA"
        raise UsageError(
            f"there is no device {name}", where="--device", why=reason, do="use --device auto, or see autoseg doctor"
        )


def _title(kind: str, number: int) -> str:
    return f" ({torch.cuda.get_device_name(number)})" if kind == "cuda" else ""
