"""Names, numbers and texts from outside: what passes, what is refused, and what is printed of the rest."""

from __future__ import annotations

import csv
import io
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.core.errors import UsageError
from autoseg.core.limits import LONGEST_NAME_BYTES, OVERLAP, Bounds, csv_cell, name_fault, printable, title_fault

BAD_NAMES = (
    "",
    " ",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../a",
    "/a",
    "a\\b",
    "c:",
    "c:a",
    "a\nb",
    "a\x1b[31m",
    "a\u202eb",
    "a ",
    "a.",
)
BAD_NAMES += (
    "a\0b",
    "caf\udce9",
    "x" * (LONGEST_NAME_BYTES + 1),
    "\N{GREEK SMALL LETTER ALPHA}" * (LONGEST_NAME_BYTES // 2 + 1),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_or_cannot_be_shown_are_refused(name):
    assert name_fault(name)


@pytest.mark.parametrize(
    "name", ["case_0", "-2+3", "@SUM(1)", "hépatique 肝", "img.v2", "x" * LONGEST_NAME_BYTES, "CON_1"]
)
def test_names_of_real_cases_pass(name):
    assert name_fault(name) is None


def test_a_class_may_have_a_slash():
    assert title_fault("edema / infiltration") is None
    assert title_fault("\x1b[8mhidden")


@given(st.text())
def test_what_is_printable_stays_and_nothing_else_is_left(text):
    shown = printable(text)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in shown)
    assert printable(shown) == shown
    shown.encode()


@given(st.text())
def test_no_cell_of_a_table_is_a_formula(text):
    written = io.StringIO(newline="")
    csv.writer(written).writerow([csv_cell(text)])
    cell = next(csv.reader(io.StringIO(written.getvalue(), newline="")))[0]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cell.removeprefix("'") == text.removeprefix("'")


def test_numbers_stay_numbers_in_a_table():
    assert csv_cell(-1.5) == -1.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1, 0.999999999, 10**40])
def test_a_number_outside_its_bounds_is_refused_with_them(value):
    with pytest.raises(UsageError, match=r"0 to 0\.95"):
        OVERLAP.check("--overlap", value)


def test_bounds_include_both_ends():
    for value in (0, 0.95, None):
        OVERLAP.check("--overlap", value)
    assert str(Bounds(1, 2, "mm")) == "1 to 2 mm"
