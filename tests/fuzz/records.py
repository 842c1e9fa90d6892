"""Targets: records of the work folder, descriptions of datasets, files of the user."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.api.plan import plan_from_fingerprint
from autoseg.core.configs import shipped
from autoseg.core.errors import AutoSegError, MissingInput
from autoseg.core.geometry import Geometry
from autoseg.core.records import content_hash, from_json, load, to_json
from autoseg.core.stamps import FileStamp
from autoseg.core.workspace import Workspace
from autoseg.data.layouts.detect import LAYOUTS
from autoseg.data.layouts.layout import Found
from autoseg.data.model import Case, Dataset, Problem
from autoseg.data.survey import CaseSummary, Survey
from autoseg.images.formats.files import verify_file
from autoseg.images.volume import Volume
from autoseg.inference.manifest import MANIFEST_VERSION, CaseOutcome, PredictionManifest
from autoseg.inference.outputs import OutputFolder
from autoseg.planning.pins import read_pins
from autoseg.planning.plan import Plan, load_plan
from autoseg.planning.planner import PlanOptions
from autoseg.planning.presets import load_preset
from autoseg.preprocessing.prepare import Preparation, prepare
from autoseg.preprocessing.store import open_case, write_case
from autoseg.runs.run import FoldScores, RunStatus
from autoseg.selection.record import Selection
from autoseg.training.callbacks.history import append_history, last_history, read_history
from autoseg.training.grouping import case_groups
from autoseg.training.recipe import load_recipe
from autoseg.training.splits import SplitFacts, read_folds, settle_folds
from tests.data.arrangements import cellpose, decathlon, manifest_csv, manifest_json, nnunet, paired
from tests.fuzz.image_seeds import gipl_seeds
from tests.fuzz.target import Files, Target, Trial
from tests.planning.builders import fingerprint_of, plan_of
from tests.runs.trained import LABELS, cascade_plan, run_record, tiny_plan


def files_in(folder: Path) -> Files:
    """All files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def made(*makers: Callable[[Path], Any]) -> list[Files]:
    """What functions write into an empty folder each."""
    seeds = []
    for maker in makers:
        with tempfile.TemporaryDirectory() as name:
            maker(Path(name) / "made")
            seeds.append(files_in(Path(name) / "made"))
    return seeds


# --- records -------------------------------------------------------------------------------------------------------
def _saved_again(_trial: Trial, record: Any) -> str | None:
    """What is read can be written, and is then the same."""
    try:
        text = to_json(record)
    except ValueError as error:
        return f"is read but cannot be written again: {str(error)[:80]}"
    return None if from_json(type(record), text, "again") == record else "is another record when it is read again"


def _inside(trial: Trial, names: Iterable[str]) -> str | None:
    """The first name that would lead out of a folder, or into a folder below it."""
    for name in names:
        if not name or Path(name).name != name or "\0" in name or "\\" in name:
            return "accepts a name that is none of a file"
    return None


def sound_plan(trial: Trial, plan: Plan) -> str | None:
    return _saved_again(trial, plan) or _inside(trial, (*plan.configurations, f"x{plan.file_ending}"))


def _sound_dataset(trial: Trial, dataset: Dataset) -> str | None:
    names = [case.identifier for case in dataset.cases]
    if len(set(names)) < len(names):
        return "accepts two cases of one name"
    return _saved_again(trial, dataset) or _inside(trial, (*names, f"x{dataset.file_ending}"))


def _record(name: str, *examples: Any, oracle: Callable[[Trial, Any], str | None] = _saved_again) -> Target:
    kind = type(examples[0])
    seeds = [{name: to_json(example).encode()} for example in examples]
    return Target(name, lambda: seeds, lambda folder: load(kind, folder / name), oracle, weight=1.5)


_FINGERPRINT = fingerprint_of([(3.0, 1.0, 1.0), (2.5, 0.8, 0.8)], [(20, 100, 90), (31, 120, 110)])
_DATASET = Dataset(
    "tiny",
    "/data/tiny",
    "nnunet",
    "it says so",
    ("MRI",),
    LABELS,
    (Case("a", ("i/a_0000.nii.gz",), "l/a.nii.gz"),),
    ".nii.gz",
)
_SURVEY = Survey(
    3,
    "0" * 16,
    (CaseSummary("a", (FileStamp("i/a_0000.nii.gz", 100, 1),), "0" * 64, (), ()),),
    (Problem("E0305", "note", None, None, "values are read as others", "nothing"),),
    _FINGERPRINT,
)
_SCORES = FoldScores(
    {"a": {"liver": {"dice": 0.5, "hd95_mm": None}}}, {"liver": {"dice": 0.5}}, {"dice": 0.5}, (), (0, 1), {"a": 1.0}
)
_STATUS = RunStatus("done", 3, 3, 12.5, 0.1, {"liver": 0.5, "tumor": None}, 0.5, 2, ("a note",))
_MANIFEST = PredictionManifest(
    1, "0.1.0", "tiny", "cpu", True, 0.5, LABELS, {"a": CaseOutcome("done", "a.nii.gz", 1.0, None, "0" * 16, "1" * 64)}
)


