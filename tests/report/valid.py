"""What every page of ours has to be: HTML without a fault, and nothing in it that runs or reaches out."""

from __future__ import annotations

import re

import html5lib

REACHING_OUT = re.compile(
    r"<(script|link|iframe|object|embed|form|base)\b|https?://|url\(|@import|\son\w+=", re.IGNORECASE
)


def parsed(page: str):
    """The document; any fault of its syntax raises html5lib's ParseError."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def assert_self_contained(page: str) -> None:
    """Every reference stays inside the file, every id is there once, and every heading and picture has a name."""
    document = parsed(page)
    found = REACHING_OUT.search(page)
    assert not found, found
    ids = [node.get("id") for node in document.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    for node in document.iter():
        for name, value in node.attrib.items():
            if str(name).endswith(("href", "src")):
                assert value.startswith(("#", "data:image/png;base64,"))
                assert not value.startswith("#") or value[1:] in ids
            if name == "aria-labelledby":
                assert value in ids
        if str(node.tag).endswith("svg"):
            assert node.get("aria-label")
    policies = [node.get("content") for node in document.iter("meta") if node.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
