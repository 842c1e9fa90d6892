"""Whatever is changed between two commands is noticed and named, or redone; it is never used silently.

Every input of every command is changed by itself: files of the dataset, its description, its folds, and each record and
array that an earlier command left. Then the next command has to refuse it or warn, naming what it was, or to end with
the very result that it has without the change.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg.api.model import export_model, load_model
from autoseg.api.plan import plan
from autoseg.api.preprocess import preprocess
from autoseg.api.report import report
from autoseg.api.select import select
from autoseg.api.train import train
from autoseg.core.errors import AutoSegError
from autoseg.core.records import load
from autoseg.core.workspace import Workspace
from autoseg.planning.plan import Plan
from autoseg.runs.run import trained_runs
from tests.preprocessing.tiny_dataset import write_tiny_dataset

RECIPE = "{epochs: 2, steps_per_epoch: 2, validation_steps: 1, precision: fp32, memory_format: contiguous}"
FOLDS = [{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]}]
FOLDS += [{"train": ["case_2", "case_3"], "val": ["case_0", "case_1"]}]
RUN = "autoseg/runs/2d/fold_0"
IMAGE, LABELS = "imagesTr/case_1_0000.nii.gz", "labelsTr/case_1.nii.gz"


def volume(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        image = nibabel.load(folder / name)
        array = change(np.asarray(image.dataobj))
        nibabel.Nifti1Image(array, image.affine, dtype=array.dtype).to_filename(folder / name)

    return apply


def spacing(folder: Path) -> None:
    for name in (IMAGE, LABELS):
        image = nibabel.load(folder / name)
        array = np.asarray(image.dataobj)
        nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 7.0, 1.0]), dtype=array.dtype).to_filename(folder / name)


def new_case(folder: Path) -> None:
    shutil.copy(folder / IMAGE, folder / "imagesTr" / "case_8_0000.nii.gz")
    shutil.copy(folder / LABELS, folder / "labelsTr" / "case_8.nii.gz")
    volume("imagesTr/case_8_0000.nii.gz", lambda array: array + 1)(folder)


def gone_case(folder: Path) -> None:
    (folder / IMAGE).unlink()
    (folder / LABELS).unlink()


def edit(pattern: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A change of JSON files by hand."""

    def apply(folder: Path) -> None:
        for path in found(folder, pattern):
            data = json.loads(path.read_text())
            change(data)
            path.write_text(json.dumps(data))

    return apply


def flip(pattern: str) -> Callable[[Path], None]:
    """A byte in the middle of files."""

    def apply(folder: Path) -> None:
        for path in found(folder, pattern):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 255
            path.write_bytes(content)

    return apply


