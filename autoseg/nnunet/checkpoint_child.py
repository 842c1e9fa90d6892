"""The process that opens an nnU-Net checkpoint. It runs alone, gives up what could do harm, and hands back tensors.

A checkpoint is a pickle, and pickles are programs. This process unpickles tensors and plain values only
(`weights_only`), lets no other name in the file reach a Python object, and before it looks at the file it gives up
the network, the start of programs and every change to files but the ones it is asked for; an attempt ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

ENDED_BY_GUARD = 66
"""Exit code after an attempt at something forbidden."""

EXTRA_MEMORY_BYTES = 2 << 30
"""Memory beyond what is in use before reading, and three times the file. Assumption: what the libraries need."""

_COPIES = 3
"""Of a file's bytes that may be in memory at once: as read, as converted, as written."""

_NETWORK_NAMESPACE, _USER_NAMESPACE = 0x40000000, 0x10000000

_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "shutil.",
    "tempfile.",
    "pty.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "webbrowser.",
    "signal.",
    "pickle.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.chflags",
    "os.putenv",
    "os.unsetenv",
    "os.setxattr",
)
"""Beginnings of the audit events of what reading tensors never needs. Source: Python, "Audit events table"."""

_OPAQUE_NAMES = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "collections.defaultdict",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)
"""What nnU-Net's own checkpoints hold besides tensors and plain values; nothing of it is needed."""

_DUPLICATES = ("decoder.encoder.", ".all_modules.")
"""Second names that nnU-Net's modules give to the same parameters."""

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of parallel training and of compiled networks."""


class Opaque:
    """Stands in for a name of `_OPAQUE_NAMES`: takes any arguments, does nothing, holds nothing."""

    def __new__(cls, *_: Any) -> Opaque:
        """An empty object."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Forgets the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forgets the entry."""


def serve(tasks: list[tuple[str, str]]) -> None:
    """Reads each checkpoint and writes its weights; prints one line of JSON with what else is needed of each.

    Args:
        tasks: (checkpoint, safetensors file to write) each.
    """
    leave_network()
    import safetensors.torch
    import torch

    torch.set_num_threads(1)
    safetensors.torch.save({"warm": torch.zeros(1)})
    limit_memory(max(Path(checkpoint).stat().st_size for checkpoint, _ in tasks))
    sys.addaudithook(guard)
    for checkpoint, weights in tasks:
        sys.stdout.write(json.dumps(convert(checkpoint, weights)) + "\n")
        sys.stdout.flush()


def convert(checkpoint: str, weights: str) -> dict[str, Any]:
    """Writes the weights of a checkpoint as safetensors.

    Returns:
        Trainer, configuration and mirror axes, as plain values.
    """
    import safetensors.torch

    content = load_content(checkpoint)
    safetensors.torch.save_file(network_tensors(content.get("network_weights")), weights)
    return described(content)


def network_tensors(state: Any) -> dict[str, Any]:
    """The network's parameters as float32, each once, under the names without wrappers.

    Args:
        state: the checkpoint's `network_weights`.

    Source: nnU-Net v2 training/nnUNetTrainer/nnUNetTrainer.py (`save_checkpoint`, `load_checkpoint`).
    """
    import torch

    if not isinstance(state, dict) or not all(isinstance(entry, torch.Tensor) for entry in state.values()):
        _end("it holds no network_weights")
    unwrapped = {_unwrapped(str(name)): tensor for name, tensor in state.items()}
    for name, tensor in unwrapped.items():
        # an expanded view of one stored value would fill the memory when it is copied
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            _end(f"{name} claims more values than the file holds")
    return {name: _copied(name, tensor) for name, tensor in unwrapped.items() if not _is_duplicate(name)}


def _copied(name: str, tensor: Any) -> Any:
    """The tensor as float32 in memory of its own."""
    import torch

    copied = tensor.to(torch.float32).contiguous().clone()
    if not bool(torch.isfinite(copied).all()):
        _end(f"{name} holds infinite or undefined weights")
    return copied


def _is_duplicate(name: str) -> bool:
    return any(duplicate in name for duplicate in _DUPLICATES)


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def load_content(path: str) -> dict[str, Any]:
    """The table in a checkpoint: tensors and plain values; everything else in it stands for nothing."""
    import torch

    _check_archive(path)
    stand_ins: list[Any] = [(Opaque, name) for name in _OPAQUE_NAMES]
    with torch.serialization.safe_globals(stand_ins):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict):
        _end("it holds no table of weights and settings")
    return content


def _check_archive(path: str) -> None:
    """A checkpoint is an uncompressed zip file whose members are whole."""
    if not zipfile.is_zipfile(path):
        _end("it is no PyTorch checkpoint (or one older than PyTorch 1.6)")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or size > Path(path).stat().st_size:
            _end("its members are compressed, as no PyTorch checkpoint is")
        damaged = archive.testzip()
    if damaged is not None:
        _end("it is damaged: a checksum does not match")


def described(content: dict[str, Any]) -> dict[str, Any]:
    """Trainer, configuration and mirror axes, as plain values of the expected types."""
    arguments = content.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, dict) else None
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, list | tuple) or not all(type(axis) is int and 0 <= axis < 3 for axis in axes):
        _end("inference_allowed_mirroring_axes are no axes")
    return {
        "trainer": str(content.get("trainer_name", "")),
        "configuration": configuration if isinstance(configuration, str) else "",
        "mirror_axes": sorted(set(axes)),
    }


def _end(reason: str) -> NoReturn:
    sys.exit(reason)


def leave_network() -> None:
    """Moves into a network namespace without any device, where the system allows it; one of several precautions."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    wanted = _NETWORK_NAMESPACE if os.geteuid() == 0 else _NETWORK_NAMESPACE | _USER_NAMESPACE
    ctypes.CDLL(None).unshare(wanted)


def limit_memory(file_bytes: int) -> None:
    """Lets the process have a few times the memory of the largest checkpoint, and write files of that size at most."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _COPIES * file_bytes + EXTRA_MEMORY_BYTES
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    except (OSError, ValueError):  # a stricter limit is in force already
        return


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Ends the process at the first event that reading tensors never needs; it cannot be removed or caught."""
    is_write = event == "open" and (_is_writing_mode(arguments[1]) or _is_writing_flags(arguments[2]))
    if is_write or event.startswith(_FORBIDDEN):
        os.write(2, f"forbidden: {event}\n".encode())
        os._exit(ENDED_BY_GUARD)


def _is_writing_mode(mode: object) -> bool:
    return isinstance(mode, str) and any(letter in mode for letter in "wax+")


def _is_writing_flags(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
