"""The checkup names what is there, what is missing and what collides."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from autoseg.api import doctor
from autoseg.core.records import to_data


def test_a_complete_machine_works(tmp_path):
    found = doctor.examine(tmp_path)
    assert found.works
    assert found.devices[-1].name == "cpu"
    assert all(found.parts.values())
    json.dumps(to_data(found), allow_nan=False)


def test_a_missing_part_is_a_problem_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-part"))
    found = doctor.examine(tmp_path)
    assert not found.works
    assert "no-such-part" in found.findings[0].what
    assert found.findings[0].do.endswith("-m pip install no-such-part")


def test_memory_is_unknown_without_the_package_that_knows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)  # importing it fails
    known = metadata.version

    def version(name):
        if name == "psutil":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    found = doctor.examine(tmp_path)
    assert found.memory_gib is None
    assert "psutil" in found.findings[0].what


def test_every_dependency_is_checked(repository):
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(re.split("[<>=]", one)[0] for one in listed) == sorted(doctor.REQUIRED)


def test_the_other_project_called_autoseg_is_found(tmp_path, monkeypatch):
    other = tmp_path / "autoseg-0.0.4.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: autoseg\nVersion: 0.0.4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor.examine(tmp_path)
    assert not found.works
    assert "another project" in found.findings[0].what


def test_another_version_than_the_installed_one_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("autoseg.__version__", "9.9")
    assert any("not from the installed" in finding.what for finding in doctor.examine(tmp_path).findings)


def test_little_memory_and_disk_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.machine, "memory_bytes", lambda: 4 << 30)
    monkeypatch.setattr(doctor.machine, "free_disk_bytes", lambda _folder: 1 << 30)
    notes = [finding.what for finding in doctor.examine(tmp_path).findings]
    assert any("4.0 GiB of memory" in note for note in notes)
    assert any("1.0 GiB of free disk" in note for note in notes)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_command_prints_lines_or_one_document(tmp_path, options):
    command = [sys.executable, "-m", "autoseg", "doctor", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if options:
        assert json.loads(done.stdout)["works"] is True
    else:
        assert "AutoSeg works here." in done.stdout
