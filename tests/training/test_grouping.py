from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import LeakingFolds, MissingInput, RecordFault, UsageError
from autoseg.training.grouping import SplitFacts, case_groups, units_of
from autoseg.training.splits import Fold, make_chosen_folds, make_folds, save_folds, settle_folds

NAMES = [f"patient{index // 2:03d}_frame{index % 2}" for index in range(24)]
PATIENTS = case_groups(r"^(patient\d+)", NAMES)


def facts(**changes: object) -> SplitFacts:
    return SplitFacts(**{"images": {}, "classes": {}, **changes})  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sets(st.sampled_from("abc"))), min_size=1, max_size=30)
)
def test_grouped_folds_keep_groups_whole_and_cases_once(cases):
    names = [f"case_{index:02d}" for index in range(len(cases))]
    known = facts(
        groups={name: f"group {own[0]}" for name, own in zip(names, cases, strict=True)},
        images={name: f"image {own[1]}" for name, own in zip(names, cases, strict=True)},
        classes={name: frozenset(own[2]) for name, own in zip(names, cases, strict=True)},
    )
    folds = make_chosen_folds(names, known)
    units = units_of(known, names)
    assert len(folds) == min(5, len(units))
    for fold in folds:
        assert fold.train
        assert sorted(fold.train + fold.val) == names
        for side in (fold.train, fold.val):
            assert all(set(unit) <= set(side) or not set(unit) & set(side) for unit in units)
    validated = sorted(name for fold in folds for name in fold.val)
    assert validated == (names if len(units) > 1 else [])
    assert folds == make_chosen_folds(names[::-1], known)


def test_two_frames_of_a_patient_stay_together():
    folds = make_chosen_folds(NAMES, facts(groups=PATIENTS))
    assert [len(fold.val) for fold in folds] == [6, 6, 4, 4, 4]
    assert all(len({PATIENTS[name] for name in fold.val}) == len(fold.val) / 2 for fold in folds)
    assert any(len({PATIENTS[n] for n in fold.val}) != len(fold.val) / 2 for fold in make_folds(NAMES))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=1, max_size=12), st.sets(st.integers(0, 39), max_size=12))
