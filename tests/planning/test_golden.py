"""Our plans against those that nnU-Net 2.8.1 makes of the same fingerprints."""

import json
from pathlib import Path

import pytest

from autoseg.data.layouts.description import describe_nnunet
from autoseg.nnunet.plans import read_nnunet_fingerprint
from autoseg.planning.plan import Configuration, Plan
from autoseg.planning.planner import PlanOptions, make_plan
from tests.planning.builders import dataset_of

GENERATED = Path(__file__).parents[1] / "data" / "golden" / "generated"
NORMALIZATIONS = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_0_1",
}
PRESETS = {"plain": "reference", "resenc_m": "resenc-m", "resenc_l": "resenc-l", "resenc_xl": "resenc-xl"}
RELATIVE_TOLERANCE = 1e-9  # both sides compute in double precision, in a slightly different order


def planned(pair: dict) -> Plan:
    described = describe_nnunet(pair["dataset"], "dataset.json")
    dataset = dataset_of(described.channels, described.labels, described.file_ending)
    options = PlanOptions(PRESETS[pair["planner"]], pair["memory_gb"])
    return make_plan(dataset, read_nnunet_fingerprint(pair["fingerprint"]), options, described.announced_cases)


def assert_equal(own: Configuration, theirs: dict) -> None:
    approximately = {"rel": RELATIVE_TOLERANCE}
    assert list(own.patch_size) == theirs["patch_size"]
    assert own.batch_size == theirs["batch_size"]
    assert list(own.spacing_mm) == pytest.approx(theirs["spacing"], **approximately)
    assert list(own.median_shape) == pytest.approx(theirs["median_image_size_in_voxels"], **approximately)
    assert own.network.n_stages == theirs["n_stages"]
    assert list(own.network.features_per_stage) == theirs["features_per_stage"]
    assert [list(kernel) for kernel in own.network.kernel_sizes] == theirs["kernel_sizes"]
    assert [list(stride) for stride in own.network.strides] == theirs["strides"]
    assert list(own.network.blocks_per_stage) == theirs["blocks"]
    assert list(own.network.decoder_convs_per_stage) == theirs["decoder"]
    assert list(own.normalization) == [NORMALIZATIONS[name] for name in theirs["normalization_schemes"]]
    assert list(own.use_nonzero_mask) == theirs["use_mask_for_norm"]
    assert own.batch_dice == theirs["batch_dice"]
    assert own.cascade_from == theirs.get("previous_stage")


def check(path: Path) -> None:
    pair = json.loads(path.read_text())
    plan = planned(pair)
    assert list(plan.axis_order) == pair["plan"]["transpose_forward"]
    theirs = pair["plan"]["configurations"]
    assert set(plan.configurations) == set(theirs)
    for name, entry in theirs.items():
        assert_equal(plan.configurations[name], {**theirs.get(entry.get("inherits_from"), {}), **entry})


@pytest.mark.parametrize("path", sorted(GENERATED.glob("*.json")), ids=lambda path: path.stem)
def test_plan_equals_nnunets(path):
    check(path)


@pytest.mark.parametrize("folder", ["published", "shared_data"])
def test_plans_of_real_datasets_equal_nnunets(folder, shared):
    paths = sorted((shared / "golden" / folder).glob("*.json"))
    assert paths
    for path in paths:
        check(path)
