from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.selection.candidates import (
    MOST_MEMBERS,
    Costs,
    all_ensembles,
    members_of,
    reduced,
    singles_and_pairs,
    title_of,
)
from autoseg.selection.record import SelectedMember


@given(st.integers(1, 5))
def test_every_ensemble_is_there_once_singles_and_pairs_first(count) -> None:
    found = all_ensembles(count)
    assert len(set(found)) == len(found)
    assert found[: count + math.comb(count, 2)] == singles_and_pairs(count)
    assert all(math.gcd(*weights) == 1 and sum(weights) <= MOST_MEMBERS for weights in found)
    assert reduced([2] * count) == (1,) * count


def test_ensembles_are_named_by_their_members() -> None:
    members = members_of((1, 0, 2), ("2d", "3d_lowres", "3d_fullres"))
    assert members == (SelectedMember("2d", 1), SelectedMember("3d_fullres", 2))
    assert title_of(members) == "2d + 2 x 3d_fullres"


COSTS = Costs(
    {"2d": 1.0, "3d_lowres": 2.0, "3d_fullres": 5.0, "3d_cascade_fullres": 6.0},
    {"2d": 0.5, "3d_lowres": 3.0, "3d_fullres": 1.0, "3d_cascade_fullres": 2.0},
    {"3d_cascade_fullres": "3d_lowres"},
)


def test_a_cascade_costs_its_first_stage_once() -> None:
    cascade = (SelectedMember("3d_cascade_fullres", 2),)
    assert COSTS.with_stages(cascade) == ("3d_cascade_fullres", "3d_lowres")
    assert COSTS.seconds_of(cascade) == pytest.approx(8.0)
    both = (*cascade, SelectedMember("3d_lowres", 1))
    assert COSTS.seconds_of(both) == pytest.approx(8.0)
    assert COSTS.memory_of(both) == pytest.approx(3.0)


def test_what_is_not_known_ranks_by_the_number_of_configurations() -> None:
    unknown = Costs({"2d": None}, {})
    one, two = (SelectedMember("2d", 1),), (SelectedMember("2d", 1), SelectedMember("3d_fullres", 1))
    assert unknown.seconds_of(one) is None
    assert unknown.memory_of(one) is None
    assert unknown.rank(one) < unknown.rank(two)


def test_two_configurations_make_seven_different_ensembles() -> None:
    assert set(all_ensembles(2)) == {(1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (3, 1), (1, 3)}
