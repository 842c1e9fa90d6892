"""Which runs a path stands for, and arrays in, label maps out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import autoseg
from autoseg.api.model import find_model, load_model
from autoseg.core.errors import IntegrityRefusal, MissingInput, PlanFault, UsageError
from autoseg.core.records import load, save
from autoseg.core.workspace import Workspace
from autoseg.inference.predictor import Predictor
from autoseg.models.model import make_ensemble, round_convolutions
from autoseg.runs.run import RunRecord
from tests.runs.trained import add_run, tiny_plan, trained_work_folder, write_weights


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) + 5


def loaded_predictor(work):
    return make_ensemble(find_model(work), "cpu").members[0].predictor


def chosen(files):
    return files.record.members[0].configuration.name


@pytest.fixture
def work(tmp_path):
    return trained_work_folder(tmp_path)


def test_dataset_work_folder_and_run_lead_to_the_same_model(work):
    by_work, by_dataset = find_model(work), find_model(work.parent)
    assert by_work.record.members[0].folds == by_dataset.record.members[0].folds == (0, 1)
    alone = find_model(work / "runs" / "3d_fullres" / "fold_1")
    assert (alone.record.members[0].folds, alone.record.members[0].configuration.name) == ((1,), "3d_fullres")


def test_what_was_not_trained_is_refused_with_what_was(work, tmp_path):
    with pytest.raises(UsageError, match="2d is not trained") as error:
        find_model(work, "2d")
    assert "3d_fullres" in (error.value.do or "")
    with pytest.raises(UsageError, match="fold 4"):
        find_model(work, folds=(0, 4))
    with pytest.raises(MissingInput, match="no file or folder"):
        find_model(tmp_path / "nowhere")


def test_the_configuration_is_3d_fullres_or_else_the_best(tmp_path):
    work, plan = tmp_path / "work", tiny_plan()
    add_run(work, plan, "2d", 0, dice=0.8)
    assert "only" in find_model(work).record.because
    add_run(work, plan, "3d_lowres", 0, dice=0.9)
    best = find_model(work)
    assert (chosen(best), "0.900" in best.record.because) == ("3d_lowres", True)
    add_run(work, plan, "3d_fullres", 0, dice=0.1)
    assert chosen(find_model(work)) == "3d_fullres"
    assert chosen(find_model(work, "2d")) == "2d"


def test_patches_stand_in_for_a_validation_that_is_not_there_yet(tmp_path):
    work, plan = tmp_path / "work", tiny_plan()
    add_run(work, plan, "2d", 0, dice=None)
    add_run(work, plan, "3d_lowres", 0, dice=0.05)
    assert chosen(find_model(work)) == "2d"


def test_folds_of_different_plans_are_not_averaged(work):
    plan = tiny_plan()
    other = replace(plan, axis_order=(2, 1, 0))
    save(other, work / "runs" / "3d_fullres" / "fold_1" / "plan.json")
    with pytest.raises(PlanFault, match="another plan"):
        find_model(work)
    assert find_model(work, folds=(1,)).record.members[0].folds == (1,)


def test_a_run_whose_plan_lacks_its_configuration_is_refused(work):
    plan = tiny_plan()
    for fold in (0, 1):
        save(replace(plan, configurations={}), work / "runs" / "3d_fullres" / f"fold_{fold}" / "plan.json")
    with pytest.raises(PlanFault, match="no configuration"):
        find_model(work)


def test_the_name_changes_with_the_weights(work):
    before = find_model(work)
    write_weights(Workspace(work).run("3d_fullres", 0), before.record.plan, "3d_fullres", seed=9)
    assert find_model(work).record.name != before.record.name


def test_weights_of_another_network_are_refused(work):
    write_weights(Workspace(work).run("3d_fullres", 0), tiny_plan(), "2d", seed=0)
    files = find_model(work)
    with pytest.raises(IntegrityRefusal, match="do not belong"):
        make_ensemble(files, "cpu")


@pytest.mark.parametrize("trained", ["fp32", "bf16", "fp16"])
def test_prediction_has_no_fewer_digits_than_training_and_its_own_memory_format(work, trained):
    recipe = Workspace(work).run("3d_fullres", 0).recipe
    record = load(RunRecord, recipe)
    found = []
    for layout, device in (("contiguous", "cuda"), ("channels_last", "cpu")):
        save(replace(record, memory_format=layout, device=device, precision=trained), recipe)
        own = loaded_predictor(work)
        assert own.dtype in (torch.float32, *([torch.bfloat16] if trained == "bf16" else []))
        found.append((own.dtype, own.channels_last))
    assert found[0] == found[1]  # where it was trained does not matter


def test_arrays_in_label_values_of_the_files_out(work):
    model = autoseg.load_model(work, device="cpu")
    image = noise(6, 14, 17)
    labels = model.predict(image, spacing_mm=(3.0, 0.8, 0.9))
    assert labels.shape == image.shape
    assert set(np.unique(labels)) <= {0, 100, 200}
    assert len(np.unique(labels)) > 1
    assert model.classes == {"background": (0,), "liver": (100,), "tumor": (200,)}
    assert np.array_equal(labels, model.predict(image[None].astype(np.float64), (3.0, 0.8, 0.9)))
    assert model.plan.dataset == "tiny"


def test_folds_can_be_chosen(work):
    image = noise(6, 14, 17)
    labels = [load_model(str(work), folds=folds, device="cpu").predict(image, (2, 1, 1)) for folds in ([0], [1], None)]
    assert not np.array_equal(labels[0], labels[1])
    assert not np.array_equal(labels[0], labels[2])


@pytest.mark.parametrize(("shape", "spacing"), [((8, 8), (1, 1, 1)), ((2, 8, 8, 8), (1, 1, 1)), ((8, 8, 8), (1, 1))])
def test_arrays_of_another_kind_are_refused(work, shape, spacing):
    with pytest.raises(UsageError, match="shape"):
        load_model(work, device="cpu").predict(np.zeros(shape), spacing)


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_that_are_rounded_beforehand_give_the_same_logits(name, dtype):
    plan = tiny_plan(channels=2)
    networks = [plan.build_network(name) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    round_convolutions(networks[1], dtype)
    kinds = {kind.weight.dtype for kind in networks[1].modules() if isinstance(kind, torch.nn.Conv2d | torch.nn.Conv3d)}
    assert kinds == {dtype}
    plain, rounded = (
        Predictor((network,), plan.configurations[name], plan.labels.head_count, (0, 1), dtype=dtype)
        for network in networks
    )
    image = noise(2, 9, 10, 11)
    assert np.array_equal(rounded.logits(image), plain.logits(image))


def test_a_2d_configuration_segments_volumes_and_pictures(tmp_path):
    work = trained_work_folder(tmp_path, tiny_plan(channels=2), "2d", (0,))
    model = load_model(work, device="cpu")
    assert model.predict(noise(2, 5, 9, 10), (4.0, 1.0, 1.0)).shape == (5, 9, 10)
    assert model.predict(noise(2, 1, 9, 10), (999.0, 1.0, 1.0)).shape == (1, 9, 10)
