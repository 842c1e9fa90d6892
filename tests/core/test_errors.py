"""Every error says what, where, why and what to do, and has its own code."""

import pytest

from autoseg.core import errors
from autoseg.core.errors import AutoSegError, GeometryMismatch, UsageError
from autoseg.core.registry import choose


def kinds():
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AutoSegError)]


def test_codes_are_unique_and_exit_codes_are_those_of_the_contract():
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert {kind.exit_code for kind in kinds()} <= {2, 3, 4, 5, 6, 75, 130}


def test_the_message_holds_every_part():
    error = GeometryMismatch("shapes differ", where="a.nii", why="cropped", do="resample")
    assert str(error) == "shapes differ (a.nii) cropped -> resample"
    assert str(GeometryMismatch("shapes differ")) == "shapes differ"


def test_choosing_an_unknown_name_lists_all():
    assert choose("a", {"a": 1}, "thing") == 1
    with pytest.raises(UsageError) as caught:
        choose("zscroe", {"zscore": 1, "ct": 2}, "normalization")
    assert caught.value.do == "did you mean zscore? choose one of: ct, zscore"
