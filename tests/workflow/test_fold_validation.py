from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autoseg.workflow.fold_validation import CaseSize, Forecast, Pace, plan_validation

PACE = Pace(tile_seconds=1.0, voxel_seconds=0.0)
SIZES = {f"case_{i}": CaseSize(tiles=1 + i, voxels=1000) for i in range(10)}
AXES = (0, 1, 2)


def test_everything_is_validated_where_time_allows() -> None:
    planned = plan_validation(SIZES, AXES, PACE, 1000.0)
    assert (len(planned.cases), planned.mirror_axes, planned.notes) == (10, AXES, ())
    assert planned.seconds == sum(8 * size.tiles for size in SIZES.values()) + 1.0


def test_mirroring_goes_first_then_cases() -> None:
    fewer = plan_validation(SIZES, AXES, PACE, 150.0)
    assert (len(fewer.cases), fewer.mirror_axes) == (10, (0,))
    assert "1 of 3 axes" in fewer.notes[0]
    some = plan_validation(SIZES, AXES, PACE, 30.0)
    assert some.mirror_axes == ()
    assert 3 <= len(some.cases) < 10
    assert sorted(some.cases + some.left_out) == sorted(SIZES)
    assert "of 10 cases" in some.notes[0]


@given(seconds=st.floats(0, 1000))
def test_what_is_planned_fits_but_for_a_single_case(seconds: float) -> None:
    planned = plan_validation(SIZES, AXES, PACE, seconds)
    assert planned.seconds <= seconds or len(planned.cases) == 1
    assert set(planned.expected_seconds) == set(planned.cases)


def test_the_reserve_grows_with_the_seconds_of_a_step() -> None:
    forecast = Forecast(SIZES, AXES, PACE, step_seconds=1.0, most_seconds=1000.0)
    assert forecast.reserve(0.5) < forecast.reserve(1.0) < forecast.reserve(2.0)
    assert forecast.reserve(100.0) <= 1100.0 + 1100.0  # one case at least, however slow
