"""Which cases are trained on and which are kept back, fold by fold."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import LeakingFolds, MissingInput, RecordFault, UsageError
from autoseg.core.files import write_atomic
from autoseg.core.limits import Name
from autoseg.core.records import from_json, read_json, to_json
from autoseg.training.grouping import RARE_BELOW, SplitFacts, spread, units_of

FOLDS = 5
SPLIT_SEED = 12345
"""Number of folds and seed of nnU-Net v2 (utilities/crossval_split.py), so that its users keep their folds."""

FOLD_OPTIONS = "--group-by, --stratify and --all-cases"
"""Options of `train` that ask for other folds than nnU-Net's."""

USER_FILES = ("splits.json", "splits_final.json")
"""Names under which a user's own folds are found in the dataset's folder; the second is nnU-Net's."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fold:
    """Case identifiers of one fold, written as nnU-Net writes them."""

    train: tuple[Name, ...]
    val: tuple[Name, ...]


_NOTHING_KNOWN = SplitFacts(images={}, classes={})


def make_folds(identifiers: Collection[str], count: int = FOLDS) -> tuple[Fold, ...]:
    """Five folds of shuffled cases, equal to nnU-Net's; as many folds as cases if there are fewer than five.

    A single case is its own fold: trained on, nothing left to validate with.

    Args:
        identifiers: of the cases.
        count: of folds, if there are as many cases.

    Source: nnU-Net v2 utilities/crossval_split.py (scikit-learn's KFold, shuffled with seed 12345, over sorted cases).
    """
    names = np.array(sorted(identifiers))
    if len(names) == 1:
        return (Fold((str(names[0]),), ()),)
    shuffled = np.arange(len(names))
    np.random.RandomState(SPLIT_SEED).shuffle(shuffled)
    parts = np.array_split(shuffled, min(count, len(names)))  # the first n % k parts are one longer, as in KFold
    return tuple(_fold(names, np.isin(np.arange(len(names)), part)) for part in parts)


def make_chosen_folds(identifiers: Collection[str], facts: SplitFacts) -> tuple[Fold, ...]:
    """The folds that the user asked for: nnU-Net's, or ones that keep groups together and spread rare classes.

    There are as many folds as groups if there are fewer than five; a single group is trained on, and nothing is left
    to validate with, as where all cases shall be trained on.
    """
    if facts.on_all_cases:
        return (Fold(tuple(sorted(identifiers)), ()),)
    if not facts.are_chosen:
        return make_folds(identifiers)
    units = units_of(facts, identifiers)
    if len(units) == 1:
        return (Fold(units[0], ()),)
    parts = spread(units, facts.classes, min(FOLDS, len(units)), SPLIT_SEED)
    return tuple(Fold(tuple(sorted(set(identifiers) - set(part))), part) for part in parts)


def settle_folds(
    usable: Collection[str],
    refused: Collection[str],
    dataset_folder: Path,
    work_file: Path,
    facts: SplitFacts = _NOTHING_KNOWN,
) -> tuple[Fold, ...]:
    """The folds of a dataset: the user's if there are any, else nnU-Net's or grouped ones. Writes nothing.

    Args:
        usable: identifiers of the cases that passed the check.
        refused: identifiers of labeled cases that did not; they are taken out of the user's folds with a warning.
        dataset_folder: searched for `USER_FILES`.
        work_file: `splits.json` of the work folder; if somebody edited it, it counts as the user's.
        facts: about the cases.

    Raises:
        RecordFault: the user's folds name unknown cases or train on what they validate.
        LeakingFolds: an image would be trained on and validated with; in folds of the user this is a warning.
        UsageError: the user's folds, or those of the work folder that were not made here, are not what `facts` ask for.
    """
    for name in USER_FILES:
        if (dataset_folder / name).is_file() and (dataset_folder / name) != work_file:
            if facts.on_all_cases:
                raise UsageError(
                    f"--all-cases keeps no case back, and your {name} says which ones to keep",
                    where=str(dataset_folder / name),
                    do="leave the option out, or move the file away",
                )
            folds = read_folds(dataset_folder / name, usable, refused)
            _log.info("folds: %d of your %s", len(folds), name)
            if facts.are_chosen:
                _log.warning("folds: your %s wins; --group-by and --stratify change nothing", name)
            return _warned(folds, usable, facts, f"add them to your {name}")
    return _kept_or_new(usable, refused, work_file, facts)


def save_folds(folds: Sequence[Fold], path: Path) -> None:
    """Writes the folds in nnU-Net's format, unless the file holds them already."""
    if not holds_folds(path, folds):
        write_atomic(path, to_json(folds_record(folds)))


def holds_folds(path: Path, folds: Sequence[Fold]) -> bool:
    """Whether a file holds exactly these folds."""
    try:
        return bool(read_json(path) == folds_record(folds))
    except (MissingInput, RecordFault):
        return False


def read_folds(path: Path, usable: Collection[str], refused: Collection[str] = ()) -> tuple[Fold, ...]:
    """The folds in a JSON file (nnU-Net's format), without the refused cases.

    Raises:
        RecordFault: not a list of {train, val}, unknown cases, or a case on both sides of a fold.
    """
    record = from_json(list[Fold], path.read_bytes(), str(path))
    faults = [] if record else ["it has no fold"]
    for number, fold in enumerate(record):
        faults += [f"fold {number}: {fault}" for fault in _faults(fold, set(usable), set(refused))]
    if faults:
        raise RecordFault("folds cannot be used: " + "; ".join(faults), where=str(path), do="correct the file")
    dropped = sorted({name for fold in record for name in (*fold.train, *fold.val)} & set(refused))
    if dropped:
        _log.warning("folds: %s left out, refused by the check", _some(dropped))
    gone = set(dropped)
    return tuple(Fold(_without(fold.train, gone), _without(fold.val, gone)) for fold in record)


def _faults(fold: Fold, usable: set[str], refused: set[str]) -> Iterator[str]:
    train, val = set(fold.train), set(fold.val)
    if unknown := (train | val) - usable - refused:
        yield f"unknown cases {_some(sorted(unknown))}"
    if overlap := train & val:
        yield f"{_some(sorted(overlap))} both trained on and validated"
    if not train & usable:
        yield "no usable case to train on"


def _without(names: Sequence[str], gone: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in gone)


def folds_record(folds: Sequence[Fold]) -> list[dict[str, list[str]]]:
    """The folds as nnU-Net's splits_final.json holds them."""
    return [{"train": list(fold.train), "val": list(fold.val)} for fold in folds]


def _kept_or_new(
    usable: Collection[str], refused: Collection[str], work_file: Path, facts: SplitFacts
) -> tuple[Fold, ...]:
    folds = make_chosen_folds(usable, facts)
    if work_file.exists() and not _was_made_here(work_file, facts):
        kept = read_folds(work_file, usable, refused)
        if facts.are_chosen and kept != folds:
            raise UsageError(
                "the work folder has other folds than the options of this command would make",
                where=str(work_file),
                why="it was edited, or made with other options",
                do=f"leave out {FOLD_OPTIONS} to keep its folds, or delete the file to have new ones",
            )
        do = f"add them to {work_file}, or delete it to have new folds (runs of the former ones then need --fresh)"
        return _warned(kept, usable, facts, do)
    for fold, same in _leaks(folds, facts):
        raise LeakingFolds(
            f"{' and '.join(same)} are the same image, on both sides of fold {fold}",
            where="E0208 in check.json lists every such image",
            why="what a network was trained on says nothing about how good it is",
            do="remove all but one, or keep them on one side: train with --group-by '.+'",
        )
    _announce(folds, len(usable), facts, is_known=holds_folds(work_file, folds))
    return folds


def _announce(folds: Sequence[Fold], cases: int, facts: SplitFacts, *, is_known: bool) -> None:
    """Says how cases are spread, once: when the folds are made."""
    level = logging.DEBUG if is_known else logging.INFO
    if facts.on_all_cases:
        _log.log(level, "folds: all %d cases are trained on; no score will say how good the network is", cases)
    elif not folds[0].val:
        what = "one group" if cases > 1 else "one case"
        _log.warning("folds: there is %s; it is trained on, and no validation is possible", what)
    elif facts.are_chosen:
        _log.log(level, "folds: %d cases in %d folds, rare classes spread, groups together", cases, len(folds))
    else:
        _log.log(level, "folds: %d cases in %d folds, shuffled with nnU-Net's seed", cases, len(folds))
        _warn_of_rare_classes(folds, facts)


def _leaks(folds: Sequence[Fold], facts: SplitFacts) -> Iterator[tuple[int, tuple[str, str]]]:
    """Pairs of cases with the same image on both sides of a fold."""
    for number, fold in enumerate(folds):
        trained = {image: name for name in fold.train if (image := facts.images.get(name))}
        for name in fold.val:
            if (image := facts.images.get(name)) in trained:
                yield number, (name, trained[str(image)])


def _warned(folds: tuple[Fold, ...], usable: Collection[str], facts: SplitFacts, do: str) -> tuple[Fold, ...]:
    """Folds of the user, with a warning if their scores will be too good or they leave cases out."""
    if left_out := sorted(set(usable) - {name for fold in folds for name in (*fold.train, *fold.val)}):
        _log.warning("folds: %s: in no fold, neither trained on nor validated; %s", _some(left_out), do)
    elif not any(fold.val for fold in folds):
        _log.info("folds: no case is kept back, so no validation is possible")
    elif unseen := sorted(set(usable) - {name for fold in folds for name in fold.val}):
        _log.info("folds: %s: never validated, as your folds have it", _some(unseen))
    for fold, same in list(_leaks(folds, facts))[:1]:
        _log.warning(
            "folds: %s are the same image, on both sides of fold %d; its scores are too good", " and ".join(same), fold
        )
    return folds


def _warn_of_rare_classes(folds: Sequence[Fold], facts: SplitFacts) -> None:
    total = len(facts.classes)
    for label in sorted({name for own in facts.classes.values() for name in own}):
        cases = {name for name, own in facts.classes.items() if label in own}
        without = [str(number) for number, fold in enumerate(folds) if not cases & set(fold.val)]
        if without and len(cases) < RARE_BELOW * total:
            _log.warning(
                "folds: %s is in %d of %d cases, and fold %s validates none; --stratify spreads them, which gives "
                "other folds than nnU-Net's",
                label,
                len(cases),
                total,
                ", ".join(without),
            )


def _was_made_here(work_file: Path, facts: SplitFacts) -> bool:
    """Whether a file equals the folds made of exactly the cases it names; then it may follow when cases change."""
    try:
        content = read_json(work_file)
        names = {name for fold in content for name in (*fold["train"], *fold["val"])}
    except (RecordFault, KeyError, TypeError):
        return False
    made = [make_folds] if not facts.are_chosen else [make_folds, lambda own: make_chosen_folds(own, facts)]
    return bool(names) and any(content == folds_record(make(names)) for make in made)


def _fold(names: NDArray[np.str_], is_validation: NDArray[np.bool_]) -> Fold:
    return Fold(tuple(map(str, names[~is_validation])), tuple(map(str, names[is_validation])))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