def test_a_rare_class_comes_to_every_fold_as_evenly_as_it_can(rare, other):
    names = [f"case_{index:02d}" for index in range(40)]
    classes = {
        name: frozenset([*(["rare"] if index in rare else []), *(["other"] if index in other - rare else [])])
        for index, name in enumerate(names)
    }
    folds = make_chosen_folds(names, facts(classes=classes, is_stratified=True))
    for label, cases in (("rare", len(rare)), ("other", len(other - rare))):
        counts = [sum(label in classes[name] for name in fold.val) for fold in folds]
        assert (min(counts), max(counts)) == (cases // 5, -(-cases // 5))
    assert max(len(fold.val) for fold in folds) - min(len(fold.val) for fold in folds) <= 2


def test_groups_come_from_an_expression_or_a_table(tmp_path: Path):
    assert case_groups(r"(patient)(\d+)", NAMES[:1]) == {NAMES[0]: "patient/000"}
    assert case_groups("frame.", NAMES[:2]) == {NAMES[0]: "frame0", NAMES[1]: "frame1"}
    table = tmp_path / "groups.csv"
    table.write_text(
        "\ufeffgroup,case,site\n" + "".join(f"g{index // 3},{name},x\n" for index, name in enumerate(NAMES))
    )
    assert case_groups(str(table), NAMES)[NAMES[5]] == "g1"


@pytest.mark.parametrize(
    ("group_by", "content", "kind", "words"),
    [
        ("(patient", None, UsageError, "not a regular expression"),
        ("^nobody", None, UsageError, "does not match 24 of 24 cases, patient000_frame0"),
        ("absent.csv", None, MissingInput, "there is no file"),
        ("groups.csv", "case,patient\n", RecordFault, "needs case and group"),
        ("groups.csv", "", RecordFault, "has the columns none"),
        ("groups.csv", f"case,group\n{NAMES[0]},a\n", RecordFault, "23 cases have no group"),
    ],
)
def test_groups_that_cannot_be_are_refused(tmp_path, monkeypatch, group_by, content, kind, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(group_by).write_text(content)
    with pytest.raises(kind, match=words) as found:
        case_groups(group_by, NAMES)
    assert found.value.exit_code == 2


def test_the_same_image_on_both_sides_is_refused_unless_it_is_kept_together(tmp_path: Path):
    images = {name: name for name in NAMES} | {NAMES[0]: "same", NAMES[9]: "same"}
    work = tmp_path / "work" / "splits.json"
    with pytest.raises(LeakingFolds, match="are the same image") as found:
        settle_folds(NAMES, [], tmp_path, work, facts(images=images))
    assert (found.value.code, found.value.exit_code) == ("E0209", 3)
    together = facts(images=images, groups=case_groups(".+", NAMES))
    folds = settle_folds(NAMES, [], tmp_path, work, together)
    assert all((NAMES[0] in fold.val) == (NAMES[9] in fold.val) for fold in folds)
    within = {name: name for name in NAMES} | dict.fromkeys(make_folds(NAMES)[0].val, "same")
    assert settle_folds(NAMES, [], tmp_path, work, facts(images=within)) == make_folds(NAMES)


def test_the_users_folds_win_and_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "splits.json").write_text(json.dumps([{"train": NAMES[:5], "val": NAMES[5:8]}]))
    images = {NAMES[0]: "same", NAMES[5]: "same"}
    folds = settle_folds(NAMES, [], tmp_path, tmp_path / "work.json", facts(images=images, groups=PATIENTS))
    assert folds == (Fold(tuple(NAMES[:5]), tuple(NAMES[5:8])),)
    assert "your splits.json wins" in caplog.text
    assert "are the same image" in caplog.text


def test_grouped_folds_stay_without_the_option_and_follow_the_cases_with_it(tmp_path: Path):
    work = tmp_path / "work" / "splits.json"
    save_folds(make_folds(NAMES[:20]), work)
    grouped = settle_folds(NAMES[:20], [], tmp_path, work, facts(groups=PATIENTS))
    assert grouped != make_folds(NAMES[:20])
    save_folds(grouped, work)
    assert settle_folds(NAMES[:20], [], tmp_path, work) == grouped
    assert settle_folds(NAMES, [], tmp_path, work, facts(groups=PATIENTS)) == make_chosen_folds(
        NAMES, facts(groups=PATIENTS)
    )
    others = case_groups("frame.", NAMES)
    with pytest.raises(UsageError, match="other folds than the options"):
        settle_folds(NAMES[:20], [], tmp_path, work, facts(groups=others))


def test_one_group_is_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    one = dict.fromkeys(NAMES, "everybody")
    assert settle_folds(NAMES, [], tmp_path, tmp_path / "w.json", facts(groups=one)) == (Fold(tuple(NAMES), ()),)
    assert "one group" in caplog.text


def test_all_cases_are_trained_on_where_the_user_wants_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    work = tmp_path / "splits.json"
    save_folds(make_folds(NAMES[:20]), work)  # made by an earlier command; it follows the options and the cases
    whole = settle_folds(NAMES, [], tmp_path, work, facts(on_all_cases=True))
    assert whole == (Fold(tuple(NAMES), ()),)
    assert "no score will say" in caplog.text
    save_folds(whole, work)
    assert settle_folds(NAMES, [], tmp_path, work) == whole  # a later command without the option goes on with it
    assert "no case is kept back" in caplog.text
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": NAMES[:5], "val": NAMES[5:8]}]))
    with pytest.raises(UsageError, match=r"your splits_final\.json says which ones"):
        settle_folds(NAMES, [], tmp_path, work, facts(on_all_cases=True))


def test_nnunets_folds_stay_and_rare_classes_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rare = make_folds(NAMES)[0].val[:2]
    classes = {name: frozenset({"organ"} | ({"lesion"} if name in rare else set())) for name in NAMES}
    with caplog.at_level(logging.WARNING):
        assert settle_folds(NAMES, [], tmp_path, tmp_path / "w.json", facts(classes=classes)) == make_folds(NAMES)
    assert "lesion is in 2 of 24 cases, and fold 1, 2, 3, 4 validates none" in caplog.text
    assert "organ" not in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_that_is_not_utf8_is_refused_with_the_line(tmp_path, encoding):
    table = tmp_path / "groups.csv"
    table.write_bytes("case,group\na,Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich\n".encode(encoding))
    with pytest.raises(RecordFault, match="is not UTF-8: line") as caught:
        case_groups(str(table), {"a"})
    assert caught.value.where == str(table)
