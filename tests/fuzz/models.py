"""Targets: weights and models, our own and nnU-Net's."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from autoseg.api.model import find_model
from autoseg.core.records import read_table
from autoseg.core.workspace import Workspace
from autoseg.models.bundle import find_bundle_model, write_bundle
from autoseg.networks.weights import newest_intact, newest_weights, weights_hash
from autoseg.nnunet import checkpoint_child
from autoseg.nnunet.folders import choose_folders, looks_like_nnunet, trained_folders, unpack
from autoseg.nnunet.plans import read_nnunet_plans
from autoseg.planning.plan import Plan
from autoseg.runs.run import trained_runs
from autoseg.training.checkpoint import restore, save_checkpoint
from tests.fuzz.records import files_in, made, sound_plan
from tests.fuzz.target import Files, Target, Trial
from tests.models.hostile import assemble, parts_of, rehashed, with_text
from tests.nnunet.trained_models import REGIONS, TINY
from tests.nnunet.written_checkpoints import content, nnunet_state
from tests.runs.trained import add_run, add_selection, cascade_plan, tiny_plan, trained_work_folder
from tests.training.tiny_training import SPEC, fresh_state

# --- bundles -------------------------------------------------------------------------------------------------------
_BUNDLE = "x.autoseg"
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a file raises that is too broken for its checksums to be made right."""


def _bundle_seeds() -> list[Files]:
    def one(folder: Path) -> None:
        folder.mkdir()
        with tempfile.TemporaryDirectory() as name:
            write_bundle(folder / _BUNDLE, find_model(trained_work_folder(Path(name))))

    return made(one)


