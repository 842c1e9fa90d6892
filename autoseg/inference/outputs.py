"""The folder that a prediction writes into: one label map per case, and nobody's file replaced.

What AutoSeg wrote is known by the hashes in the manifest. A file with another hash, or that no manifest names, belongs
to the user: it stays, and its case is listed as failed, unless `--overwrite` was given. A label map that was AutoSeg's
and cannot be read any more is nobody's work, and is made again.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from autoseg.core.errors import AutoSegError, MissingInput, RecordFault, UsageError
from autoseg.core.files import is_taken, sha256_of_file
from autoseg.core.records import load, save
from autoseg.data.model import Case
from autoseg.images.formats.files import file_ending, files_of, find_format, hash_of_written, verify_file
from autoseg.inference.manifest import (
    BEING_WRITTEN,
    MANIFEST_NAME,
    MANIFEST_VERSION,
    REPORT_NAME,
    CaseOutcome,
    PredictionManifest,
    hash_of_images,
)

_OVERWRITE = "choose another -o, move the file away, or replace it with --overwrite"

_NOTHING = CaseOutcome("failed", None, 0.0, None, None)
"""Of a case that no earlier prediction was about."""

_log = logging.getLogger(__name__)


class OutputFolder:
    """What a prediction finds in its output folder, and what it writes there.

    Args:
        folder: made if needed.
        manifest: of the prediction to come; filled as cases are finished.
        overwrite: whether files that AutoSeg did not write, or that changed since, may be replaced.

    Raises:
        UsageError: there is a manifest.json that AutoSeg did not write, and it may not be replaced.
    """

    def __init__(self, folder: Path, manifest: PredictionManifest, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        self._saving = threading.Lock()
        before = self._manifest_before()
        self.manifest = manifest
        if before is not None:
            known = {name: getattr(before, name) for name in ("report", "reported", "device", "numerics")}
            self.manifest = replace(manifest, **known)
        self._found = before
        self._before = {} if before is None else _outcomes(before)
        self.manifest.earlier.update(self._before)

    def check_report(self, path: Path) -> None:
        """Refuses to replace a report that AutoSeg did not write, or that changed since.

        Raises:
            UsageError: there is one.
        """
        is_own = self.manifest.report is not None and self.manifest.report in (BEING_WRITTEN, _hash_of(path))
        if (path.is_file() or path.is_symlink()) and not is_own and not self._overwrite:
            raise UsageError(
                f"{path.name} was not written by AutoSeg, or was changed since; it is not replaced",
                where=str(path),
                do=f"--no-report, or {_OVERWRITE}",
            )

    def keep_done(self, cases: Iterable[Case], names: Iterable[str], has_probabilities: bool) -> None:
        """Takes over the cases that need not be predicted: done before by the same prediction, or the user's now.

        Args:
            cases: to be predicted.
            names: of the label file that each of them is to have.
            has_probabilities: whether these are asked for, and so must be there too.
        """
        done = 0
        for case, name in zip(cases, names, strict=True):
            outcome = self._kept(case, name, has_probabilities)
            if outcome is not None:
                self.manifest.cases[case.identifier] = outcome
                self.manifest.earlier.pop(case.identifier, None)
                done += outcome.status == "done"
        if done:
            _log.info("%d cases were done before and are kept", done)

    def is_unchanged(self, has_report: bool) -> bool:
        """Whether the manifest, and the report if it is asked for, are already what they are to be."""
        own = self.manifest
        is_own = bool(own.report) and own.report == _hash_of(self.folder / REPORT_NAME)
        is_reported = not has_report or (is_own and own.reported == own.subject)
        return is_reported and own == self._found

    def may_replace(self, case: str, path: Path) -> bool:
        """Whether a file or folder that is to be written for a case replaces nothing of the user's."""
        if self._overwrite or not is_taken(path):
            return True
        known = self._known(case)
        return path.name in known and self._is_own(path.name, known[path.name])

    def begin(self, case: str, finished: Mapping[Path, Path]) -> None:
        """Notes which files of a case are about to be put into their places, so that a power cut makes none foreign.

        Args:
            case: its name.
            finished: place -> the file that replaces what lies there; either may be found after a stop.

        Raises:
            UsageError: one of them would replace a file of the user's, or a folder.
        """
        kept = [path.name for path in finished if not self.may_replace(case, path)]
        if kept:
            raise UsageError(f"kept: {', '.join(kept)} was not written by AutoSeg", do=_OVERWRITE)
        if folders := [path.name for path in finished if path.is_dir() and not path.is_symlink()]:
            raise UsageError(f"kept: {', '.join(folders)} is a folder", do="choose another -o, or move it away")
        both = {path.name: (_hash_of(path), _hash_of(file)) for path, file in finished.items()}
        files = self._known(case) | {name: " ".join(filter(None, hashes)) for name, hashes in both.items()}
        self._save(case, CaseOutcome("failed", None, 0.0, "stopped while its files were written", None, beside=files))

    def finish(self, case: str, outcome: CaseOutcome) -> None:
        """Notes what became of a case; what AutoSeg wrote for it before, and has not replaced, is removed."""
        stale = {name: noted for name, noted in self._known(case).items() if name not in outcome.files}
        kept = [name for name, noted in stale.items() if not self._removed(name, noted)]
        if kept:
            note = f"{', '.join(kept)} of an earlier prediction was changed since, and is kept"
            _log.warning("%s: %s", case, note)
            outcome = replace(outcome, notes=(*outcome.notes, note))
        self._save(case, outcome)

    def note_report(self, report: str | None) -> None:
        """Notes the hash of report.html, or that it is about to be written."""
        self.save(replace(self.manifest, report=report, reported=self.manifest.subject))

    def save(self, manifest: PredictionManifest) -> None:
        """Replaces the manifest."""
        with self._saving:
            self.manifest = manifest
            save(manifest, self.folder / MANIFEST_NAME)

    def written(self, label_map: Path, others: Iterable[Path]) -> tuple[str, dict[str, str]]:
        """Hash of a label map, and of each file beside it by its name."""
        beside = [file for file in files_of(label_map)[1:] if not label_map.is_dir()]
        return hash_of_written(label_map), {file.name: sha256_of_file(file) for file in (*beside, *others)}

    def _save(self, case: str, outcome: CaseOutcome) -> None:
        with self._saving:
            self.manifest.cases[case] = replace(outcome, made_by=self.manifest.made_by)
            self.manifest.earlier.pop(case, None)
            save(self.manifest, self.folder / MANIFEST_NAME)

    def _manifest_before(self) -> PredictionManifest | None:
        path = self.folder / MANIFEST_NAME
        try:
            return _known_files(self.folder, load(PredictionManifest, path))
        except (MissingInput, RecordFault) as fault:
            if self._overwrite or not is_taken(path):
                return None
            raise UsageError(
                f"{path.name} was not written by AutoSeg, or was changed since; it is not replaced",
                where=str(path),
                why=fault.what,
                do=_OVERWRITE,
            ) from fault

    def _kept(self, case: Case, name: str, has_probabilities: bool) -> CaseOutcome | None:
        """The outcome of a case that is not to be predicted; None for one that is."""
        npz = [f"{case.identifier}.npz"] if has_probabilities else []
        before = self._before[case.identifier] = self._repairable(case.identifier)
        names = dict.fromkeys((name, *npz, *before.files))
        changed = [name for name in names if not self.may_replace(case.identifier, self.folder / name)]
        if changed:
            return self._users(case, before, changed)
        is_done = before.status == "done" and self._is_complete(before, npz) and self._is_of(before, case)
        return before if is_done else None

    def _users(self, case: Case, before: CaseOutcome, changed: list[str]) -> CaseOutcome:
        """The outcome of a case of which files are the user's."""
        whose = "was changed since AutoSeg wrote it" if before.files else "was not written by AutoSeg"
        reason = f"kept: {', '.join(changed)} {whose} (--overwrite replaces it)"
        _log.warning("%s: %s", case.identifier, reason)
        if before.output is not None and self._is_of(before, case):
            return replace(before, status="failed", error=reason)  # a correction of what would be predicted now
        return CaseOutcome("failed", None, 0.0, reason, None, beside=before.files)

    def _is_of(self, before: CaseOutcome, case: Case) -> bool:
        """Whether predicting the case now would give what was written before."""
        is_same = before.made_by == self.manifest.made_by
        return is_same and before.input is not None and before.input == _hash_or_none(case)

    def _repairable(self, case: str) -> CaseOutcome:
        """What was written for a case before; files of a label map that cannot be read any more are nobody's work."""
        before = self._before.get(case, _NOTHING)
        if before.output is None or _is_whole(path := self.folder / before.output):
            return before
        damaged = {file.name for file in files_of(path)}
        beside = {name: BEING_WRITTEN if name in damaged else noted for name, noted in before.files.items()}
        return replace(before, status="failed", output=None, beside=beside)

    def _is_complete(self, before: CaseOutcome, names: list[str]) -> bool:
        is_there = all(self._is_own(name, noted) for name, noted in before.files.items())
        return is_there and all(name in before.files for name in names)

    def _known(self, case: str) -> dict[str, str]:
        """The files that AutoSeg has written for a case, by name, and their hashes."""
        before, now = self._before.get(case), self.manifest.cases.get(case)
        return (before.files if before else {}) | (now.files if now else {})

    def _is_own(self, name: str, noted: str) -> bool:
        """Whether a file is there as AutoSeg wrote it, or is one of the two of which one replaced the other."""
        path = self.folder / name
        return path.is_file() if noted == BEING_WRITTEN else _hash_of(path) in noted.split()

    def _removed(self, name: str, noted: str) -> bool:
        """Removes a file that is AutoSeg's own; False if it is there and the user's."""
        path = self.folder / name
        if not path.exists():
            return True
        if not self._is_own(name, noted):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        return True


