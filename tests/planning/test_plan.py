from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from autoseg.data.model import LabelSet
from autoseg.planning.plan import BYTES_PER_ELEMENT_IN, STEP_GIB
from tests.planning.builders import fingerprint_of, plan_of
from tests.runs.trained import tiny_plan


def test_a_cascade_gets_the_image_and_one_channel_per_value_of_the_first_stage():
    plan = tiny_plan(channels=2)
    cascade = replace(plan.configurations["3d_fullres"], name="3d_cascade_fullres", cascade_from="3d_lowres")
    plan = replace(plan, configurations={**plan.configurations, "3d_cascade_fullres": cascade})
    assert plan.input_channels("3d_fullres") == 2
    assert plan.input_channels("3d_cascade_fullres") == 4
    regions = LabelSet({"background": (0,), "whole": (1, 2, 3), "core": (3,)}, ignore=4, regions_class_order=(1, 3))
    assert replace(plan, labels=regions).input_channels("3d_cascade_fullres") == 5


@pytest.mark.parametrize("preset", ["reference", "resenc-m", "cpu"])
def test_every_preset_plans_cascades_whose_second_stage_sees_the_first(preset):
    plan = plan_of(fingerprint_of([(1.0, 1.0, 1.0)] * 9, [(300, 400, 420)] * 9), preset, memory_gib=4.0)
    assert plan.configurations["3d_cascade_fullres"].cascade_from == "3d_lowres"
    assert plan.input_channels("3d_lowres") == len(plan.channels)
    assert plan.input_channels("3d_cascade_fullres") == len(plan.channels) + 1


def test_a_configuration_under_another_name_is_refused():
    plan = tiny_plan()
    with pytest.raises(ValidationError, match="2d is called 3d_fullres"):
        replace(plan, configurations={"2d": plan.configurations["3d_fullres"]})


def test_the_memory_of_a_step_counts_weights_and_feature_maps():
    plan = plan_of(fingerprint_of([(1.0, 1.0, 1.0)] * 9, [(40, 56, 48)] * 9), "cpu")
    for name, own in plan.configurations.items():
        weights = sum(parameter.numel() for parameter in plan.build_network(name).parameters())
        twice = replace(own, batch_size=2 * own.batch_size)
        larger = replace(plan, configurations={**plan.configurations, name: twice})
        maps = own.estimated_feature_map_elements * own.batch_size
        for precision, size in BYTES_PER_ELEMENT_IN.items():
            gib = plan.step_gib(name, precision)
            assert gib * 2**30 == pytest.approx(STEP_GIB * 2**30 + 14 * weights + size * maps)
            assert larger.step_gib(name, precision) - gib == pytest.approx(size * maps / 2**30)