def found(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    assert paths, pattern
    return paths


def newest(folder: Path) -> str:
    return max(f"{RUN}/checkpoint/{path.name}" for path in (folder / RUN / "checkpoint").iterdir())


def swap_folds(folder: Path) -> None:
    (folder / "splits_final.json").write_text(json.dumps(FOLDS[::-1]))


def plan_differently(folder: Path) -> None:
    plan(folder, preset="reference", configurations=["2d"])


def take_from_the_other_run(name: str) -> Callable[[Path], None]:
    return lambda folder: Path(shutil.copy(folder / RUN.replace("fold_0", "fold_1") / name, folder / RUN / name))


RAW = {
    "image voxels": (volume(IMAGE, lambda array: array + 3), "case_1: its image"),
    "label voxels": (volume(LABELS, lambda array: np.flip(array, 0)), "case_1: its labels"),
    "header spacing": (spacing, "case_1: its image and labels"),
    "classes": (edit("dataset.json", lambda data: data["labels"].update(thing=2, other=1)), "its classes"),
    "channels": (edit("dataset.json", lambda data: data["channel_names"].update({"0": "CT"})), "its channels"),
    "a case that is gone": (gone_case, "case_1"),
    "a new case": (new_case, "case_8"),
}
PLANNED = {
    "plan.json": (
        edit("autoseg/plan.json", lambda data: data["configurations"]["2d"].update(batch_size=3)),
        "plan.json",
    ),
    "fingerprint.json": (edit("autoseg/fingerprint.json", lambda data: data["cases"].pop()), "fingerprint.json"),
    "check.json": (edit("autoseg/check.json", lambda data: data["cases"].pop()), "check.json"),
    "dataset.json of the work folder": (edit("autoseg/dataset.json", lambda data: data["cases"].pop()), "dataset.json"),
}
CASE = "autoseg/store/*/case_1"
PREPARED = {
    "store image": (flip(f"{CASE}/image.npy"), "case_1"),
    "store labels": (flip(f"{CASE}/labels.npy"), "case_1"),
    "store case.json": (edit(f"{CASE}/case.json", lambda data: data.update(content="0" * 64)), "case_1"),
    "store placement": (edit(f"{CASE}/case.json", lambda data: data["placement"].update(box=[[0, 1]] * 3)), "case_1"),
}
TRAINED = {
    "folds": (swap_folds, "fold"),
    "plan.json, planned anew": (plan_differently, "plan"),
    "recipe.json": (edit(f"{RUN}/recipe.json", lambda data: data["recipe"].update(lr=0.5)), "recipe.json"),
    "plan.json of a run": (edit(f"{RUN}/plan.json", lambda data: data.update(four_d=True)), "plan.json"),
    "state.json": (edit(f"{RUN}/state.json", lambda data: data.update(foreground_dice=0.99)), "state.json"),
    "newest checkpoint": (lambda folder: flip(f"{newest(folder)}/weights.safetensors")(folder), "checkpoint"),
    "newest checkpoint gone": (lambda folder: shutil.rmtree(folder / newest(folder)), "checkpoint"),
    "scores.json": (edit(f"{RUN}/validation/scores.json", lambda data: data.update(mirror_axes=[])), "scores"),
    "scores.json of another run": (take_from_the_other_run("validation/scores.json"), "scores"),
    "validation label map": (volume(f"{RUN}/validation/case_2.nii.gz", lambda array: array * 0), "label map"),
    "probabilities": (flip(f"{RUN}/validation/case_2.probabilities.npz"), "probabilities"),
    "history.jsonl": (take_from_the_other_run("history.jsonl"), "history.jsonl"),
    "selection.json": (edit("autoseg/selection.json", lambda data: data.update(because="I say so")), "selection.json"),
    "selected label map": (volume("autoseg/selected/case_1.nii.gz", lambda array: array * 0), "Label maps"),
}
STAGES = {"planned": RAW | PLANNED, "preprocessed": RAW | PLANNED | PREPARED}
STAGES["trained"] = RAW | PLANNED | PREPARED | TRAINED
"""What can change after a command, and how a message names it."""


def make_plan(folder: Path, work: Path | None = None, **options: object) -> Plan:
    return plan(folder, work=work, preset="cpu", configurations=["2d"], **options)


def do_train(folder: Path) -> object:
    recipe = str(folder.parent / "recipe.yaml")
    chosen = train(folder, recipe=recipe, device="cpu").selection
    runs = trained_runs(Workspace(folder / "autoseg"))["2d"].values()
    choice = (chosen.name, chosen.case_dice, chosen.runs, chosen.postprocessing)
    return choice, [(run.weights_hash, run.status.foreground_dice, run.scores.cases, run.scores.maps) for run in runs]


def do_preprocess(folder: Path) -> object:
    (result,) = preprocess(folder).values()
    files = sorted(path for path in result.folder.rglob("case_*/*") if path.is_file())
    return result.failures, [(path.name, sha256(path.read_bytes()).hexdigest()) for path in files]


def do_predict(folder: Path) -> object:
    image = np.random.default_rng(0).normal(9, 1, (6, 12, 10))
    return load_model(folder, device="cpu").predict(image, (3.0, 1.0, 1.0)).tolist()


def do_export(folder: Path) -> object:
    path = export_model(folder, folder.parent / "model.autoseg", has_report=False)
    content = path.read_bytes()
    path.unlink()
    return sha256(content).hexdigest()


def do_report(folder: Path) -> object:
    page = report(folder, pictures=0).read_text()
    return page[: page.index("Written 20")]


def do_plan(folder: Path) -> object:
    made = make_plan(folder), load(Plan, folder / "autoseg/plan.json")
    return made, made[0] == make_plan(folder, work=folder.parent / f"{folder.name}_fresh")


VERBS = {
    ("planned", "plan"): do_plan,
    ("planned", "preprocess"): do_preprocess,
    ("planned", "train"): do_train,
    ("preprocessed", "preprocess"): do_preprocess,
    ("preprocessed", "train"): do_train,
    ("trained", "train"): do_train,
    ("trained", "select"): select,
    ("trained", "predict"): do_predict,
    ("trained", "report"): do_report,
    ("trained", "export"): do_export,
}
SAY_SO = ("predict", "report", "export")
"""They go on with a model whose data changed since, and have to say so even where their result is the same."""

TAKEN_UP = {"plan": RAW}
"""What a command takes up as it is now; that it equals a fresh result is part of what it gives."""


@pytest.fixture(scope="module")
def stages(tmp_path_factory, one_thread) -> dict[str, Path]:
    """The dataset with its work folder after each command; `train` selects and reports."""
    root = tmp_path_factory.mktemp("changed")
    (root / "recipe.yaml").write_text(RECIPE)
    folder = root / "set"
    write_tiny_dataset(folder, slices_mm=(3.0,))
    (folder / "splits_final.json").write_text(json.dumps(FOLDS))
    kept = {}
    for name, command in (("planned", make_plan), ("preprocessed", do_preprocess), ("trained", do_train)):
        command(folder)
        kept[name] = shutil.copytree(folder, root / name, copy_function=shutil.copy2)
    return kept


def outcome(verb: Callable[[], object], says: str, expected: object, log: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Refused, named, equal to the expected result, or silent; and what was said."""
    log.clear()
    try:
        result = verb()
    except AutoSegError as error:
        return "refused" if says in str(error) else "silent", str(error)
    page = result if isinstance(result, str) else ""
    said = page + " ".join(entry.getMessage() for entry in log.records if entry.levelno >= logging.WARNING)
    if result == expected:
        return "equal", said
    return "named" if says in said else "silent", said


@pytest.mark.parametrize(("stage", "verb"), VERBS)
def test_no_change_is_used_silently(stages, tmp_path, caplog, capsys, stage, verb):
    command = VERBS[stage, verb]
    expected = command(copied(stages[stage], tmp_path / "expected"))
    counts, silent = Counter[str](), []
    for what, (change, says) in STAGES[stage].items():
        folder = copied(stages[stage], tmp_path / "changed")
        change(folder)
        if what in TAKEN_UP.get(verb, ()):
            kind, said = "redone" if command(folder)[1] else "silent", "unlike a fresh result"
        else:
            must_say = what in RAW and what != "a new case" and verb in SAY_SO
            kind, said = outcome(partial(command, folder), says, None if must_say else expected, caplog)
        counts[kind] += 1
        silent += [f"{what}: {said}"] if kind == "silent" else []
    with capsys.disabled():
        sys.stdout.write(f"\n{stage}, then {verb}: {sum(counts.values())} changes, {dict(counts)}\n")
    assert not silent


def copied(source: Path, target: Path) -> Path:
    """A copy beside a recipe, with the same name as the dataset that was planned."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(source.parent / "recipe.yaml", target)
    return shutil.copytree(source, target / "set", copy_function=shutil.copy2)
