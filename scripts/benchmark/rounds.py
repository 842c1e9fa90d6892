"""Turns, ratios, the folder of raw rounds, and the table made of it."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmark.figures import Figures

PEER, OWN = "nnU-Net", "AutoSeg"
BEGIN, END = "<!-- peer: written by scripts/benchmark_peer.py -->", "<!-- peer: end -->"

Round = Mapping[str, Figures]
"""Figures of each side, in the order in which the sides ran."""


@dataclass(frozen=True)
class Comparison:
    """One thing to measure.

    Attributes:
        stage: what `--only` calls it.
        name: line of the table.
        how: what is not equal on both sides: precision, store format.
        measure: makes the rounds of these numbers, one after the other.
        facts: asked once all rounds are done: agreement, Dice.
    """

    stage: str
    name: str
    how: str
    measure: Callable[[Sequence[int]], Iterator[Round]]
    facts: Callable[[], Mapping[str, float]] = dict

    @property
    def file_name(self) -> str:
        """Of the raw rounds."""
        return re.sub(r"\W+", "_", self.name).strip("_") + ".json"


def turns(sides: Mapping[str, Callable[[], Figures]], numbers: Sequence[int]) -> Iterator[Round]:
    """Every side once per round; the order is reversed in rounds of odd numbers."""
    for number in numbers:
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        yield {name: sides[name]() for name in names}


class Results:
    """A folder with one JSON file per comparison, written again after every round."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.folder, self.machine = folder, machine
        folder.mkdir(parents=True, exist_ok=True)

    def measure(self, comparison: Comparison, rounds: int, *, resume: bool) -> dict[str, Any]:
        """The row of a comparison after `rounds` rounds; with `resume`, those in the folder count.

        Raises:
            SystemExit: the rounds in the folder are of another machine or of other versions.
        """
        path = self.folder / comparison.file_name
        row = json.loads(path.read_text()) if resume and path.exists() else self._new(comparison)
        if row["machine"] != self.machine:
            raise SystemExit(f"{path} was measured on {row['machine']}; this is {self.machine}. Choose another --out.")
        known = len(row["rounds"])
        for sides in comparison.measure(range(known, rounds)):
            row["rounds"].append(sides)
            _write(path, row)
            print(f"{row['name']}, round {len(row['rounds'])} of {rounds}: {_in_words(sides)}", flush=True)
        if len(row["rounds"]) > known:  # else what the facts are of may be another comparison's by now
            row["facts"] = dict(comparison.facts()) or row["facts"]
        _write(path, row)
        return dict(row)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the folder that have a round, as they were begun."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return sorted((row for row in found if row.get("rounds")), key=lambda row: (row["position"], row["begun"]))

    def _new(self, comparison: Comparison) -> dict[str, Any]:
        return {
            "name": comparison.name,
            "how": comparison.how,
            "machine": self.machine,
            "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
            "position": POSITIONS.index(comparison.stage),
            "rounds": [],
            "facts": {},
        }


POSITIONS = ("step", "forward", "train", "plan", "preprocess", "predict", "konfai", "again", "pictures", "memory")
"""The stages in the order of the table."""


def ratios(rounds: Sequence[Round], figure: str, sides: tuple[str, str]) -> list[float]:
    """First side by second side, of every round that has both."""
    return [one[sides[0]][figure] / max(one[sides[1]][figure], 1e-9) for one in rounds if set(sides) <= set(one)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown, each machine with its own table."""
    machines = dict.fromkeys(row["machine"] for row in rows)
    return "\n\n".join(_machine_table(name, [row for row in rows if row["machine"] == name]) for name in machines)


def write_between(path: Path, text: str) -> None:
    """Replaces what is between the two markers of a Markdown file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        raise SystemExit(f"{path} has no place for the table: {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _machine_table(machine: str, rows: Sequence[Mapping[str, Any]]) -> str:
    loads = [side["load"] for row in rows for one in row["rounds"] for side in one.values()]
    days = sorted({row["begun"][:10] for row in rows})
    load = f"load average {min(loads):.1f} to {max(loads):.1f}" if loads else "nothing measured"
    lines = [f"{machine}; {' to '.join(dict.fromkeys((days[0], days[-1])))}; {load}.", ""]
    lines += ["| what | nnU-Net | AutoSeg | ratio of CPU seconds | ratio of wall time | rounds | how |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [line for row in rows for line in _lines(row)]
    return "\n".join(lines)


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    """One line for each pair of sides, and one for each fact."""
    for pair in _pairs(row["rounds"]):
        title = row["name"] if pair == (PEER, OWN) else f"{row['name']}: {' against '.join(pair)}"
        cells = [*(_cell(row["rounds"], side) for side in pair), *_spreads(row["rounds"], pair)]
        yield f"| {title} | {' | '.join(cells)} | {len(row['rounds'])} | {row['how']} |"
    for name, value in row["facts"].items():
        yield f"| {row['name']}: {name} | | {value:.5g} | | | | |"


def _pairs(rounds: Sequence[Round]) -> Iterator[tuple[str, str]]:
    """Both programs, then every other side: a way of AutoSeg beside nnU-Net, anything else beside AutoSeg."""
    yield PEER, OWN
    for name in dict.fromkeys(name for one in rounds for name in one):
        if name not in (PEER, OWN):
            yield (PEER, name) if name.startswith(OWN) else (name, OWN)


def _cell(rounds: Sequence[Round], side: str) -> str:
    """Medians of a side: seconds, or the memory where that was measured."""
    values = {
        figure: statistics.median(one[side][figure] for one in rounds if side in one)
        for figure in ("cpu", "wall", "peak_gib")
        if all(figure in one[side] for one in rounds if side in one)
    }
    if "peak_gib" in values:
        return f"{values['peak_gib']:.2f} GiB, {values['cpu']:.3g} CPU s"
    return f"{values['cpu']:.3g} CPU s, {values['wall']:.3g} s"


def _spreads(rounds: Sequence[Round], pair: tuple[str, str]) -> tuple[str, str]:
    """Median, smallest and largest of the ratios; of the memory where that was measured, in the first column."""
    has_peak = all("peak_gib" in one[side] for one in rounds for side in pair)
    first = "peak_gib" if has_peak else "cpu"
    texts = []
    for figure in (first, "wall"):
        values = ratios(rounds, figure, pair)
        text = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        texts.append(f"memory {text}" if figure == "peak_gib" else text)
    return texts[0], texts[1]


def _in_words(sides: Round) -> str:
    return "; ".join(
        f"{name} {one['cpu']:.2f} CPU s, {one['wall']:.2f} s at load {one['load']:.1f}"
        + (f", {one['peak_gib']:.2f} GiB" if "peak_gib" in one else "")
        for name, one in sides.items()
    )


def _write(path: Path, row: Mapping[str, Any]) -> None:
    """Whole or not at all: a run may be cut off at any moment."""
    half = path.with_suffix(".part")
    half.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    half.replace(path)
