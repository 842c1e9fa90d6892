"""`autoseg plan` and `autoseg explain` from the user's side."""

import json

import pytest

from autoseg.data.synthetic import write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "Dataset001_Synthetic"
    write_synthetic_dataset(folder, training_cases=3, test_cases=1, seed=1)
    return folder


@pytest.fixture
def pair(golden_generated, tmp_path):
    content = json.loads((golden_generated / "0002.json").read_text())
    for name in ("fingerprint", "dataset"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content[name]))
    return tmp_path / "fingerprint.json", tmp_path / "dataset.json"


def test_planning_writes_the_work_folder(autoseg, dataset, tmp_path):
    ran = autoseg("plan", dataset, "--work", tmp_path / "work", "--no-probe", "--preset", "cpu")
    assert ran.code == 0
    assert "3d_fullres" in ran.stdout
    written = {path.name for path in (tmp_path / "work").iterdir()}
    assert written == {"dataset.json", "check.json", "fingerprint.json", "plan.json", "logs"}


def test_planning_again_reads_nothing_and_plans_the_same(autoseg, dataset, tmp_path):
    command = ("plan", dataset, "--work", tmp_path / "work", "--no-probe", "--json", "--jobs", 1)
    first = autoseg(*command)
    plan = (tmp_path / "work" / "plan.json").read_bytes()
    again = autoseg(*command)
    assert first.document == again.document
    assert (tmp_path / "work" / "plan.json").read_bytes() == plan


def test_json_is_the_only_thing_on_stdout(autoseg, dataset, tmp_path):
    document = autoseg("plan", dataset, "--work", tmp_path / "work", "--json", "--preset", "cpu", "-q").document
    assert document["preset"] == "cpu"
    assert document["axis_order"] == [0, 1, 2]
    assert document["seconds_per_epoch"]["3d_fullres"] > 0
    own = document["configurations"]["3d_fullres"]
    keys = "dimensions patch_size batch_size spacing_mm median_shape n_stages features_per_stage kernel_sizes strides"
    more = "blocks_per_stage decoder_convs_per_stage network normalization use_nonzero_mask batch_dice cascade_from"
    assert set(f"{keys} {more}".split()) <= set(own)
    assert {"name", "configuration", "value", "because"} <= set(document["decisions"][0])


def test_a_dry_run_writes_nothing(autoseg, dataset, tmp_path):
    ran = autoseg("plan", dataset, "--work", tmp_path / "work", "--no-probe", "--dry-run")
    assert ran.code == 0
    assert not (tmp_path / "work").exists()


def test_a_damaged_check_file_costs_only_time(autoseg, dataset, tmp_path):
    command = ("plan", dataset, "--work", tmp_path / "work", "--no-probe", "--jobs", 1)
    autoseg(*command)
    (tmp_path / "work" / "check.json").write_text("{")
    ran = autoseg(*command)
    assert ran.code == 0
    assert "damaged" in ran.stderr


def test_planning_from_a_fingerprint_needs_no_images(autoseg, pair):
    command = ("plan", "--from-fingerprint", pair[0], "--dataset-json", pair[1])
    assert set(autoseg(*command, "--json").document["configurations"]) == {
        "2d",
        "3d_lowres",
        "3d_fullres",
        "3d_cascade_fullres",
    }
    assert "3d_lowres" in autoseg(*command).stdout


def test_own_records_serve_as_fingerprint_too(autoseg, dataset, tmp_path):
    work = tmp_path / "work"
    full = autoseg("plan", dataset, "--work", work, "--no-probe", "--json").document
    files = ("--from-fingerprint", work / "fingerprint.json", "--dataset-json", work / "dataset.json")
    assert autoseg("plan", *files, "--json").document["configurations"] == full["configurations"]


def test_only_the_configurations_asked_for(autoseg, pair):
    command = ("plan", "--from-fingerprint", pair[0], "--dataset-json", pair[1], "--json")
    document = autoseg(*command, "--configuration", "2d").document
    assert list(document["configurations"]) == ["2d"]
    assert {entry["configuration"] for entry in document["decisions"]} == {None, "2d"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "which dataset"),
        (("nowhere",), "nowhere"),
        (("--from-fingerprint", "none.json"), "two files"),
        (("--from-fingerprint", "none.json", "--dataset-json", "none.json"), "there is no file"),
    ],
)
def test_wrong_usage_is_one_box(autoseg, words, text):
    ran = autoseg("plan", *words)
    assert ran.code == 2
    assert text in ran.stderr
    assert ran.stderr.count("error E") == 1


