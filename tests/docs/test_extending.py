"""The examples of `docs/extending.md` are kinds like those that are there: they satisfy the same laws."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.api.evaluate import evaluate, write_evaluation
from autoseg.api.plan import plan_dataset
from autoseg.augmentation.kinds import TRANSFORMS, make_augmentation
from autoseg.augmentation.pipeline import Sample
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.geometry import Geometry
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.check import check_case
from autoseg.data.layouts.detect import LAYOUTS, detect_dataset
from autoseg.data.model import LabelSet
from autoseg.evaluation.metrics import COUNT_METRICS, METRICS
from autoseg.images.formats.files import FORMATS
from autoseg.images.normalize import NORMALIZATIONS
from autoseg.images.writers import write_labels
from autoseg.inference.postprocessing import POSTPROCESSING, PostprocessingStep, postprocess
from autoseg.networks.kinds import NETWORKS
from autoseg.planning.planner import PlanOptions
from autoseg.planning.presets import load_preset
from autoseg.runs.executors.executor import EXECUTORS
from autoseg.runs.queue import TrainOptions
from autoseg.runs.train import train_queue
from autoseg.training.callbacks.base import RunContext
from autoseg.training.callbacks.history import read_history
from autoseg.training.callbacks.kinds import CALLBACKS, make_callbacks
from autoseg.training.losses import LOSSES, make_objective, region_masks
from autoseg.training.recipe import Recipe
from tests.docs.markdown import blocks
from tests.preprocessing.tiny_dataset import write_tiny_dataset, write_volume
from tests.runs.trained import never
from tests.training.tiny_training import RECIPE, fresh_state, train


@pytest.fixture(scope="module")
def examples(repository):
    """Everything that the Python blocks of the page define."""
    names: dict[str, object] = {}
    found = [block for block in blocks(repository / "docs" / "extending.md") if block.language == "python"]
    assert len(found) == 11
    for block in found:
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
    return names


def test_the_normalization_gives_zero_to_one_and_survives_a_constant_image(examples):
    normalize = examples["percentiles"]
    image = np.random.default_rng(0).normal(50, 20, (4, 5, 6)).astype(np.float32)
    before = image.copy()
    result = normalize(image, None, None)
    assert (result.min(), result.max()) == (0, 1)
    assert result.dtype == np.float32
    assert (image == before).all()
    assert np.isfinite(normalize(np.full((2, 2, 2), 7, np.float32), None, None)).all()
    mask = image > 60
    assert not np.array_equal(normalize(image, mask, None), result)


def test_a_new_normalization_can_be_pinned_and_is_planned(examples, monkeypatch, tmp_path):
    monkeypatch.setitem(NORMALIZATIONS, "percentiles", examples["percentiles"])
    write_tiny_dataset(tmp_path / "data")
    pins = tmp_path / "pins.yaml"
    pins.write_text("normalization: [percentiles]\n")
    planned = plan_dataset(tmp_path / "data", Workspace(tmp_path / "work"), PlanOptions(pins=pins), jobs=1)
    assert planned.plan.configurations["3d_fullres"].normalization == ("percentiles",)


def test_the_transform_makes_holes_that_depend_on_the_generator_alone(examples, monkeypatch):
    monkeypatch.setitem(TRANSFORMS, "hole", examples["Hole"])
    spec = AugmentationSpec((8, 8), (8, 8), 0.0, False, (), ())
    image, labels = torch.randn(40, 1, 8, 8), torch.zeros(40, 8, 8, dtype=torch.int16)
    augment = make_augmentation(Recipe(augmentation=({"name": "hole"},)).augmentation)
    first, second = (augment(image, labels, spec, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert first[0].shape == image.shape
    assert 0.02 < (first[0] != image).flatten(1).any(1).float().mean().item() < 0.6
    hole = torch.zeros(1, 8, 8)
    hole[0, 0, 0] = 64.0
    examples["Hole"]().apply(Sample(hole, labels[0]), (4, 4), spec)
    assert torch.equal(hole[0, 4:6, 4:6], torch.ones(2, 2))
    assert hole.count_nonzero() == 5


def test_the_callback_writes_a_line_per_epoch(examples, monkeypatch, tmp_path):
    monkeypatch.setitem(CALLBACKS, "table", examples["Table"])
    recipe = replace(RECIPE, callbacks=("table",))
    run = RunContext("a run", RunFolder(tmp_path), ("cell", "core"), lambda: 1.0, lambda: None)
    train(fresh_state(recipe), recipe, callbacks=make_callbacks(recipe.callbacks, run))
    assert len((tmp_path / "table.csv").read_text().splitlines()) == recipe.epochs
    assert len(read_history(tmp_path / "history.jsonl")) == recipe.epochs


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_preset_can_name_the_network_and_it_answers_in_the_image_s_shape(
    examples, monkeypatch, tmp_path, repository, dimensions
):
    monkeypatch.setitem(NETWORKS, "gated_unet", examples["GatedUNet"])
    text = (repository / "configs" / "presets" / "cpu.yaml").read_text()
    (tmp_path / "gated.yaml").write_text(text.replace("plain_unet", "gated_unet"))
    preset = load_preset(str(tmp_path / "gated.yaml"))
    spec, patch = preset.network_for_patch((1.0,) * dimensions, (9,) * dimensions)
    assert (spec.kind, spec.description, patch) == ("gated_unet", "gated unet 2 st. 16 ch.", (10,) * dimensions)
    network = spec.build(2, 3)
    image = torch.randn(1, 2, *patch)
    assert network(image).shape == (1, 3, *patch)
    assert [len(logits) for logits in network(image, deep_supervision=True)] == [1]
    network(image).sum().backward()
    assert network.encoder.gate.weight.grad is not None


def test_the_loss_falls_where_voxels_are_right_and_leaves_unlabeled_ones_out(examples, monkeypatch):
    monkeypatch.setitem(LOSSES, "focal", examples["focal"])
    assert Recipe(loss="focal").loss == "focal"
    labels = torch.randint(0, 2, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    right = 4 * torch.stack([1 - labels, labels], 1).float()
    classes = LabelSet({"background": (0,), "cell": (1,)}, ignore=2)
    objective = make_objective("focal", classes, False)
    assert objective(right, labels) < 0.01 < objective(-right, labels)
    regions = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, ignore=3, regions_class_order=(1, 2))
    nested = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(1))
    sure = 8 * region_masks(nested, regions).float() - 4
    objective_of_regions = make_objective("focal", regions, False)
    assert objective_of_regions(sure, nested) < 0.01 < objective_of_regions(-sure, nested)
    assert torch.isfinite(objective_of_regions(sure, torch.full_like(nested, 3)))
    unlabeled = labels.clone()
    unlabeled[0] = 2
    expected = objective(right[1:], labels[1:])
    assert torch.allclose(objective(torch.cat([-right[:1], right[1:]]), unlabeled), expected)


def test_the_metric_is_in_every_table_and_file(examples, monkeypatch, tmp_path):
    for table in (COUNT_METRICS, METRICS):
        monkeypatch.setitem(table, "sensitivity", examples["sensitivity"])
    reference = np.zeros((1, 4, 4), np.uint8)
    reference[0, :2] = 1
    predicted = reference.copy()
    predicted[0, 0] = 0
    for folder, array in (("predictions", predicted), ("references", reference)):
        write_volume(tmp_path / folder / "a.nii.gz", array)
    (tmp_path / "references" / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "x"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".nii.gz"})
    )
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "references", jobs=0)
    assert [scores["sensitivity"] for scores in evaluation.cases["a"].values()] == [0.5]
    assert evaluation.definitions["sensitivity"].startswith("|P and R|")
    _, table = write_evaluation(evaluation, tmp_path / "out")
    assert "sensitivity" in table.read_text().splitlines()[0]


def test_cases_in_folders_of_slices_are_recognized_checked_and_hashed(examples, monkeypatch, tmp_path):
    monkeypatch.setitem(LAYOUTS, "case_folders", examples["CASE_FOLDERS"])
    monkeypatch.setitem(FORMATS, "slices", examples["SLICES"])
    rng = np.random.default_rng(0)
    for index in range(3):
        case = tmp_path / "data" / f"case_{index}"
        labels = np.zeros((5, 12, 12), np.uint8)
        labels[1:4, 3:9, 3:9] = 1
        (case / "image.slices").mkdir(parents=True)
        for number, plane in enumerate((rng.normal(0, 1, labels.shape) + labels).astype(np.float32)):
            np.save(case / "image.slices" / f"{number:03d}.npy", plane)
        write_labels(case / "labels.nii.gz", labels, Geometry(labels.shape, (1.0, 1.0, 1.0)))
    dataset = detect_dataset(tmp_path / "data")
    assert dataset.layout == "case_folders"
    assert [case.images for case in dataset.cases] == [(f"case_{i}/image.slices",) for i in range(3)]
    found = check_case(dataset, dataset.cases[0])
    assert not found.is_refused
    changed = tmp_path / "data" / "case_0" / "image.slices" / "002.npy"
    np.save(changed, rng.normal(0, 1, (12, 12)).astype(np.float32))
    assert check_case(dataset, dataset.cases[0]).content != found.content
    np.save(changed, np.zeros((3, 3), np.float32))
    assert any("holds slices of 2 shapes" in own.what for own in check_case(dataset, dataset.cases[0]).problems)


def test_the_postprocessing_is_applied_and_has_a_title(examples, monkeypatch):
    monkeypatch.setitem(POSTPROCESSING, "border", examples["BORDER"])
    step = PostprocessingStep("border", ("cell",))
    assert step.title == "remove cell at the border of the image"
    labels = np.ones((4, 4, 4), np.uint8)
    cleaned = postprocess(labels, (step,), LabelSet({"background": (0,), "cell": (1,)}), (1.0, 1.0, 1.0))
    assert cleaned.sum() == 8
    assert cleaned[1:3, 1:3, 1:3].all()


@pytest.mark.usefixtures("one_thread")
def test_the_executor_trains(examples, monkeypatch, tmp_path):
    monkeypatch.setitem(EXECUTORS, "threads", examples["ThreadExecutor"])
    write_tiny_dataset(tmp_path / "data", 2, (3.0,))
    plan_dataset(tmp_path / "data", Workspace(tmp_path / "data" / "autoseg"), PlanOptions("cpu"))
    (tmp_path / "tiny.yaml").write_text("steps_per_epoch: 1\nvalidation_steps: 0\nepochs: 1\nprecision: fp32\n")
    options = TrainOptions(("3d_fullres",), recipe=str(tmp_path / "tiny.yaml"), device="cpu", executor="threads")
    report = train_queue(Workspace(tmp_path / "data" / "autoseg"), options, never)
    assert [result.state for result in report.results] == ["done", "done"]
