from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoseg.core.errors import RecordFault
from autoseg.training.splits import (
    Fold,
    folds_record,
    make_folds,
    read_folds,
    save_folds,
    settle_folds,
)

NAMES = [f"case_{i:03d}" for i in range(12)]


def test_folds_equal_the_reference(golden_vectors: Path) -> None:
    for count, expected in json.loads((golden_vectors / "splits.json").read_text()).items():
        names = sorted({name for fold in expected for name in fold["train"] + fold["val"]})
        assert len(names) == int(count)
        assert folds_record(make_folds(names[::-1])) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_few_cases_give_as_many_folds(count: int) -> None:
    folds = make_folds(NAMES[:count])
    assert len(folds) == min(5, count)
    assert all(fold.train for fold in folds)
    validated = [name for fold in folds for name in fold.val]
    assert sorted(validated) == ([] if count == 1 else NAMES[:count])


def test_the_users_folds_win_and_lose_refused_cases(tmp_path: Path) -> None:
    mine = [{"train": NAMES[:3], "val": NAMES[3:5]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(mine))
    work = tmp_path / "work" / "splits.json"
    folds = settle_folds([n for n in NAMES if n != NAMES[4]], [NAMES[4]], tmp_path, work)
    assert folds == (Fold(tuple(NAMES[:3]), (NAMES[3],)),)
    save_folds(folds, work)
    assert json.loads(work.read_text()) == [{"train": NAMES[:3], "val": [NAMES[3]]}]


def test_our_own_folds_follow_the_cases_but_edited_ones_stay(tmp_path: Path) -> None:
    work = tmp_path / "splits.json"
    folds = settle_folds(NAMES[:6], [], tmp_path / "data", work)
    assert folds == make_folds(NAMES[:6])
    save_folds(folds, work)
    assert settle_folds(NAMES[:7], [], tmp_path / "data", work) == make_folds(NAMES[:7])
    edited = [{"train": NAMES[:3], "val": NAMES[3:5]}]
    work.write_text(json.dumps(edited))
    assert folds_record(settle_folds(NAMES[:7], [], tmp_path / "data", work)) == edited


def test_a_single_case_is_trained_on(tmp_path: Path) -> None:
    assert settle_folds(NAMES[:1], [], tmp_path, tmp_path / "w" / "splits.json") == (Fold((NAMES[0],), ()),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"train": ["case_000", "ghost"], "val": []}], "unknown cases ghost"),
        ([{"train": ["case_000"], "val": ["case_000"]}], "case_000 both trained on and validated"),
        ([{"train": [], "val": ["case_000"]}], "no usable case to train on"),
        ([], "it has no fold"),
        ([{"train": ["case_000"]}], "val"),
    ],
)
def test_wrong_folds_are_refused(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordFault, match=words):
        read_folds(path, NAMES)


@pytest.mark.parametrize("where", ["splits_final.json", "work/splits.json"])
def test_cases_in_no_fold_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text(json.dumps([{"train": NAMES[:3], "val": NAMES[3:5]}]))
    settle_folds(NAMES[:7], [], tmp_path, tmp_path / "work" / "splits.json")
    assert [name for name in NAMES if any(name in line for line in caplog.messages)] == NAMES[5:7]
    caplog.clear()
    settle_folds(NAMES[:5], [], tmp_path, tmp_path / "work" / "splits.json")
    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]