def test_wrong_values_are_one_box(autoseg, pair, tmp_path):
    command = ("plan", "--from-fingerprint", pair[0], "--dataset-json", pair[1])
    bad_pin = tmp_path / "pin.yaml"
    bad_pin.write_text("patch_size: [1.5]\n")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    listed = tmp_path / "list.json"
    listed.write_text("[]")
    for words, text in (
        (("--preset", "reference2"), "did you mean reference"),
        (("--pin", bad_pin), "patch_size.0: Input should be a valid integer, found 1.5"),
        (("--memory", "inf"), "0.1<=x<=100000"),
        (("--dataset-json", broken), "not valid JSON"),
        (("--dataset-json", listed), "JSON object"),
    ):
        ran = autoseg(*command, *words)
        assert ran.code == 2
        assert text in ran.stderr


def test_a_configuration_that_is_not_planned_is_named(autoseg, golden_generated, tmp_path):
    pairs = (json.loads(path.read_text()) for path in sorted(golden_generated.glob("*.json")))
    content = next(pair for pair in pairs if "3d_lowres" not in pair["plan"]["configurations"])
    for name in ("fingerprint", "dataset"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content[name]))
    files = ("--from-fingerprint", tmp_path / "fingerprint.json", "--dataset-json", tmp_path / "dataset.json")
    ran = autoseg("plan", *files, "--configuration", "3d_lowres")
    assert ran.code == 2
    assert "3d_lowres is not planned" in ran.stderr


@pytest.fixture
def damaged(dataset, tmp_path):
    import shutil

    folder = tmp_path / "Dataset002_Damaged"
    shutil.copytree(dataset, folder)
    image = min((folder / "imagesTr").iterdir())
    image.write_bytes(image.read_bytes()[:-100])
    return folder


def test_a_truncated_file_is_refused_by_name_and_the_rest_goes_on(autoseg, damaged):
    ran = autoseg("plan", damaged, "--no-probe")
    assert ran.code == 0
    assert "refused" in ran.stdout
    assert min((damaged / "imagesTr").iterdir()).name in ran.stdout
    strict = autoseg("plan", damaged, "--no-probe", "--strict")
    assert strict.code == 3
    assert "--strict" in strict.stderr


def test_nothing_usable_left_is_exit_3(autoseg, damaged):
    for image in (damaged / "imagesTr").iterdir():
        image.write_bytes(image.read_bytes()[:-100])
    ran = autoseg("plan", damaged, "--no-probe")
    assert ran.code == 3
    assert "none of the 3 cases" in ran.stderr
    assert "refused" in ran.stdout


def test_explain_says_why(autoseg, dataset, tmp_path):
    work = tmp_path / "work"
    missing = autoseg("explain", dataset, "--work", work)
    assert missing.code == 2
    assert "autoseg plan" in missing.stderr
    autoseg("plan", dataset, "--work", work, "--no-probe")
    assert "because" not in autoseg("explain", dataset, "--work", work).stderr
    ran = autoseg("explain", dataset, "patch_size", "--work", work)
    assert "3d_fullres patch_size = " in ran.stdout
    document = autoseg("explain", dataset, "batch_size", "--work", work, "--json").document
    assert {entry["configuration"] for entry in document["decisions"]} == {"2d", "3d_fullres"}
    assert "did you mean patch_size" in autoseg("explain", dataset, "patchsize", "--work", work).stderr


def test_explain_knows_every_code(autoseg):
    assert "E0212" in autoseg("explain", "e0212").stdout
    assert autoseg("explain", "E9999").code == 2
    assert autoseg("explain", "E0212", "patch_size").code == 2


@pytest.mark.parametrize("verb", ["plan", "preprocess", "train", "select", "report"])
def test_nothing_is_left_in_a_folder_that_was_named_by_mistake(autoseg, tmp_path, verb):
    (tmp_path / "letter.txt").write_text("mine")
    assert autoseg(verb, tmp_path).code == 2 if verb != "plan" else 3
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_dataset_without_a_plan_is_told_the_command_to_type(autoseg, dataset):
    ran = autoseg("explain", dataset, "--work", dataset / "none")
    assert ran.code == 2
    assert f"run `autoseg plan {dataset} --work {dataset / 'none'}` first" in ran.stderr


def test_a_folder_given_as_a_dot_has_a_name(autoseg, tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path.name} is in none of the known layouts" in autoseg("plan", ".").stderr


def test_a_plan_for_a_gpu_names_the_preset_for_this_machine(autoseg, dataset, tmp_path):
    command = ("plan", dataset, "--work", tmp_path / "work", "--device", "cpu", "--configuration", "2d", "--dry-run")
    assert "--preset cpu" in autoseg(*command).stdout
    assert "--preset cpu" not in autoseg(*command, "--preset", "cpu").stdout
