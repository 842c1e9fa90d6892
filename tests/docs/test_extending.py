"""The examples of `docs/extending.md` are kinds like those that are there: they satisfy the same laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.augmentation.kinds import TRANSFORMS, make_augmentation
from autoseg.augmentation.pipeline import Sample
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.images.normalize import NORMALIZATIONS
from autoseg.networks.kinds import NETWORKS
from autoseg.planning.presets import load_preset
from autoseg.training.callbacks.base import RunContext
from autoseg.training.callbacks.history import read_history
from autoseg.training.callbacks.kinds import CALLBACKS, make_callbacks
from autoseg.training.recipe import Recipe
from tests.docs.markdown import blocks
from tests.preprocessing.tiny_dataset import write_tiny_dataset
from tests.training.tiny_training import RECIPE, fresh_state, train


@pytest.fixture(scope="module")
def examples(repository):
    """Everything that the Python blocks of the page define."""
    names: dict[str, object] = {}
    found = [block for block in blocks(repository / "docs" / "extending.md") if block.language == "python"]
    assert len(found) == 5
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
    from autoseg.api.plan import plan_dataset
    from autoseg.planning.planner import PlanOptions

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
