"""Bundles: a model in one file of JSON, weights, hashes and a report; no code, nothing that is run when it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from autoseg.core.archives import Archive, open_archive, write_archive
from autoseg.core.errors import UsageError
from autoseg.core.records import to_json
from autoseg.models.bundle_record import (
    BUNDLE_VERSION,
    BundledMember,
    BundledScores,
    BundleRecord,
    Provenance,
    parse_bundle_record,
)
from autoseg.models.files import Member, ModelFiles, Weights
from autoseg.networks.tensors import file_bytes, network_shapes, pack_tensors, unpack_tensors

BUNDLE_ENDING = ".autoseg"
RECORD, REPORT = "model.json", "report.html"

_WEIGHTS = re.compile(r"weights/[A-Za-z0-9_-]{1,64}-fold_[0-9]{1,3}\.safetensors")
_MOST_BYTES = {RECORD: 16 << 20, REPORT: 256 << 20}
_MOST_WEIGHTS_BYTES = 16 << 30

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was found to be sound; weights are verified when they are read.

    Attributes:
        archive: the file.
        record: its model.json.
    """

    archive: Archive
    record: BundleRecord

    @property
    def has_report(self) -> bool:
        """Whether a report is inside."""
        return REPORT in self.archive.entries

    @property
    def file_name(self) -> str:
        """The name that the file is given where it is installed; made of plain letters only."""
        return f"{_slug(self.record.name)}{BUNDLE_ENDING}"

    def verify(self) -> None:
        """Reads everything once.

        Raises:
            IntegrityRefusal: something does not match its hash, or weights are not those of the network.
        """
        for name in self.archive.names:
            if not _WEIGHTS.fullmatch(name):
                self.archive.read(name)
        for member in self.record.every:
            for fold in member.folds:
                _read_weights(self.archive, member, fold)


def open_bundle(path: Path) -> Bundle:
    """The bundle in a file; its structure and model.json are verified, weights are not read yet.

    Raises:
        MissingInput: there is no such file.
        IntegrityRefusal: it is not a bundle, is damaged, or holds anything that a bundle does not hold.
    """
    archive = open_archive(path, _most_bytes)
    if RECORD not in archive.entries:
        raise archive.refusal("it has no model.json")
    record = parse_bundle_record(archive.read(RECORD), str(path))
    needed = {_weights_name(member.configuration, fold): member for member in record.every for fold in member.folds}
    different = set(needed) ^ (set(archive.names) - {RECORD, REPORT})
    if different:
        raise archive.refusal(f"{min(different)} is missing, or belongs to no configuration")
    for name, member in needed.items():
        if archive.size(name) > file_bytes(network_shapes(member.plan, member.configuration)):
            raise archive.refusal(f"{name} is larger than the network")
    return Bundle(archive, record)


def find_bundle_model(path: Path, configuration: str | None = None, folds: tuple[int, ...] = ()) -> ModelFiles:
    """The model in a bundle.

    Args:
        path: the file.
        configuration: this one alone instead of all that belong together, without postprocessing.
        folds: of every configuration; by default all.

    Raises:
        IntegrityRefusal: the file is not a sound bundle.
        UsageError: a configuration or fold is not in it.
    """
    bundle = open_bundle(path)
    record, archive = bundle.record, bundle.archive
    found = {member.configuration: member for member in (*record.stages, *record.members)}
    if configuration is None:
        members, stages, steps = record.members, record.stages, record.postprocessing
    else:
        if configuration not in found:
            raise UsageError(f"{configuration} is not in the bundle", do=f"choose from {', '.join(found)}")
        alone = found[configuration]
        stage = alone.plan.configurations[configuration].cascade_from
        members, steps = (replace(alone, share=1.0),), ()
        stages = tuple(other for other in record.stages if other.configuration == stage)
    name = record.name if (configuration, folds) == (None, ()) else f"{record.name}/{configuration or ''}/{list(folds)}"
    return ModelFiles(
        name=name,
        because=f"bundle {path.name}: {record.because}",
        members=tuple(_member(archive, member, folds) for member in members),
        stages={stage.configuration: _member(archive, stage, folds) for stage in stages},
        postprocessing=steps,
        typical=record.typical,
    )


def write_bundle(
    path: Path,
    files: ModelFiles,
    provenance: Provenance,
    scores: BundledScores | None = None,
    report: Path | None = None,
) -> Bundle:
    """Writes a model into one file; what lies at `path` is replaced.

    Args:
        path: of the file.
        files: the model.
        provenance: where it comes from.
        scores: how good it is.
        report: HTML file that goes along, or None.
    """
    record = BundleRecord(
        version=BUNDLE_VERSION,
        name=files.name,
        because=files.because,
        members=tuple(_bundled(member) for member in files.members),
        stages=tuple(_bundled(stage) for stage in files.stages.values()),
        postprocessing=files.postprocessing,
        typical=files.typical,
        provenance=provenance,
        scores=scores,
    )
    data = to_json(record).encode()
    parse_bundle_record(data, str(path))  # what cannot be read again is not written
    write_archive(path, _members(data, files, report))
    return open_bundle(path)


def bundle_path(folder: Path, files: ModelFiles) -> Path:
    """The file that a model is written to in a folder of models."""
    return folder / f"{_slug(files.name)}{BUNDLE_ENDING}"


def _most_bytes(name: str) -> int | None:
    return _MOST_WEIGHTS_BYTES if _WEIGHTS.fullmatch(name) else _MOST_BYTES.get(name)


def _slug(name: str) -> str:
    plain = _UNSAFE.sub("-", name).strip("-.")
    return (plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 17]}-{plain[-16:]}") or "model"


def _weights_name(configuration: str, fold: int) -> str:
    return f"weights/{configuration}-fold_{fold}.safetensors"


def _member(archive: Archive, member: BundledMember, folds: tuple[int, ...]) -> Member:
    missing = [fold for fold in folds if fold not in member.folds]
    if missing:
        there = ", ".join(map(str, member.folds))
        raise UsageError(f"fold {missing[0]} of {member.configuration} is not in the bundle", do=f"choose from {there}")
    return Member(
        plan=member.plan,
        configuration=member.plan.configurations[member.configuration],
        weights=tuple(
            Weights(fold, f"{archive.path}, fold {fold}", partial(_read_weights, archive, member, fold))
            for fold in sorted(folds or member.folds)
        ),
        precision=member.precision,
        memory_format=member.memory_format,
        device=member.device,
        share=member.share,
    )


def _read_weights(archive: Archive, member: BundledMember, fold: int) -> dict[str, Tensor]:
    name = _weights_name(member.configuration, fold)
    shapes = network_shapes(member.plan, member.configuration)
    return unpack_tensors(archive.read(name), shapes, f"{archive.path}, {name}")


def _bundled(member: Member) -> BundledMember:
    name = member.configuration.name
    return BundledMember(
        configuration=name,
        folds=member.folds,
        precision=member.precision,
        memory_format=member.memory_format,
        device=member.device,
        share=member.share,
        plan=replace(member.plan, configurations={name: member.configuration}),
    )


def _members(record: bytes, files: ModelFiles, report: Path | None) -> Iterator[tuple[str, bytes]]:
    yield RECORD, record
    if report is not None:
        yield REPORT, report.read_bytes()
    done: set[str] = set()
    for member in (*files.members, *files.stages.values()):
        for weights in member.weights:
            name = _weights_name(member.configuration.name, weights.fold)
            if name not in done:
                yield name, pack_tensors(weights.read())
            done.add(name)
