"""`autoseg doctor`: what this machine can do, and what stands in the way."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autoseg
from autoseg.core import machine

if TYPE_CHECKING:
    from autoseg.planning.plan import Configuration

DISTRIBUTION = "autosegkit"

REQUIRED = (
    *("torch", "numpy", "scipy", "scikit-image", "pillow", "tifffile", "batchgenerators"),
    *("click", "pyyaml", "pydantic", "safetensors", "filelock", "psutil", "rich", "jinja2", "markupsafe", "matplotlib"),
)
"""Distributions that AutoSeg needs."""

OPTIONAL = {
    "imagecodecs": 'TIFF with LZW, Zstandard and other codecs, or 4 and 12 bits (pip install "autosegkit[tiff]")',
    "nnunetv2": "comparisons with nnU-Net (scripts/benchmark_peer.py)",
}
"""Distributions that add something, and what."""

LITTLE_MEMORY_GIB = 8.0  # assumption: preprocessing and training the reference plans at two cores
LITTLE_DISK_GIB = 10.0  # assumption: a store of a hundred cases


NOT_USED = "nothing: it is not used; another version of torch may do better"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that networks can run on.

    Attributes:
        name: as `--device` takes it.
        description: what it is.
        memory_gib: its own memory; the machine's for the CPU; None if unknown.
        bfloat16: whether it computes bfloat16 by itself, which is what makes training fast.
    """

    name: str
    description: str
    memory_gib: float | None
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing: severity "problem" (AutoSeg does not work) or "note"."""

    severity: str
    what: str
    do: str


@dataclass(frozen=True, slots=True)
class Checkup:
    """The state of this machine, in the order it is printed.

    Attributes:
        autoseg: version of the package that runs.
        location: folder it is imported from.
        python: version.
        system: operating system and architecture.
        cores: that this process may use.
        threads: that torch uses; None without torch.
        memory_gib: of the machine or container.
        available_memory_gib: still free.
        disk_gib: free in the folder asked about.
        devices: best first.
        parts: distribution -> version, or None if it is missing.
        optional: the same for parts that AutoSeg works without.
        numerics: "device, network" -> what a network like it is computed with there, and why.
        findings: what stands in the way, problems first.
    """

    autoseg: str
    location: str
    python: str
    system: str
    cores: int
    threads: int | None
    memory_gib: float | None
    available_memory_gib: float | None
    disk_gib: float
    devices: tuple[Device, ...]
    parts: dict[str, str | None]
    optional: dict[str, str | None]
    numerics: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        """Whether nothing keeps AutoSeg from working."""
        return all(finding.severity != "problem" for finding in self.findings)


def examine(folder: Path) -> Checkup:
    """Looks at this machine; works without torch and psutil, and changes nothing but the cache of checked numerics.

    Args:
        folder: where data would be; its free space is reported.
    """
    parts = {name: _version(name) for name in REQUIRED}
    has_psutil = parts["psutil"] is not None
    memory, available = (machine.memory_bytes(), machine.available_memory_bytes()) if has_psutil else (None, None)
    disk_gib = machine.free_disk_bytes(folder) / machine.BYTES_PER_GIB
    threads, devices = _torch_state(_gib(memory)) if parts["torch"] else (None, ())
    numerics, faults = _numerics([device.name for device in devices]) if all(parts.values()) else ({}, [])
    findings = [*faults, *_missing(parts), *_collisions(), *_shortages(_gib(memory), disk_gib, devices)]
    return Checkup(
        autoseg=autoseg.__version__,
        location=str(Path(autoseg.__file__).parent),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=machine.available_cores(),
        threads=threads,
        memory_gib=_gib(memory),
        available_memory_gib=_gib(available),
        disk_gib=round(disk_gib, 1),
        devices=devices,
        parts=parts,
        optional={name: _version(name) for name in OPTIONAL},
        numerics=numerics,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity != "problem")),
    )


def _gib(count: int | None) -> float | None:
    return None if count is None else round(count / machine.BYTES_PER_GIB, 1)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _torch_state(memory_gib: float | None) -> tuple[int, tuple[Device, ...]]:
    import torch

    from autoseg.launch.precision import native_types

    devices = []
    for index in range(torch.cuda.device_count()):
        facts: Any = torch.cuda.get_device_properties(index)
        total = facts.total_memory / machine.BYTES_PER_GIB
        devices.append(
            Device(f"cuda:{index}", facts.name, round(total, 1), "bf16" in native_types(torch.device("cuda", index)))
        )
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple graphics processor", memory_gib, bfloat16=False))
    devices.append(Device("cpu", machine.processor(), memory_gib, "bf16" in native_types(torch.device("cpu"))))
    return torch.get_num_threads(), tuple(devices)


def _numerics(devices: Sequence[str]) -> tuple[dict[str, str], list[Finding]]:
    """How small networks of common shapes are computed on each device, and what is wrong or slow there."""
    import torch

    from autoseg.core.errors import WrongNumerics
    from autoseg.launch.numerics import check_training

    said, findings = {}, []
    for device in devices:
        for dimensions in (2, 3):
            network = _standard_network(dimensions)
            try:
                found = check_training(network.network.build(1, 3), (network,), 1, torch.device(device))
            except WrongNumerics as error:
                findings.append(Finding("problem", error.what, str(error.do)))
                continue
            except torch.OutOfMemoryError:
                what = f"{device} has too little free memory to be checked"
                findings.append(Finding("note", what, "end the programs that use it, then ask again"))
                continue
            place = f"{device}, {dimensions}D"
            said[place] = found.because
            findings += [Finding("note", f"{place} networks: {remark}", NOT_USED) for remark in found.remarks]
    return said, findings


def _standard_network(dimensions: int) -> Configuration:
    """A small U-Net of the shapes that most plans have."""
    from autoseg.networks.kinds.unet import PlainUNet
    from autoseg.planning.plan import Configuration

    kernels, strides = ((3,) * dimensions,) * 4, ((1,) * dimensions, *((2,) * dimensions,) * 3)
    edge = 32 if dimensions == 3 else 128
    return Configuration(
        name=f"{dimensions}D networks",
        dimensions=dimensions,
        spacing_mm=(1.0,) * dimensions,
        patch_size=(edge,) * dimensions,
        batch_size=2,
        median_shape=(float(edge),) * dimensions,
        normalization=("zscore",),
        use_nonzero_mask=(False,),
        network=PlainUNet(dimensions, (32, 64, 128, 256), kernels, strides, (2,) * 4, (2,) * 3),
        batch_dice=False,
        cascade_from=None,
        estimated_feature_map_elements=1,
        mirror_axes=(),
    )


def _missing(parts: dict[str, str | None]) -> list[Finding]:
    absent = [name for name, version in parts.items() if version is None]
    if not absent:
        return []
    what = f"missing: {', '.join(absent)}"
    return [Finding("problem", what, f"{Path(sys.executable).name} -m pip install {' '.join(absent)}")]


def _collisions() -> list[Finding]:
    """Another project is called `autoseg` on the package index; both would own the folder `autoseg`."""
    found = []
    if version := _version("autoseg"):
        what = f"the distribution 'autoseg' {version} is installed; it is another project with the same import name"
        found.append(Finding("problem", what, f"pip uninstall autoseg; pip install --force-reinstall {DISTRIBUTION}"))
    own = _version(DISTRIBUTION)
    if own is not None and own != autoseg.__version__:
        what = (
            f"'autoseg' is imported from {Path(autoseg.__file__).parent}, not from the installed {DISTRIBUTION} {own}"
        )
        found.append(Finding("note", what, "leave that folder, or unset PYTHONPATH, if this is not intended"))
    return found


def _shortages(memory_gib: float | None, disk_gib: float, devices: tuple[Device, ...]) -> list[Finding]:
    found = []
    if memory_gib is not None and memory_gib < LITTLE_MEMORY_GIB:
        found.append(Finding("note", f"only {memory_gib:.1f} GiB of memory", "use --preset cpu and --jobs 1"))
    if disk_gib < LITTLE_DISK_GIB:
        found.append(
            Finding("note", f"only {disk_gib:.1f} GiB of free disk here", "put the work folder elsewhere: --work DIR")
        )
    if devices and devices[0].name == "cpu":
        slow = "" if devices[0].bfloat16 else ", and it has no bfloat16: expect four times the time of one that has"
        found.append(
            Finding("note", f"no graphics processor: training runs on the CPU{slow}", "plan with --preset cpu")
        )
    return found
