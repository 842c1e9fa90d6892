"""Pages: everything put in is escaped, and numbers are written for people."""

import re

import pytest
from jinja2 import UndefinedError

from autoseg.report.pages import MISSING, TEMPLATES, duration, edges, heat, interval, quantity, render, score, signed


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (score(None), MISSING),
        (score(0.81249), "0.812"),
        (interval(None), MISSING),
        (interval((0.1, 0.25)), "0.100 to 0.250"),
        (edges((40, 35.5)), "40 \N{MULTIPLICATION SIGN} 35.5"),
        (quantity(None, "ml"), MISSING),
        (quantity(0.012345, "ml"), "0.0123 ml"),
        (quantity(1234567.0), "1,234,567"),
        (signed(0.5, "ml"), "+0.5 ml"),
        (signed(-3680.0, "ml"), "-3,680 ml"),
        (duration(None), MISSING),
        (duration(7.0), "7 s"),
        (duration(1200.0), "20.0 min"),
        (duration(7200.0), "2.0 h"),
        (heat(None), "0"),
        (heat(0.25), "0.75"),
    ],
)
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected


def test_a_page_without_its_content_is_an_error_and_not_an_empty_page():
    with pytest.raises(UndefinedError):
        render("dataset.html")


def test_no_template_switches_escaping_off():
    for path in TEMPLATES.glob("*.html"):
        assert not re.search(r"autoescape|\|\s*safe\b", path.read_text())
