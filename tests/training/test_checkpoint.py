from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoseg.core.errors import IntegrityRefusal, Interrupted, MissingInput, TrainingStopped
from autoseg.core.files import TEMPORARY_MARK, sha256_of_file
from autoseg.networks import weights
from autoseg.networks.weights import (
    AVERAGED_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    generations,
    newest_intact,
    newest_weights,
)
from autoseg.training.checkpoint import OPTIMIZER_FILE, restore, save_checkpoint
from autoseg.training.step import TrainingState
from tests.training.tiny_training import RECIPE, Calls, fresh_state, same_weights, train, train_in_folder

LONG = replace(RECIPE, epochs=12)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw"}, {"optimizer": "muon"}, {"ema_decay": 0.0, "lr_update": "epoch"}]
)
@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int, changes: dict[str, object]) -> None:
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    whole = train(fresh_state(recipe), recipe)

    def stop_there(state: TrainingState) -> None:
        if state.step == stop:
            raise Interrupted("stopped")

    first = fresh_state(recipe)
    with pytest.raises(Interrupted):
        train(first, recipe, callbacks=(Calls(stop_there),))
    save_checkpoint(first, tmp_path)
    torch.manual_seed(99)
    second = fresh_state(recipe)
    restore(second, tmp_path)
    resumed = train(second, recipe, threads=2)
    assert same_weights(whole, resumed)
    assert (whole.ema_dice, whole.epoch, whole.step) == (resumed.ema_dice, resumed.epoch, resumed.step)


def test_a_run_killed_again_and_again_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, torch; sys.path.insert(0, sys.argv[2]); torch.set_num_threads(1)\n"
        "from dataclasses import replace; from tests.training.tiny_training import RECIPE, train_in_folder\n"
        "print('ready', flush=True)\n"
        "train_in_folder(pathlib.Path(sys.argv[1]), replace(RECIPE, epochs=12), threads=1)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[2])]
    for delay in (0.1, 0.25, 0.4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
    torch.set_num_threads(1)
    assert same_weights(train_in_folder(tmp_path, LONG), train(fresh_state(LONG), LONG))


def test_two_generations_are_kept_and_nothing_else(tmp_path: Path) -> None:
    state = train_in_folder(tmp_path)
    assert [path.name for path in generations(tmp_path)] == ["00000002", "00000003"]
    assert not list(tmp_path.glob(f"{TEMPORARY_MARK}*"))
    weights = newest_weights(tmp_path)
    assert state.averaged is not None
    assert all(torch.equal(weights[name], value) for name, value in state.averaged.state_dict().items())


@pytest.mark.parametrize("name", [WEIGHTS_FILE, AVERAGED_FILE, "optimizer.safetensors", "state.json", MANIFEST_FILE])
@pytest.mark.parametrize("kind", ["cut", "flipped", "missing"])
def test_a_damaged_generation_falls_back_to_the_one_before(
    tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    train_in_folder(tmp_path)
    path = generations(tmp_path)[-1] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if kind == "flipped" else content[: len(content) // 2])
    state = fresh_state()
    assert restore(state, tmp_path).name == "00000002"
    assert state.epoch == 2
    assert len(caplog.records) == 1
    assert newest_weights(tmp_path)


def test_no_intact_generation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        newest_weights(tmp_path / "nothing")
    train_in_folder(tmp_path)
    for generation in generations(tmp_path):
        (generation / MANIFEST_FILE).write_text(json.dumps({"sha256": {"../x": "0"}}))
    with pytest.raises(IntegrityRefusal, match="no checkpoint is intact"):
        newest_weights(tmp_path)


def test_checkpoints_of_older_versions_go_on_where_they_were(tmp_path: Path) -> None:
    """They called the schedule's segment "horizon" and kept the best weights apart."""
    whole = train(fresh_state())

    def stop_at_six(state: TrainingState) -> None:
        if state.step == 6:
            raise Interrupted("stopped")

    first = fresh_state()
    with pytest.raises(Interrupted):
        train(first, callbacks=(Calls(stop_at_six),))
    generation = save_checkpoint(first, tmp_path)
    saved = json.loads((generation / "state.json").read_text())
    saved["horizon"], saved["best_dice"] = saved.pop("segment"), 0.5
    (generation / "state.json").write_text(json.dumps(saved))
    manifest = json.loads((generation / MANIFEST_FILE).read_text())
    manifest["sha256"]["state.json"] = sha256_of_file(generation / "state.json")
    (generation / MANIFEST_FILE).write_text(json.dumps(manifest))
    (tmp_path / "best" / "00000007").mkdir(parents=True)
    second = fresh_state()
    assert restore(second, tmp_path) == generation
    assert (second.step, second.segment, second.losses) == (6, first.segment, first.losses)
    assert same_weights(whole, train(second))
    assert newest_weights(tmp_path)


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    state = fresh_state()
    save_checkpoint(state, tmp_path)
    next(state.network.parameters()).data[0] = float("nan")
    with pytest.raises(TrainingStopped, match="not finite"):
        save_checkpoint(state, tmp_path)
    assert len(generations(tmp_path)) == 1


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = fresh_state()
    save_checkpoint(state, tmp_path)
    state.network.add_module("extra", torch.nn.Linear(1, 1))
    with pytest.raises(IntegrityRefusal, match="do not fit"):
        restore(state, tmp_path)


def test_the_loss_scale_is_restored(tmp_path: Path) -> None:
    state = fresh_state()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    save_checkpoint(state, tmp_path)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    restore(state, tmp_path)
    assert state.scaler.get_scale() == 8.0


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an earlier one would predict, without a word, because the disk failed once."""
    state = fresh_state()
    for _ in range(2):
        save_checkpoint(state, tmp_path)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(weights, "sha256_of_file", refuse)
    with pytest.raises(PermissionError):
        newest_weights(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a\0b", "", "C:evil"])
def test_a_manifest_that_names_what_is_no_file_of_its_folder_is_refused(tmp_path, name):
    generation = save_checkpoint(fresh_state(), tmp_path)
    manifest = generation / "manifest.json"
    hashes = json.loads(manifest.read_text())["sha256"]
    manifest.write_text(json.dumps({"sha256": {**hashes, name: "0" * 64}}))
    with pytest.raises(IntegrityRefusal, match="no checkpoint is intact"):
        newest_intact(tmp_path)


@pytest.mark.parametrize("fault", ["no random state", "another random state", "another shape", "no parameter"])
def test_an_optimizer_of_something_else_is_refused(tmp_path: Path, fault: str) -> None:
    state = train(fresh_state(RECIPE), RECIPE)
    save_checkpoint(state, tmp_path)
    generation = newest_intact(tmp_path)
    file = generation / OPTIMIZER_FILE
    tensors = load_file(file)
    momentum = next(key for key, tensor in tensors.items() if tensor.ndim > 1)
    if fault == "no random state":
        del tensors["random"]
    elif fault == "another random state":
        tensors["random"] = tensors["random"][:-1].clone()
    elif fault == "another shape":
        tensors[momentum] = tensors[momentum].flatten()
    else:
        tensors["999.momentum_buffer"] = tensors[momentum].clone()
    save_file(tensors, file)
    manifest = json.loads((generation / MANIFEST_FILE).read_text())
    manifest["sha256"][OPTIMIZER_FILE] = sha256_of_file(file)
    (generation / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityRefusal, match="optimizer"):
        restore(fresh_state(RECIPE), tmp_path)
