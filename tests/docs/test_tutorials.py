"""The tutorials can be typed as they stand: every command and every piece of Python on these pages is run in order.

By default on a few tiny images that stand in for the data named there, with one step instead of a time budget; the
marker `real` takes a few cases of the data themselves.
"""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.cli.main import cli
from tests.docs.markdown import blocks
from tests.preprocessing.tiny_dataset import write_tiny_dataset


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("AUTOSEG_JOBS", "1")


def follow(page: Path, folder: Path, effort: list[str]) -> list[str]:
    """Runs the blocks of a page in `folder`, budgets replaced by `effort`; gives the verbs that were run."""
    verbs = []
    with chdir(folder):
        for block in blocks(page):
            if not block.is_executed:
                continue
            if block.language == "python":
                exec(compile(block.text, f"{page.name}:{block.line}", "exec"), {"__name__": "tutorial"})
            if block.language == "sh":
                assert len(block.commands) == len(block.text.splitlines()), "only commands of autoseg are run"
                for words in block.commands:
                    run(_hurried(words, effort), f"{page.name}:{block.line}")
                    verbs.append(words[0])
    return verbs


def run(words: list[str], where: str) -> None:
    code = cli.main(words, prog_name="autoseg", standalone_mode=False)
    assert code in (0, None), f"{where}: autoseg {' '.join(words)} ended with {code}"


def _hurried(words: list[str], effort: list[str]) -> list[str]:
    """A command with less effort: a budget or number of epochs replaced, for a test on the CPU."""
    hurried, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("--budget", "--epochs"):
            rest.pop(0)
            hurried += effort
        else:
            hurried.append(word)
    return hurried


def _stand_in_scans(folder: Path) -> None:
    """Five scans: three to learn from, two new ones with references."""
    write_tiny_dataset(folder / "all", cases=5)
    data, new, references = folder / "hippocampus", folder / "hippocampus" / "imagesTs", folder / "references"
    write_tiny_dataset(data, cases=3)
    new.mkdir()
    references.mkdir()
    for name in ("case_3", "case_4"):
        shutil.copy(folder / "all" / "imagesTr" / f"{name}_0000.nii.gz", new)
        shutil.copy(folder / "all" / "labelsTr" / f"{name}.nii.gz", references)