def _selection() -> Selection:
    from tests.selection.test_record import example

    return example()


# --- files that are more than a record -----------------------------------------------------------------------------
def _plan_seeds() -> list[Files]:
    plans = (cascade_plan(), tiny_plan(2), plan_of(_FINGERPRINT))
    return [{"plan.json": to_json(plan).encode()} for plan in plans]


def _splits_seeds() -> list[Files]:
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b"]}]
    return [{"splits.json": json.dumps(folds).encode()}]


def _settled(folder: Path) -> Any:
    """Folds as a training reads them: those of the work folder, and those that a user gives."""
    names = ("a", "b", "c")
    file = folder / "splits.json"
    return read_folds(file, names), settle_folds(names, (), folder, folder / "work.json", SplitFacts({}, {}))


def _history_seeds() -> list[Files]:
    def write(folder: Path) -> None:
        for epoch in range(4):
            append_history(
                folder / "history.jsonl", {"epoch": epoch, "loss": 0.5, "dice": {"liver": None}, "events": []}
            )

    return made(write)


def _history(folder: Path) -> Any:
    entries, last = read_history(folder / "history.jsonl"), last_history(folder / "history.jsonl")
    return entries, last


def _sound_history(_trial: Trial, result: Any) -> str | None:
    entries, last = result
    is_sound = all(isinstance(entry, dict) for entry in (*entries, *([] if last is None else [last])))
    return None if is_sound else "gives lines that are no tables"


def _layout_seeds() -> list[Files]:
    described = (nnunet, partial(nnunet, channels=2), decathlon, partial(decathlon, channels=2), manifest_json)
    return made(
        *described,
        manifest_csv,
        partial(manifest_csv, channels=2),
        _with_description(paired),
        _with_description(cellpose),
    )


def _found(folder: Path) -> Found:
    """What the first layout that fits finds; images and label maps are not read, which other targets see to."""
    found = next((found for layout in LAYOUTS.values() if (found := layout.detect(folder)) is not None), None)
    if found is None:
        raise MissingInput("no layout fits")
    return found


def _sound_cases(trial: Trial, found: Found) -> str | None:
    names = [case.identifier for case in found.cases]
    twins = "accepts two cases of one name" if len(set(names)) < len(names) else None
    return twins or _inside(trial, (*names, f"x{found.declared.file_ending or ''}"))


def _with_description(arrange: Callable[[Path], Path]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        arrange(folder)
        table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": [1, 2]}}
        (folder / "dataset.json").write_text(json.dumps({**table, "regions_class_order": [1, 2]}))

    return write


def _store_seeds() -> list[Files]:
    def write(folder: Path) -> None:
        image = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
        labels = np.random.default_rng(1).integers(0, 3, (4, 5, 6)).astype(np.int8)
        preparation = Preparation((2, 0, 1), (1.0, 2.0, 1.0), ("zscore", "none"), (False, True), (None, None))
        prepared = prepare(Volume(image, Geometry((4, 5, 6))), labels, preparation)
        write_case(
            folder / "a", "0" * 16, prepared, {1: np.array([[0, 1, 2]], np.int16), -1: np.array([[3, 1, 1]], np.int16)}
        )

    return made(write)


def _stored(folder: Path) -> Any:
    case = open_case(folder / "a")
    case.placement.restore_labels(np.zeros(case.placement.cropped_shape, np.int16))
    return case


def _with_right_sizes(files: Files) -> Files:
    """The record of a stored case with the sizes and hashes that its files have now."""
    try:
        record = json.loads(files["a/case.json"])
        for name, entry in record["files"].items():
            content = files[f"a/{name}"]
            entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return {**files, "a/case.json": json.dumps(record).encode()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return files


# --- the output folder of a prediction -----------------------------------------------------------------------------
def _coming() -> PredictionManifest:
    return PredictionManifest(MANIFEST_VERSION, "0.1.0", "tiny", "cpu", True, 0.5, LABELS)


def _output_seeds() -> list[Files]:
    """What a prediction of one case has left, beside a file of the user's."""
    written, image = gipl_seeds()[0]["x.gipl"], b"image"
    done = CaseOutcome(
        "done",
        "a.gipl",
        1.0,
        None,
        content_hash([hashlib.sha256(image).hexdigest()]),
        hashlib.sha256(written).hexdigest(),
    )
    manifest = replace(_coming(), cases={"a": done}, earlier={"b": replace(done, output="b.gipl")})
    files = {"a.gipl": written, "b.gipl": written, "notes.txt": b"mine", "in/a_0000.nii.gz": image}
    return [{"manifest.json": to_json(manifest).encode(), **files}]


def _predicted_again(folder: Path) -> bool:
    """Predicts the case again, as far as files go; whether it was kept."""
    output = OutputFolder(folder, _coming())
    output.keep_done([Case("a", (str(folder / "in/a_0000.nii.gz"),))], ["a.gipl"], has_probabilities=False)
    if "a" in output.manifest.cases:
        return output.manifest.cases["a"].status == "done"
    finished = folder / "finished"
    finished.write_bytes(b"new")
    output.begin("a", {folder / "a.gipl": finished})
    finished.replace(folder / "a.gipl")
    output.finish("a", CaseOutcome("done", "a.gipl", 1.0, None, None, hashlib.sha256(b"new").hexdigest()))
    return False


def _keeps_what_is_not_its_own(trial: Trial, was_kept: bool) -> str | None:
    """A result is kept only if nothing changed, and no file of the user's is replaced or removed."""
    now = files_in(trial.folder)
    changed = [name for name in trial.files if trial.files[name] != trial.original[name]]
    if was_kept and {"a.gipl", "in/a_0000.nii.gz"} & set(changed):
        return "keeps a result that was changed"
    users = [name for name in ("b.gipl", "notes.txt", "in/a_0000.nii.gz") if now.get(name) != trial.files[name]]
    if "a.gipl" in changed and now.get("a.gipl") != trial.files["a.gipl"] and _is_readable(trial.files["a.gipl"]):
        users.append("a.gipl")
    return f"replaces or removes {users[0]}" if users else None


def _is_readable(label_map: bytes) -> bool:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.gipl"
        path.write_bytes(label_map)
        try:
            verify_file(path)
        except AutoSegError:
            return False
        return True


def _fingerprint_seeds() -> list[Files]:
    fingerprint = {
        "spacings": [[3.0, 1.0, 1.0], [2.5, 0.8, 0.8], [3.0, 1.0, 1.0]],
        "shapes_after_crop": [[20, 100, 90], [31, 120, 110], [25, 90, 90]],
        "median_relative_size_after_cropping": 0.9,
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": 9.0,
                "mean": 3.0,
                "median": 3.0,
                "min": 0.0,
                "percentile_00_5": 0.1,
                "percentile_99_5": 8.0,
                "std": 2.0,
            }
        },
    }
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    return [{"fingerprint.json": json.dumps(fingerprint).encode(), "dataset.json": json.dumps(described).encode()}]