def output_name(case: Case, planned: str) -> str:
    """Name of a case's label map: with the image's own ending where that can be written, else with the model's.

    Where the two differ in compression only (.nii and .nii.gz), it is the model's as well.
    """
    image = Path(case.images[0])
    own = find_format(image)
    is_planned = own is None or own.write is None or (own.ending_is_compression and planned in own.endings)
    return f"{case.identifier}{planned if is_planned else file_ending(image)}"


def _known_files(folder: Path, manifest: PredictionManifest) -> PredictionManifest:
    """The manifest of a version that knew label maps only, with what lies beside them taken for AutoSeg's own."""
    if manifest.version >= MANIFEST_VERSION:
        return manifest
    cases = {name: _with_files(folder, name, outcome) for name, outcome in manifest.cases.items()}
    return replace(manifest, cases=cases, report=BEING_WRITTEN)


def _with_files(folder: Path, case: str, outcome: CaseOutcome) -> CaseOutcome:
    if outcome.output is None:
        return outcome
    path = folder / outcome.output
    others = [] if path.is_dir() else [*files_of(path)[1:], folder / f"{case}.npz"]
    return replace(outcome, beside={file.name: BEING_WRITTEN for file in others if file.exists()})


def _outcomes(before: PredictionManifest) -> dict[str, CaseOutcome]:
    """What became of each case before; where that does not say what made it, the last prediction or nobody knows."""
    last = {name: replace(own, made_by=own.made_by or before.made_by) for name, own in before.cases.items()}
    return before.earlier | last


def _is_whole(path: Path) -> bool:
    try:
        verify_file(path)
    except AutoSegError:
        return False
    return True


def _hash_of(path: Path) -> str | None:
    try:
        return hash_of_written(path)
    except OSError:
        return None


def _hash_or_none(case: Case) -> str | None:
    try:
        return hash_of_images(case)
    except OSError:
        return None
