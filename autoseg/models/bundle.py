"""Bundles: a model in one safetensors file, whose metadata is the model's record as JSON; no code, nothing to run.

The tensors are named `<configuration>/<fold>/<parameter>`. The safetensors library refuses files that are cut off, that
overlap or that have bytes behind them. The record holds a SHA-256 over the tensors of each fold, and the key that it is
filed under holds the SHA-256 of the record, so that a changed byte is noticed wherever it is. Hashes do not prove who
made a file, so everything in the record is checked against what a model can be before anything is built of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from autoseg.core.errors import (
    AutoSegError,
    IntegrityRefusal,
    MissingInput,
    UsageError,
    error_for,
    is_machine_fault,
)
from autoseg.core.files import remove_leftovers, sha256_of_file, sync, temporary_beside
from autoseg.core.limits import printable
from autoseg.core.records import from_json, parse_json, record, to_json
from autoseg.models.record import Member, ModelFiles, ModelRecord, plan_faults
from autoseg.networks.weights import Shapes, shape_fault

if TYPE_CHECKING:
    from torch import Tensor

BUNDLE_ENDING = ".autoseg"
LARGEST_HEADER_BYTES = 32 << 20
"""Of names, shapes and record; ensembles of 15 large networks need a fiftieth of it."""

_KEY = "autoseg sha256:"
_ZIP = b"PK\3\4"
_DTYPE = "F32"
_SHA256 = r"^[0-9a-f]{64}$"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
_LONGEST_NAME = 100
_LONGEST_TEXT = 20_000


@record
class BundleRecord:
    """The JSON in the metadata of a bundle.

    Attributes:
        model: what the weights are of.
        sha256: over the tensors of each fold, by `<configuration>/<fold>`.
        version: of this record; bundles of version 1 were zip archives.
    """

    model: ModelRecord
    sha256: dict[str, Annotated[str, Field(pattern=_SHA256)]]
    version: Literal[2] = 2


def find_bundle_model(path: Path, configuration: str | None = None, folds: Sequence[int] = ()) -> ModelFiles:
    """The model in a bundle; its record is verified here, the weights of a fold and their shapes when they are read.

    Needs no torch, so that a prediction that is done already says so at once.

    Args:
        path: the file.
        configuration: this one alone instead of all that belong together, without postprocessing.
        folds: of every configuration; by default all.

    Raises:
        MissingInput: there is no such file.
        IntegrityRefusal: it is not a bundle, is damaged, or holds anything that a bundle does not hold.
        UsageError: a configuration or fold is not in it.
    """
    with _opened(path, "np") as file:
        text, digest = _record_text(path, file.metadata() or {})
        bundle = _parsed(text, str(path))
        fault = _layout_fault(file, bundle)
    if fault is not None:
        raise _refusal(path, fault)
    report = report_beside(path)
    return ModelFiles(
        record=_part(bundle.model, configuration, tuple(folds)),
        read=partial(_read_fold, path, bundle),
        report=report if report.is_file() else None,
        content=digest[:16],
    )


def write_bundle(path: Path, model: ModelFiles, *, overwrite: bool = False) -> None:
    """Writes a model into one file, at once; equal models give equal bytes. All its weights are in memory meanwhile.

    Raises:
        UsageError: another file has this name already, and may not be replaced; an equal one is as good.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    for name, member in model.record.by_configuration.items():
        for fold in member.folds:
            own = {key: value.detach().to(torch.float32).contiguous() for key, value in model.read(name, fold).items()}
            hashes[f"{name}/{fold}"] = _tensors_hash(own)
            tensors |= {f"{name}/{fold}/{key}": value for key, value in own.items()}
    text = to_json(BundleRecord(model.record, hashes))
    _parsed(text, str(path))  # what cannot be read again is not written
    with _published(path, overwrite) as temporary:
        try:
            save_file(tensors, temporary, metadata={_KEY + _text_hash(text): text})
        except SafetensorError as error:  # of a full disk it says the number, but no name
            meant = error_for(error)
            meant.where = str(path)
            raise meant from error
        find_bundle_model(temporary).verify()


def write_report(path: Path, report: Path, *, overwrite: bool = False) -> None:
    """Copies a report beside a bundle; errors as for `write_bundle`."""
    with _published(report_beside(path), overwrite) as temporary:
        temporary.write_bytes(report.read_bytes())


