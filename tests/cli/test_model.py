"""`autoseg model`: one file out, one file in, and what is in it."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.core.geometry import Geometry
from autoseg.core.records import save
from autoseg.core.workspace import Workspace
from autoseg.data.fingerprint import QUANTILE_LEVELS, CaseStatistics, Fingerprint
from autoseg.data.model import Case, Dataset
from autoseg.images.readers import read_labels
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image
from autoseg.inference.postprocessing import PostprocessingStep
from tests.nnunet.trained_models import REGIONS, TINY
from tests.runs.trained import add_run, add_selection, cascade_plan, trained_work_folder

STEP = PostprocessingStep("minimum_volume", ("liver",), 12.0)


@pytest.fixture
def selected(tmp_path):
    """A work folder in which an ensemble with a cascade was selected."""
    plan = cascade_plan()
    work = trained_work_folder(tmp_path, plan, "3d_lowres")
    for fold in (0, 1):
        add_run(work, plan, "3d_cascade_fullres", fold, seed=5 + fold)
    add_selection(work, plan, {"3d_cascade_fullres": 3, "3d_lowres": 1}, steps=(STEP,))
    workspace = Workspace(work)
    quantiles = (tuple(map(float, range(len(QUANTILE_LEVELS)))),)
    cases = tuple(
        CaseStatistics(f"secret{index}", (9, 9, 9), (9, 9, 9), (2.0, 1.0 + index, 1.0), 1.0, quantiles, {"1": 50})
        for index in range(3)
    )
    save(Fingerprint(1, cases, plan.intensities, 1.0), workspace.fingerprint)
    secrets = tuple(Case(case.identifier, (f"{case.identifier}.nii.gz",)) for case in cases)
    save(Dataset("tiny", "/home/secret", "x", "y", plan.channels, plan.labels, secrets, ".nii.gz"), workspace.dataset)
    (work / "report.html").write_text("<p>secret0</p>")
    return work


def test_a_selected_ensemble_goes_through_a_file_and_predicts_the_same(autoseg, selected, tmp_path):
    ran = autoseg("model", "export", selected.parent, "--json")
    assert ran.code == 0, ran.stderr
    moved = autoseg("model", "import", ran.document["file"], "--to", tmp_path / "models", "--json")
    assert moved.code == 0, moved.stderr
    geometry = Geometry((9, 12, 15), (2.5, 0.8, 1.1))
    array = np.random.default_rng(0).normal(size=(1, *geometry.shape)).astype(np.float32)
    write_image(tmp_path / "case_0000.nii.gz", Volume(array, geometry))
    labels, names = [], []
    for index, model in enumerate((selected, moved.document["file"])):
        words = ["-i", tmp_path / "case_0000.nii.gz", "-o", tmp_path / f"out{index}", "--device", "cpu"]
        told = autoseg("predict", model, *words, "--probabilities", "--json")
        assert told.code == 0, told.stderr
        names.append(told.document["model"])
        with np.load(tmp_path / f"out{index}" / "case.npz") as stored:
            labels.append((read_labels(tmp_path / f"out{index}" / "case.nii.gz").array, stored["probabilities"]))
    assert names[0] == names[1] == ran.document["model"]
    assert len(np.unique(labels[0][0])) > 1
    for own, other in zip(*labels, strict=True):
        assert np.array_equal(own, other)


def test_show_tells_what_is_inside(autoseg, selected):
    path = autoseg("model", "export", selected, "--json").document["file"]
    document = autoseg("model", "show", path, "--json").document
    assert [member["configuration"]["name"] for member in document["members"]] == ["3d_cascade_fullres", "3d_lowres"]
    assert [member["share"] for member in document["members"]] == [0.75, 0.25]
    assert list(document["stages"]) == ["3d_lowres"]
    assert document["postprocessing"][0]["minimum_mm3"] == 12.0
    assert document["provenance"]["training_cases"] == 3
    assert document["scores"]["nested"]["dice"] == 0.79
    assert document["typical"]["spacing along y"]["highest"] == 3.0
    assert document["has_report"]
    for text in (autoseg("model", "show", path).stdout, autoseg("model", "show", selected, "-v").stdout):
        for word in ("liver", "100", "channel_0", "zscore", "first stage", "0.7900", "of 3 cases", "below 12 mm3"):
            assert word in text


def test_nothing_but_the_report_names_a_case(autoseg, selected, tmp_path):
    with_report, without = tmp_path / "a.autoseg", tmp_path / "b.autoseg"
    told = autoseg("model", "export", selected, "--out", with_report)
    assert "--no-report" in told.stdout
    autoseg("model", "export", selected, "--out", without, "--no-report")
    assert b"secret" in (tmp_path / "a.report.html").read_bytes()
    assert not (tmp_path / "b.report.html").exists()
    assert with_report.read_bytes() == without.read_bytes()
    assert b"secret" not in with_report.read_bytes()
    assert autoseg("model", "show", with_report, "--json").document["has_report"]
    assert not autoseg("model", "show", without, "--json").document["has_report"]


def test_one_configuration_can_be_exported_alone(autoseg, selected, tmp_path):
    path = tmp_path / "low.autoseg"
    words = ["--configuration", "3d_lowres", "--fold", "1", "--out", path]
    assert autoseg("model", "export", selected, *words).code == 0
    document = autoseg("model", "show", path, "--json").document
    assert [member["folds"] for member in document["members"]] == [[1]]
    assert (document["scores"], document["postprocessing"], document["stages"]) == (None, [], {})
    assert "no comparison" in autoseg("model", "show", path).stdout


def test_an_export_of_the_same_model_is_the_same_file_and_replaces_no_other(autoseg, selected):
    first = autoseg("model", "export", selected, "--json").document
    assert autoseg("model", "export", selected, "--json").document == first
    (selected / "report.html").write_text("<p>another</p>")
    ran = autoseg("model", "export", selected)
    assert (ran.code, "exists already" in ran.stderr) == (2, True)
    assert autoseg("model", "show", first["file"], "--json").document["content"] == first["content"]
    name = first["file"].rsplit("/", 1)[1]
    assert {path.name for path in (selected / "models").iterdir()} == {
        name,
        f"{name.removesuffix('.autoseg')}.report.html",
    }


@pytest.mark.parametrize("occupied", ["file", "folder", "link"])
def test_an_import_replaces_nothing(autoseg, selected, tmp_path, occupied):
    path = tmp_path / "x.autoseg"
    autoseg("model", "export", selected, "--out", path)
    folder = tmp_path / "models"
    taken = folder / autoseg("model", "import", path, "--to", folder, "--json").document["file"].rsplit("/", 1)[1]
    assert autoseg("model", "import", path, "--to", folder).code == 0
    taken.unlink()
    outside = tmp_path / "outside"
    if occupied == "file":
        taken.write_text("mine")
    elif occupied == "folder":
        taken.mkdir()
    else:
        taken.symlink_to(outside)
    ran = autoseg("model", "import", path, "--to", folder)
    assert (ran.code, "exists already" in ran.stderr) == (2, True)
    assert not outside.exists()
    assert list(folder.iterdir()) == [taken]
    assert occupied != "file" or taken.read_text() == "mine"


def test_a_file_system_without_links_will_do(autoseg, selected, tmp_path, monkeypatch):
    def none(self, target):
        raise PermissionError("no links here")

    monkeypatch.setattr("pathlib.Path.hardlink_to", none)
    path = tmp_path / "x.autoseg"
    assert autoseg("model", "export", selected, "--out", path).code == 0
    assert autoseg("model", "show", path, "-q").code == 0
    path.write_bytes(b"another")
    assert autoseg("model", "export", selected, "--out", path).code == 2


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["export", "nowhere"], 2, "no file or folder nowhere"),
        (["export", "WORK", "--out", "model.zip"], 2, ".autoseg"),
        (["export", "WORK", "--configuration", "2d"], 2, "2d is not trained"),
        (["import", "nowhere"], 2, "no file or folder nowhere"),
        (["import", "WORK"], 2, "model export"),
        (["show", "nowhere"], 2, "no file or folder nowhere"),
        (["rename"], 2, "rename"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_box(autoseg, selected, tmp_path, monkeypatch, words, code, told):
    monkeypatch.chdir(tmp_path)
    ran = autoseg("model", *(str(selected) if word == "WORK" else word for word in words))
    assert (ran.code, ran.stderr.count("error E"), told in ran.stderr) == (code, 1, True), ran.stderr


def test_a_file_that_is_no_model_is_an_integrity_refusal(autoseg, tmp_path):
    (tmp_path / "x.autoseg").write_bytes(b"PK nonsense")
    for words in (["show"], ["import"]):
        ran = autoseg("model", *words, tmp_path / "x.autoseg")
        assert (ran.code, "E0801" in ran.stderr) == (6, True)


def test_a_model_of_nnunet_becomes_a_bundle_that_predicts_like_it(autoseg, tmp_path):
    source = TINY / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    ran = autoseg("model", "import", source, "--to", tmp_path, "--json")
    assert ran.code == 0, ran.stderr
    words = ["-i", TINY / "images", "-o", tmp_path / "out", "--device", "cpu", "--no-mirroring"]
    told = autoseg("predict", ran.document["file"], *words)
    assert told.code == 0, told.stderr
    expected = TINY / "predicted" / "3d_cascade_fullres_folds_0_mirroring_0" / "tiny_10.nii.gz"
    own, reference = read_labels(tmp_path / "out" / "tiny_10.nii.gz").array, read_labels(expected).array
    assert (own == reference).mean() >= 0.999
    assert len(np.unique(own)) > 1
    shown = autoseg("model", "show", ran.document["file"], "--json").document
    assert (shown["provenance"]["origin"], list(shown["stages"])) == ("nnU-Net v2", ["3d_lowres"])


def test_a_model_of_nnunet_is_shown_as_it_is(autoseg):
    shown = autoseg("model", "show", REGIONS / "nnUNetTrainer__nnUNetResEncUNetMPlans__2d")
    assert "nnU-Net v2" in shown.stdout
    assert "residual unet" in shown.stdout