def _planned(folder: Path) -> Plan:
    return plan_from_fingerprint(folder / "fingerprint.json", folder / "dataset.json", PlanOptions())


# --- YAML ----------------------------------------------------------------------------------------------------------
_PINS = b"""# decisions of mine
pin:
  patch_size: [48, 96, 96]
  batch_size: 4
  normalization: [zscore]
  lateral_pairs: [[left kidney, right kidney]]
  2d: {batch_size: 8, batch_dice: true}
  3d_fullres:
    features_per_stage: [32, 64, 128]
    kernel_sizes: [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
"""
_RECIPE = b"""epochs: 20
lr: 1e-3
momentum: 0.99
schedule: poly
loss: dice_ce
oversample_foreground: 0.33
augmentation:
  - {name: noise, probability: 0.1}
  - {name: mirror}
callbacks: [epoch_logger, curves]
"""


def _shipped_yaml(kind: str, *own: bytes) -> list[Files]:
    return [{"x.yaml": content} for content in (*own, *(path.read_bytes() for path in shipped(kind).values()))]


_GROUPS = b"case,group\na,Z\xc3\xbcrich\nb,Bern\nc,Bern\n"
_OUTPUT_FILES = ("manifest.json", "a.gipl", "in/*")

RECORD_TARGETS = (
    Target("plan.json", _plan_seeds, lambda folder: load_plan(Workspace(folder)), sound_plan, weight=2),
    _record("recipe.json", run_record("3d_fullres", 0, 3, ("a", "b"))),
    _record("state.json", _STATUS),
    _record("scores.json", _SCORES),
    _record("fingerprint.json", _FINGERPRINT),
    _record("check.json", _SURVEY),
    _record("dataset.json", _DATASET, oracle=_sound_dataset),
    _record("selection.json", _selection()),
    _record("manifest.json", _MANIFEST),
    Target("splits.json", _splits_seeds, _settled),
    Target("history.jsonl", _history_seeds, _history, _sound_history),
    Target("case.json", _store_seeds, _stored, repair=_with_right_sizes, weight=2),
    Target(
        "output folder", _output_seeds, _predicted_again, _keeps_what_is_not_its_own, changed=_OUTPUT_FILES, weight=2
    ),
    Target("layouts", _layout_seeds, _found, _sound_cases, ("*.json", "*.csv"), weight=3),
    Target("nnU-Net fingerprint", _fingerprint_seeds, _planned, sound_plan),
    Target("groups", lambda: [{"x.csv": _GROUPS}], lambda folder: case_groups(str(folder / "x.csv"), ("a", "b", "c"))),
    Target("pins", lambda: [{"x.yaml": _PINS}], lambda folder: read_pins(folder / "x.yaml"), weight=1.5),
    Target(
        "recipe",
        lambda: _shipped_yaml("recipes", _RECIPE),
        lambda folder: load_recipe(str(folder / "x.yaml")),
        weight=1.5,
    ),
    Target("preset", lambda: _shipped_yaml("presets"), lambda folder: load_preset(str(folder / "x.yaml"))),
)
