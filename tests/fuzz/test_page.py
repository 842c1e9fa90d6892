"""The page on reliability quotes the counts of the run that lies beside it."""

import json
import re


def test_the_page_has_the_counts_of_the_last_run(repository):
    page = (repository / "docs" / "reliability.md").read_text()
    report = json.loads((repository / "docs" / "reliability-fuzz.json").read_text())
    rows = {"all": report["total"], **report["targets"]}
    for name, counts in rows.items():
        shown = re.search(rf"\| {re.escape(name)} \|(.+)\|", page)
        assert shown, f"{name} is not in the table"
        numbers = [int(cell.replace(",", "")) for cell in shown[1].split("|")]
        assert numbers == [counts[key] for key in ("inputs", "equal", "accepted", "refused")] + [_findings(counts)]
    assert sum(own["inputs"] for own in report["targets"].values()) == report["total"]["inputs"] >= 20_000
    assert _findings(report["total"]) == 0


def _findings(counts: dict[str, int]) -> int:
    return counts["inputs"] - counts["equal"] - counts["accepted"] - counts["refused"]
