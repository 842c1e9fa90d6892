"""The benchmark's own parts: turns, ratios, the table and its place. Running it needs nnunetv2."""

import importlib.util
import sys

import pytest


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("benchmark_peer", repository / "scripts" / "benchmark_peer.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_sides_take_turns_and_ratios_are_per_round(script):
    calls = []

    def side(name, seconds):
        values = iter(seconds)

        def call():
            calls.append(name)
            return next(values)

        return call

    chosen = [script.Comparison("plan", side("peer", [10.0, 20.0, 90.0]), side("own", [5.0, 5.0, 10.0]))]
    (row,) = script.measure(None, chosen, rounds=3)
    assert calls == ["peer", "own"] * 3
    assert (row["ratio"], row["low"], row["high"]) == (4.0, 2.0, 9.0)
    assert (row["peer"], row["own"]) == (20.0, 5.0)


def test_the_table_is_written_between_its_markers_again_and_again(script, tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    row = {"name": "predict", "peer": 8.0, "own": 2.0, "ratio": 4.0, "low": 3.5, "high": 4.5, "agreement": 0.99912}
    for _ in range(2):
        script.write_between(page, script.table([row], 5, "a machine"))
    text = page.read_text()
    assert text.startswith(f"before\n{script.BEGIN}\na machine. 5 rounds.\n")
    assert text.endswith(f"{script.END}\nafter\n")
    assert "old" not in text
    assert "| predict | 8.00 | 2.00 | 4.00 (3.50 to 4.50) |" in text
    assert "99.912 %" in text


def test_a_page_without_markers_is_left_alone(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(SystemExit):
        script.write_between(page, "table")
    assert page.read_text() == "nothing here\n"


def test_the_documentation_has_a_place_for_the_table(script, repository):
    text = (repository / "docs" / "benchmarks.md").read_text()
    assert text.index(script.BEGIN) < text.index(script.END)


def test_both_sides_see_the_same_links_and_nothing_is_copied(script, tmp_path):
    data = tmp_path / "Some Data"
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    (data / "dataset.json").write_text("{}")
    for case in "abc":
        (data / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(b"x")
    bench = script.Bench(tmp_path / "scratch", [data], cases=2, steps=1)
    linked = bench.raw / bench.first
    assert (linked / "imagesTr").resolve() == (data / "imagesTr").resolve()
    assert sorted(path.name for path in bench.images.iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert all(path.is_symlink() for path in bench.images.iterdir())
