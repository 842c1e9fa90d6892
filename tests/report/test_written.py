"""Files among the user's are replaced only if AutoSeg wrote them and nobody changed them."""

import pytest

from autoseg.core.errors import UsageError
from autoseg.report.written import RECORD_NAME, writing


def write(folder, content, **options):
    options = {"overwrite": False, **options}
    with writing(folder / "a.csv", folder / "a.json", **options):
        for name in ("a.csv", "a.json"):
            (folder / name).write_text(content)


def test_own_files_are_replaced_and_changed_ones_are_not(tmp_path):
    write(tmp_path, "1")
    write(tmp_path, "2")
    (tmp_path / "a.csv").write_text("2, corrected")
    with pytest.raises(UsageError, match=r"a\.csv"):
        write(tmp_path, "3")
    assert (tmp_path / "a.csv").read_text() == "2, corrected"
    assert (tmp_path / "a.json").read_text() == "2"
    write(tmp_path, "3", overwrite=True)
    write(tmp_path, "4")
    assert (tmp_path / "a.csv").read_text() == "4"


def test_files_that_no_record_knows_are_the_users_except_in_the_work_folder(tmp_path):
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(UsageError, match=r"a\.json"):
        write(tmp_path, "1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    write(tmp_path, "1", takes_unknown=True)


def test_a_link_to_what_is_not_there_is_the_users(tmp_path):
    (tmp_path / "a.json").symlink_to(tmp_path / "not-fetched")
    with pytest.raises(UsageError, match=r"a\.json"):
        write(tmp_path, "1")
    assert (tmp_path / "a.json").is_symlink()


def test_what_was_being_written_when_the_power_went_is_known(tmp_path):
    write(tmp_path, "1")
    record = (tmp_path / RECORD_NAME).read_text()
    with writing(tmp_path / "a.csv", overwrite=False):
        noted = (tmp_path / RECORD_NAME).read_text()
    (tmp_path / "a.csv").write_text("half")
    (tmp_path / RECORD_NAME).write_text(noted)
    write(tmp_path, "2")
    assert noted != record


def test_a_failure_makes_nothing_of_the_users_ours(tmp_path):
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(RuntimeError), writing(tmp_path / "a.csv", overwrite=True):
        raise RuntimeError
    with pytest.raises(UsageError):
        write(tmp_path, "1")


def test_a_file_that_was_replaced_before_a_failure_is_ours(tmp_path):
    write(tmp_path, "1")
    with pytest.raises(IsADirectoryError), writing(tmp_path / "a.csv", overwrite=False):
        [path.write_text("2") for path in (tmp_path / "a.csv", tmp_path)]
    write(tmp_path, "3")