def _stand_in_pictures(folder: Path) -> None:
    """Pictures with two bright disks each, one mask file per disk, in the arrangement of the Data Science Bowl."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    for name in ("slideA_1", "slideA_2", "slideB_1", "slideC_1", "new_1"):
        disks = [(y - rng.integers(5, 19)) ** 2 + (x - rng.integers(5, 19)) ** 2 < 16 for _ in range(2)]
        gray = np.where(np.any(disks, axis=0), 200, 30) + rng.integers(0, 20, (24, 24))
        _save_picture(folder, name, np.stack([gray, gray, gray], axis=-1), disks)


def _save_picture(folder: Path, name: str, colors: np.ndarray, masks: list[np.ndarray]) -> None:
    """A picture with one mask per nucleus to learn from, or a new one where its name says so."""
    picture = Image.fromarray(colors.astype(np.uint8))
    if name.startswith("new"):
        (folder / "new_pictures").mkdir(exist_ok=True)
        picture.save(folder / "new_pictures" / f"{name}.png")
        return
    own = folder / "stage1_train" / name
    (own / "images").mkdir(parents=True)
    (own / "masks").mkdir()
    picture.save(own / "images" / f"{name}.png")
    for index, mask in enumerate(masks):
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(own / "masks" / f"{index}.png")


ONE_STEP = ["--epochs", "1", "--steps", "1"]


def test_the_radiology_tutorial_runs_as_it_stands(repository, tmp_path, capsys):
    _stand_in_scans(tmp_path)
    verbs = follow(repository / "docs/tutorials/radiology.md", tmp_path, ONE_STEP)
    assert {"doctor", "plan", "explain", "train", "select", "report", "predict", "evaluate", "model"} <= set(verbs)
    names = {"case_3.nii.gz", "case_4.nii.gz"}
    for folder in ("segmentations", "segmentations_of_bundle"):
        assert names <= {path.name for path in (tmp_path / folder).iterdir()}
    for name in names:
        one, other = ((tmp_path / f / name).read_bytes() for f in ("segmentations", "segmentations_of_bundle"))
        assert one == other
    assert (tmp_path / "hippocampus/autoseg/report.html").stat().st_size > 5000


def test_the_microscopy_tutorial_runs_as_it_stands(repository, tmp_path, capsys):
    _stand_in_pictures(tmp_path)
    verbs = follow(repository / "docs/tutorials/microscopy.md", tmp_path, ONE_STEP)
    assert verbs == ["plan", "train", "select", "report", "predict"]
    assert set(np.unique(np.asarray(Image.open(tmp_path / "segmentations" / "new_1.png")))) <= {0, 1}
    assert re.search(r"new_1.png \d", capsys.readouterr().out)


def test_commands_of_nnunet_users_run_on_their_data(repository, tmp_path, capsys):
    _stand_in_scans(tmp_path)
    (tmp_path / "hippocampus").rename(tmp_path / "Dataset004_Hippocampus")
    verbs = follow(repository / "docs/coming-from-nnunet.md", tmp_path, ONE_STEP)
    assert verbs == ["plan", "train", "train", "select", "predict"]
    assert (tmp_path / "predicted" / "case_3.nii.gz").exists()


def test_the_python_guide_runs_as_it_stands(repository, tmp_path, capsys):
    write_tiny_dataset(tmp_path / "hippocampus", cases=3)
    page = repository / "docs/guides/python.md"
    names: dict[str, object] = {}
    with chdir(tmp_path):
        for block in blocks(page):
            if block.language == "python":
                exec(compile(block.text, f"{page.name}:{block.line}", "exec"), names)
    assert names["labels"].shape == (20, 24, 24)
    assert "E0103" in capsys.readouterr().out


@pytest.mark.real
def test_the_radiology_tutorial_runs_on_hippocampus(repository, shared, tmp_path):
    source, data = shared / "data" / "hippocampus", tmp_path / "hippocampus"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))[:5]
    for folder in (data / "imagesTr", data / "labelsTr", data / "imagesTs", tmp_path / "references"):
        folder.mkdir(parents=True)
    for index, name in enumerate(names):
        images, labels = ("imagesTs", tmp_path / "references") if index > 2 else ("imagesTr", data / "labelsTr")
        (data / images / f"{name}_0000.nii.gz").symlink_to(source / "imagesTr" / f"{name}_0000.nii.gz")
        (labels / f"{name}.nii.gz").symlink_to(source / "labelsTr" / f"{name}.nii.gz")
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": 3}
    (data / "dataset.json").write_text(json.dumps(description))
    follow(repository / "docs/tutorials/radiology.md", tmp_path, ["--epochs", "1", "--steps", "5"])
    assert len(list((tmp_path / "segmentations").glob("*.nii.gz"))) == 2


@pytest.mark.real
def test_the_microscopy_tutorial_runs_on_nuclei(repository, shared, tmp_path):
    source = shared / "data" / "dsb2018_nuclei"
    names = sorted(path.stem for path in (source / "instancesTr").glob("*.png"))[:5]
    for index, name in enumerate(names):
        nuclei = np.asarray(Image.open(source / "instancesTr" / f"{name}.png"))
        colors = np.asarray(Image.open(source / "imagesTr" / f"{name}_0000.png").convert("RGB"))
        masks = [nuclei == value for value in np.unique(nuclei) if value]
        _save_picture(tmp_path, f"new_{name}" if index > 2 else name.replace("_", ""), colors, masks)
    follow(repository / "docs/tutorials/microscopy.md", tmp_path, ["--epochs", "1", "--steps", "5"])
    assert len(list((tmp_path / "segmentations").glob("*.png"))) == 2