def bundle_path(folder: Path, name: str) -> Path:
    """The file in a folder that a model of this name is written to; made of plain letters only."""
    plain = _UNSAFE.sub("-", name).strip("-.")
    short = plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 17]}-{plain[-16:]}"
    return folder / f"{short or 'model'}{BUNDLE_ENDING}"


def report_beside(path: Path) -> Path:
    """Where the report of a bundle lies."""
    return path.with_suffix(".report.html")


@contextmanager
def _opened(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """The safetensors file, once its beginning was found to be sound; "pt" is torch, which is imported for it.

    Raises:
        MissingInput: there is no such file.
        IntegrityRefusal: the safetensors library cannot read it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as stream:
            begin = stream.read(8)
        if begin.startswith(_ZIP):
            raise IntegrityRefusal(
                f"{path.name} is a zip archive; bundles are written in another format now",
                where=str(path),
                why="an earlier version of AutoSeg wrote it, or it is no bundle at all",
                do="run autoseg model export DATASET again; if only this file is left, predict with the AutoSeg that "
                "wrote it",
            )
        if int.from_bytes(begin, "little") > LARGEST_HEADER_BYTES:
            raise _refusal(path, "its header is longer than that of any model")
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise MissingInput(f"there is no file {path}", where=str(path)) from error
    except (SafetensorError, OSError, ValueError) as error:
        if is_machine_fault(error):
            raise error_for(error) from error
        raise _refusal(path, "it cannot be read as safetensors") from error


def _record_text(path: Path, metadata: Mapping[str, str]) -> tuple[str, str]:
    """The record's JSON and its hash.

    Raises:
        IntegrityRefusal: it is missing, damaged, or not alone.
    """
    text = next(iter(metadata.values()), "")
    digest = _text_hash(text)
    if set(metadata) != {_KEY + digest}:
        raise _refusal(path, "it has no record, or one that does not match its hash")
    return text, digest


def _parsed(text: str, where: str) -> BundleRecord:
    """The record in a JSON text, if nothing in it could do harm or be misunderstood.

    Raises:
        IntegrityRefusal: with what is wrong.
    """
    try:
        bundle = from_json(BundleRecord, text, where)
        to_json(bundle)  # refuses numbers that are infinite or undefined
        fault = next(_faults(bundle, parse_json(text)), None)
    except (AutoSegError, ValueError, RecursionError) as error:
        fault = error.what if isinstance(error, AutoSegError) else str(error)
    if fault is not None:
        raise IntegrityRefusal(
            f"the record of the model cannot be used: {printable(fault)}",
            where=where,
            why="it was changed, or made by a newer AutoSeg",
            do="get the model again, or update AutoSeg",
        )
    return bundle


def _faults(bundle: BundleRecord, written: object) -> Iterator[str]:
    yield from _text_faults(written)
    model = bundle.model
    if set(bundle.sha256) != set(_fold_titles(model)):
        yield "its hashes are of other folds than it has"
    for name, member in model.by_configuration.items():
        yield from (f"{name}: {fault}" for fault in plan_faults(member.plan))


def _text_faults(data: object) -> Iterator[str]:
    """Texts that are too long, or that would do something invisible to a terminal."""
    if isinstance(data, str) and (len(data) > _LONGEST_TEXT or printable(data, kept="\n") != data):
        yield f"the text {data[:40]!r} is too long or holds control characters"
    elif isinstance(data, dict):
        yield from _text_faults([*data, *data.values()])
    elif isinstance(data, list):
        for value in data:
            yield from _text_faults(value)


def _fold_titles(model: ModelRecord) -> list[str]:
    return [f"{name}/{fold}" for name, member in model.by_configuration.items() for fold in member.folds]


def _layout_fault(file: Any, bundle: BundleRecord) -> str | None:
    """What is wrong with the folds and types of the tensors, which are not read for it."""
    names = list(file.keys())
    found, expected = ({name.rpartition("/")[0] for name in names}, set(_fold_titles(bundle.model)))
    if found != expected:
        odd = min(found ^ expected)
        return f"its weights are of other folds than its record ({printable(odd)[:300]})"
    return None if {file.get_slice(name).get_dtype() for name in names} == {_DTYPE} else "weights of another type"


def _read_fold(path: Path, bundle: BundleRecord, configuration: str, fold: int) -> dict[str, Tensor]:
    """The weights of a fold.

    Raises:
        IntegrityRefusal: they are not those of its network, do not match their hash, or are not finite.
    """
    import torch

    title = f"{configuration}/{fold}"
    expected = bundle.model.by_configuration[configuration].plan.parameter_shapes(configuration)
    tensors = _tensors_of(path, title, expected)
    if _tensors_hash(tensors) != bundle.sha256[title]:
        raise _refusal(path, f"the weights of {configuration}, fold {fold}, do not match their hash")
    # the least and the largest value are undefined where any is, and take a thirtieth of the time of a look at each
    extremes = {name: torch.stack(tensor.aminmax()) for name, tensor in tensors.items()}
    wild = next((name for name, own in extremes.items() if not bool(torch.isfinite(own).all())), None)
    if wild is not None:
        raise _refusal(path, f"{wild} of {configuration}, fold {fold}, holds infinite or undefined weights")
    return tensors


def _tensors_of(path: Path, title: str, expected: Shapes) -> dict[str, Tensor]:
    """The tensors of a fold by the name of their parameter, if they are those expected; shapes are looked at first."""
    with _opened(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{title}/")]  # noqa: SIM118 (not a dict)
        names = {key.removeprefix(f"{title}/"): key for key in keys}
        fault = shape_fault({name: tuple(file.get_slice(key).get_shape()) for name, key in names.items()}, expected)
        if fault is not None:
            raise _refusal(path, f"the weights do not belong to its networks: {printable(fault)[:300]}")
        # copied, because the library maps the file into memory: what was hashed must stay, even if the file changes
        return {name: file.get_tensor(key).clone() for name, key in names.items()}


def _part(model: ModelRecord, configuration: str | None, folds: tuple[int, ...]) -> ModelRecord:
    """The model with these folds only, and with one configuration only unless that is None."""
    if configuration is None and not folds:
        return model
    found = model.by_configuration
    members, stages, steps = model.members, model.stages, model.postprocessing
    if configuration is not None:
        if configuration not in found:
            raise UsageError(f"{configuration} is not in the bundle", do=f"choose from {', '.join(found)}")
        first = found[configuration].configuration.cascade_from
        members, steps = (replace(found[configuration], share=1.0),), ()
        stages = () if first is None else (found[first],)
    return replace(
        model,
        name=f"{model.name}/{configuration or ''}/{list(folds)}",
        members=tuple(_of_folds(member, folds) for member in members),
        stages=tuple(_of_folds(stage, folds) for stage in stages),
        postprocessing=steps,
        scores=None,
    )


def _of_folds(member: Member, folds: tuple[int, ...]) -> Member:
    missing = [fold for fold in folds if fold not in member.folds]
    if missing:
        there = ", ".join(map(str, member.folds))
        name = member.configuration.name
        raise UsageError(f"fold {missing[0]} of {name} is not in the bundle", do=f"choose from {there}")
    return replace(member, folds=tuple(sorted(folds or member.folds)))


@contextmanager
def _published(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file to write, which gets the name `target` in the end unless that is taken.

    Raises:
        UsageError: another file is there, and may not be replaced; one of the same content is as good.
    """
    remove_leftovers(target.parent)
    temporary = temporary_beside(target)
    try:
        yield temporary
        sync(temporary)
        try:
            _take(temporary, target)
        except FileExistsError:
            is_file = target.is_file() and not target.is_symlink()
            if is_file and overwrite:
                temporary.replace(target)
            elif not is_file or sha256_of_file(target) != sha256_of_file(temporary):
                raise UsageError(
                    f"{target.name} exists already and is something else",
                    where=str(target),
                    do="choose another name or folder, move the file away, or replace it (export: --overwrite)",
                ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _take(finished: Path, target: Path) -> None:
    """Names a finished file; raises FileExistsError if the name is taken, however late that happened."""
    try:
        target.hardlink_to(finished)  # unlike a renaming, a link never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        target.touch(exist_ok=False)
        finished.replace(target)


def _tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _refusal(path: Path, what: str) -> IntegrityRefusal:
    return IntegrityRefusal(
        f"{path.name} is not a sound model file: {printable(what)}",
        where=str(path),
        why="it was cut off, changed, or made by something else",
        do="get it again from where it was made, with autoseg model export",
    )