def _rehashed(files: Files) -> Files:
    """The bundle with the right hashes of its record and of its tensors, as far as it still has them."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / _BUNDLE
        path.write_bytes(files[_BUNDLE])
        try:
            header, data = parts_of(path)
            text = str(next(iter(header["__metadata__"].values())))
            header = with_text(header, text)
            with contextlib.suppress(*_BROKEN):
                header = rehashed(header, data)
            assemble(path, header, data)
        except (*_BROKEN, StopIteration, struct.error):
            return files
        return {_BUNDLE: path.read_bytes()}


def _verified(folder: Path) -> Any:
    found = find_bundle_model(folder / _BUNDLE)
    found.verify()
    return found


# --- work folders and checkpoints ----------------------------------------------------------------------------------
def _work_seeds() -> list[Files]:
    def selected(folder: Path) -> None:
        plan = cascade_plan()
        for name in ("3d_lowres", "3d_cascade_fullres"):
            add_run(folder, plan, name, 0, 0.5)
        add_selection(folder, plan, {"3d_cascade_fullres": 1}, (0,))

    def trained(folder: Path) -> None:
        for fold in (0, 1):
            add_run(folder, tiny_plan(), "2d", fold, 0.4, fold)

    return made(selected, trained)


def _with_right_manifests(files: Files) -> Files:
    """Manifests of checkpoints with the hashes that their files have now."""
    repaired = dict(files)
    for name in files:
        if name.endswith("manifest.json"):
            folder = name.removesuffix("manifest.json")
            own = [other for other in files if other.startswith(folder) and other != name]
            hashes = {other.removeprefix(folder): hashlib.sha256(files[other]).hexdigest() for other in own}
            repaired[name] = json.dumps({"sha256": hashes}).encode()
    return repaired


def _found_in_work(folder: Path) -> Any:
    """A model as predict finds it; what is known about runs; the weights."""
    for own in trained_runs(Workspace(folder)).values():
        for run in own.values():
            _ = run.stage, run.status, run.scores, run.is_done
    found = find_model(folder)
    found.verify()
    return found


def _checkpoint_seeds() -> list[Files]:
    def write(folder: Path) -> None:
        state = fresh_state()
        save_checkpoint(state, folder)
        state.step += 1
        save_checkpoint(state, folder)

    return made(write)


def _restored(folder: Path) -> Any:
    return weights_hash(folder), newest_weights(folder), restore(fresh_state(), folder), newest_intact(folder)


# --- nnU-Net -------------------------------------------------------------------------------------------------------
def _nnunet_plans_seeds() -> list[Files]:
    models = sorted(path.parent for root in (TINY, REGIONS) for path in root.glob("*__*/plans.json"))
    return [{name: (model / name).read_bytes() for name in ("plans.json", "dataset.json")} for model in models]


def _nnunet_plan(folder: Path) -> Plan:
    plans, dataset = read_table(folder / "plans.json"), read_table(folder / "dataset.json")
    names = plans.get("configurations")
    return read_nnunet_plans(plans, dataset, tuple(names)[:2] if isinstance(names, dict) else ("3d_fullres",))


def _nnunet_folder_seeds() -> list[Files]:
    models = [{"selected_model_or_models": [{"trainer": "T", "plans_identifier": "P", "configuration": "2d"}]}]
    files: Files = {"inference_information.json": json.dumps({"best_model_or_ensemble": models[0]}).encode()}
    for configuration in ("2d", "3d_fullres"):
        files |= {f"T__P__{configuration}/{name}": b"{}" for name in ("plans.json", "fold_0/checkpoint_final.pth")}
    return [files]


def _chosen(folder: Path) -> Any:
    return choose_folders(trained_folders(folder), None, folder)


def _zip_seeds() -> list[Files]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, text in _nnunet_folder_seeds()[0].items():
                archive.writestr(f"Dataset001_X/{name}", text)
        seeds.append({"x.zip": stream.getvalue()})
    return seeds


def _unpacked(folder: Path) -> Any:
    target = folder / "unpacked"
    target.mkdir()
    if looks_like_nnunet(folder / "x.zip"):
        unpack(folder / "x.zip", target)
    return files_in(target)


def _pth_seeds() -> list[Files]:
    torch.manual_seed(0)
    stream = io.BytesIO()
    torch.save(content(nnunet_state(SPEC.build(1, 3))), stream)
    return [{"x.pth": stream.getvalue()}]


def _with_right_checksums(files: Files) -> Files:
    """A checkpoint whose pickle is changed here, inside its zip, so that every checksum is right."""
    name = next(iter(files))
    draw = random.Random(zlib.crc32(files[name]))
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_pth_seeds()[0]["x.pth"])) as archive, zipfile.ZipFile(stream, "w") as changed:
        for member in archive.namelist():
            data = bytearray(archive.read(member))
            if member.endswith("data.pkl"):
                for _ in range(draw.choice((1, 1, 2, 4))):
                    data[draw.randrange(len(data))] = draw.choice((0, 255, draw.randrange(256), draw.choice(data)))
            changed.writestr(member, bytes(data))
    return {name: stream.getvalue()}


def _converted(folder: Path) -> Any:
    """As the process that opens a checkpoint does; whatever it raises ends that process with a reason."""
    return checkpoint_child.convert(str(folder / "x.pth"), str(folder / "weights.safetensors"))


def _table_of_plain_values(_trial: Trial, found: Any) -> str | None:
    is_plain = isinstance(found["trainer"], str) and isinstance(found["configuration"], str)
    return None if is_plain else "gives a name that is no text"


MODEL_TARGETS = (
    Target("bundle", _bundle_seeds, _verified, repair=_rehashed, weight=3),
    Target(
        "work folder",
        _work_seeds,
        _found_in_work,
        changed=("*.json", "*.safetensors"),
        repair=_with_right_manifests,
        weight=2,
    ),
    Target("checkpoint", _checkpoint_seeds, _restored, repair=_with_right_manifests, weight=2),
    Target("nnU-Net plans", _nnunet_plans_seeds, _nnunet_plan, sound_plan, weight=3),
    Target("nnU-Net choice", _nnunet_folder_seeds, _chosen, changed=("*information.json",)),
    Target("nnU-Net zip", _zip_seeds, _unpacked, weight=2),
    Target(
        "nnU-Net checkpoint",
        _pth_seeds,
        _converted,
        _table_of_plain_values,
        repair=_with_right_checksums,
        refusals=(Exception, SystemExit),
        weight=2,
    ),
)
