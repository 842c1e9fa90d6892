"""A kind of network is one entry: a toy that is no U-Net goes the whole way from a preset to a prediction."""

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.api.model import load_model
from autoseg.api.plan import plan_dataset
from autoseg.core.errors import RecordFault, UsageError
from autoseg.core.records import from_data, from_json, load, record, to_data, to_json
from autoseg.core.workspace import Workspace
from autoseg.networks.kinds import NETWORKS
from autoseg.networks.spec import Dimensions, NetworkSpec
from autoseg.planning.plan import Configuration, Plan
from autoseg.planning.planner import PlanOptions
from autoseg.runs.queue import TrainOptions
from autoseg.runs.train import train_queue
from tests.planning.builders import fingerprint_of, plan_of
from tests.preprocessing.tiny_dataset import SHAPE, write_tiny_dataset
from tests.runs.trained import never

PRESET = """
description: patches through one layer
network: toy
width: 6
reference_elements_2d: 200000
reference_elements_3d: 200000
reference_batch_2d: 2
reference_batch_3d: 2
reference_memory_gib: 8
default_memory_gib: 8
fits_at_batch: null
dataset_share: 1.0
largest_batch_2d: 4
largest_batch_3d: 2
guarded: true
mirrored_dimensions: [2, 3]
"""


class Toy(nn.Module):
    """Embeds every patch of 4 voxels and turns it back into voxels; it has one output, whatever is asked for."""

    def __init__(self, dimensions: int, channels: int, width: int, heads: int) -> None:
        super().__init__()
        down, up = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}[dimensions]
        self.down, self.up = down(channels, width, 4, 4), up(width, heads, 4, 4)

    def forward(self, image: torch.Tensor, deep_supervision: bool = False) -> torch.Tensor | list[torch.Tensor]:
        logits = self.up(torch.relu(self.down(image)))
        return [logits] if deep_supervision else logits


@record
class ToyOptions:
    width: int


@record
class ToySpec(NetworkSpec):
    Options: ClassVar[type] = ToyOptions
    decisions: ClassVar[dict[str, str]] = {"width": "the preset's width of {spec.width}"}

    kind: Literal["toy"] = field(default="toy", kw_only=True)
    dimensions: Dimensions
    width: int

    @classmethod
    def for_patch(cls, options, spacing_mm, patch_size):  # noqa: ARG003 - this kind suits any patch
        return cls(dimensions=len(spacing_mm), width=options.width)

    @property
    def total_stride(self) -> tuple[int, ...]:
        return (4,) * self.dimensions

    def feature_map_elements(self, patch_size: Sequence[int], declared_labels: int) -> int:
        return math.prod(patch_size) * (self.width + declared_labels)

    def prediction_elements(self, patch_size: Sequence[int]) -> int:
        return math.prod(patch_size) * self.width

    def build(self, in_channels: int, heads: int) -> nn.Module:
        return Toy(self.dimensions, in_channels, self.width, heads)


@pytest.fixture
def preset(monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, "toy", ToySpec)
    (tmp_path / "toy.yaml").write_text(PRESET)
    return str(tmp_path / "toy.yaml")


@pytest.mark.usefixtures("one_thread")
def test_a_toy_plans_trains_and_predicts(preset, tmp_path):
    write_tiny_dataset(tmp_path / "data")
    workspace = Workspace(tmp_path / "work")
    plan = plan_dataset(tmp_path / "data", workspace, PlanOptions(preset), jobs=1).plan
    own = plan.configurations["3d_fullres"]
    assert (own.network, own.patch_size, own.network.description) == (ToySpec(3, 6), (8, 12, 12), "toy")
    assert load(Plan, workspace.plan) == plan
    document = plan.document()["configurations"]["3d_fullres"]
    assert (document["network"], document["width"], "features_per_stage" in document) == ("toy", 6, False)
    (tmp_path / "short.yaml").write_text("epochs: 1\nsteps_per_epoch: 1\nvalidation_steps: 1\n")
    options = TrainOptions(
        configurations=("3d_fullres",),
        folds=(0,),
        device="cpu",
        recipe=str(tmp_path / "short.yaml"),
        started=time.monotonic(),
    )
    report = train_queue(workspace, options, never)
    assert [(result.state, result.run.status.validated_cases) for result in report.results] == [("done", 1)]
    model = load_model(workspace.root)
    predicted = model.predict(np.zeros((1, *SHAPE), np.float32), (3.0, 1.0, 1.0))
    assert predicted.shape == SHAPE


def test_a_patch_shrinks_by_what_the_kind_divides_it_by(preset):
    own = plan_of(fingerprint_of([(1, 1, 1)] * 3, [(60, 61, 62)] * 3), preset).configurations["3d_fullres"]
    assert own.estimated_feature_map_elements <= 200_000 < math.prod((60, 64, 64)) * 8
    assert all(edge % 4 == 0 and edge > 0 for edge in own.patch_size)


def test_fields_of_a_kind_can_be_pinned(preset):
    fingerprint = fingerprint_of([(1, 1, 1)] * 3, [(20, 20, 20)] * 3)
    plan = plan_of(fingerprint, preset, pins={"3d_fullres": {"width": 9}})
    assert [own.network.width for own in plan.configurations.values()] == [6, 9]
    reasons = [entry.because for entry in plan.decisions if entry.name == "width"]
    assert reasons == ["the preset's width of 6", "set by the user; the rule chose 6 (the preset's width of 6)"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("network: toi", "unknown network 'toi'; did you mean toy"),
        ("wdth: 3", "options.*wdth: unknown entry"),
        ("width: wide", "options.*width: .*integer"),
        ("guarded: 3", "guarded: .*found 3"),
    ],
)
def test_what_is_wrong_in_a_preset_is_named_before_anything_is_planned(preset, tmp_path, wrong, message):
    right = [line for line in PRESET.splitlines() if line.split(":")[0] != wrong.split(":")[0]]
    (tmp_path / "wrong.yaml").write_text("\n".join([*right, wrong]))
    with pytest.raises(RecordFault, match=message):
        plan_of(fingerprint_of([(1, 1, 1)], [(20, 20, 20)]), str(tmp_path / "wrong.yaml"))


def test_what_is_wrong_in_a_preset_is_named_before_images_are_examined(tmp_path):
    write_tiny_dataset(tmp_path / "data")
    workspace = Workspace(tmp_path / "work")
    with pytest.raises(UsageError, match="unknown preset"):
        plan_dataset(tmp_path / "data", workspace, PlanOptions("refrence"), jobs=1)
    assert not workspace.check.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"kind": "plain_unit"}}, "unknown network 'plain_unit'; did you mean plain_unet"),
        ({"network": 5}, "kind"),
        ({"normalization": ["zscor"]}, "unknown normalization 'zscor'; did you mean zscore"),
        ({"patch_size": [9, 8]}, "stride"),
        ({"spacing_mm": [1.0]}, "spacing_mm"),
        ({"mirror_axes": [2]}, "mirror_axes"),
        ({"batch_size": 0}, "batch_size"),
        ({"batches": 3}, "batches: unknown entry"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named_when_it_is_read(changes, message):
    own = plan_of(fingerprint_of([(1, 1, 1)] * 2, [(20, 20, 20)] * 2)).configurations["2d"]
    assert from_json(Configuration, to_json(own), "plan") == own
    with pytest.raises(RecordFault, match=message):
        from_data(Configuration, {**to_data(own), **changes}, "plan")


def test_planning_imports_no_torch():
    code = "import sys, autoseg.api.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
