"""Checkpoints of nnU-Net: weights come out, nothing in them is ever executed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoseg.core.errors import IntegrityRefusal, MissingInput
from autoseg.networks.weights import read_tensors
from autoseg.nnunet import checkpoint_child as nnunet_child
from autoseg.nnunet import checkpoints as nnunet_weights
from autoseg.nnunet.checkpoint_child import ENDED_BY_GUARD
from autoseg.nnunet.checkpoints import read_checkpoints, refuse_other_weights
from autoseg.nnunet.plans import read_nnunet_plans
from autoseg.planning.plan import Plan
from tests.nnunet.written_checkpoints import content, malicious, nnunet_state, write_raw_pickle
from tests.nnunet.written_plans import DATASET, plans


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_nnunet_plans(plans(), DATASET, ("3d_fullres",))


@pytest.fixture(scope="module")
def network(plan: Plan) -> torch.nn.Module:
    torch.manual_seed(3)
    return plan.build_network("3d_fullres")


def saved(path: Path, *, compressed: bool = False, **changes: Any) -> Path:
    torch.save(content(**changes), path)
    if compressed:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    return path


def opened(path: Path) -> dict[str, Any]:
    """What the reading process makes of a file, without the process: the checks themselves."""
    return nnunet_child.network_tensors(nnunet_child.load_content(str(path))["network_weights"])


def test_weights_and_settings_of_several_folds_come_back_from_one_process(tmp_path, plan, network):
    first = saved(tmp_path / "a.pth", state=nnunet_state(network))
    wrapped = {f"module._orig_mod.{name}": tensor.half() for name, tensor in nnunet_state(network).items()}
    second = saved(tmp_path / "b.pth", state=wrapped, inference_allowed_mirroring_axes=None, trainer_name="T")
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    found = read_checkpoints((first, second), files)
    assert [(one.trainer, one.configuration, one.mirror_axes) for one in found] == [
        ("nnUNetTrainer", "3d_fullres", (0, 1, 2)),
        ("T", "3d_fullres", ()),
    ]
    expected = network.state_dict()
    for file in files:
        refuse_other_weights(file, plan.parameter_shapes("3d_fullres"), "nnUNetTrainer", "here")
    exact, halved = map(read_tensors, files)
    assert all(torch.equal(exact[name], expected[name]) for name in expected)
    assert all(torch.equal(halved[name], expected[name].half().float()) for name in expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {name: tensor for name, tensor in state.items() if "seg_layers.0" not in name}, "absent"),
        (lambda state: state | {"extra.weight": torch.zeros(2)}, r"unknown \(extra.weight\)"),
        (lambda state: state | {"decoder.seg_layers.1.bias": torch.zeros(9)}, r"another shape .*: \[9\]"),
    ],
)
def test_weights_of_another_network_are_refused_with_what_differs(tmp_path, plan, network, change, says):
    import safetensors.torch

    weights = tmp_path / "0.safetensors"
    tensors = nnunet_child.network_tensors(change(nnunet_state(network)))
    safetensors.torch.save_file(tensors, weights)
    with pytest.raises(IntegrityRefusal, match=says) as refusal:
        refuse_other_weights(weights, plan.parameter_shapes("3d_fullres"), "nnUNetTrainer\x1b[2J", "here")
    assert "\x1b" not in str(refusal.value)


def test_no_malicious_pickle_executes_anything(tmp_path, network):
    canary = tmp_path / "canary"
    kinds = malicious(canary)
    for index, (kind, thing) in enumerate(kinds.items()):
        for place in ("trainer_name", "logging", "network_weights"):
            path = saved(tmp_path / f"{index}{place}.pth", state=nnunet_state(network), **{place: thing})
            with pytest.raises((SystemExit, Exception)) as refusal:
                opened(path)
            assert not isinstance(refusal.value, AssertionError), kind
            assert not canary.exists(), kind


def test_the_process_refuses_a_malicious_checkpoint_with_its_name(tmp_path, network):
    canary = tmp_path / "canary"
    fine = saved(tmp_path / "fine.pth", state=nnunet_state(network))
    path = saved(tmp_path / "model.pth", state=nnunet_state(network), logging=malicious(canary)["os.system"])
    with pytest.raises(IntegrityRefusal, match=r"model\.pth") as refusal:
        read_checkpoints((fine, path), (tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert refusal.value.why == "it asks for posix.system, which no weights need"
    assert not canary.exists()


ATTEMPTS = {
    "a program": "import os; os.system('true')",
    "another program": "import subprocess; subprocess.run(['true'])",
    "a third way": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "a child": "import os; os.fork()",
    "the network": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "a file": "open('made', 'w')",
    "a file by its number": "import os; os.open('made', os.O_CREAT | os.O_WRONLY)",
    "a deletion": "import os; os.remove('kept')",
    "a renaming": "import os; os.rename('kept', 'made')",
    "a folder": "import os; os.mkdir('made')",
    "a library": "import ctypes; ctypes.CDLL(None)",
    "a pickle": "import pickle; pickle.loads(pickle.dumps(print))",
    "a caught attempt": "import os\ntry:\n os.system('true')\nexcept BaseException:\n pass\nopen('made', 'w')",
}


def test_the_guard_ends_the_process_at_every_attempt(tmp_path):
    (tmp_path / "kept").write_text("")
    head = (
        f"import sys, subprocess, pickle, ctypes, socket; sys.path[:] = {[p or str(Path.cwd()) for p in sys.path]!r}\n"
    )
    head += "from autoseg.nnunet.checkpoint_child import guard; sys.addaudithook(guard)\n"
    running = {
        what: subprocess.Popen([sys.executable, "-I", "-c", head + code], cwd=tmp_path, stderr=subprocess.PIPE)
        for what, code in (ATTEMPTS | {"reading": "open('kept').read()"}).items()
    }
    codes = {what: process.wait() for what, process in running.items()}
    said = {what: process.communicate()[1] for what, process in running.items()}
    assert codes == dict.fromkeys(ATTEMPTS, ENDED_BY_GUARD) | {"reading": 0}
    assert all(b"forbidden" in said[what] for what in ATTEMPTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_the_guard_lets_reading_pass_and_ends_writing(monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(nnunet_child.os, "_exit", ended.append)
    monkeypatch.setattr(nnunet_child.os, "write", lambda *_: 0)
    for harmless in (("open", ("a", "rb", 0)), ("import", ("torch",)), ("open", ("a", None, 0))):
        nnunet_child.guard(*harmless)
    assert ended == []
    for harmful in (("open", ("a", "ab", 0)), ("open", ("a", None, nnunet_child.os.O_RDWR)), ("socket.bind", ())):
        nnunet_child.guard(*harmful)
    assert ended == [ENDED_BY_GUARD] * 3


def test_the_process_limits_itself_before_it_reads(tmp_path, network, monkeypatch, capsys):
    path = saved(tmp_path / "a.pth", state=nnunet_state(network))
    steps: list[Any] = []
    monkeypatch.setattr(nnunet_child.resource, "setrlimit", lambda kind, limit: steps.append((kind, limit[0])))
    monkeypatch.setattr(nnunet_child.sys, "addaudithook", steps.append)
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(unshare=steps.append))
    monkeypatch.setattr(nnunet_child.os, "geteuid", lambda: 1000)
    threads = torch.get_num_threads()
    nnunet_child.serve([(str(path), str(tmp_path / "0.safetensors"))])
    torch.set_num_threads(threads)
    assert '"trainer": "nnUNetTrainer"' in capsys.readouterr().out
    assert steps[-1] is nnunet_child.guard
    assert nnunet_child._NETWORK_NAMESPACE | nnunet_child._USER_NAMESPACE in steps
    assert (nnunet_child.resource.RLIMIT_CORE, 0) in steps


def test_a_stricter_limit_than_ours_is_left_alone(monkeypatch):
    monkeypatch.setattr(nnunet_child.sys, "platform", "darwin")
    nnunet_child.leave_network()  # no network namespaces there

    def refuse(kind, _limit):
        if kind != nnunet_child.resource.RLIMIT_CORE:
            raise ValueError

    monkeypatch.setattr(nnunet_child.resource, "setrlimit", refuse)
    nnunet_child.limit_memory(0)


def test_numpy_values_become_nothing_instead_of_being_built(tmp_path, network):
    path = saved(tmp_path / "a.pth", state=nnunet_state(network))
    logged = nnunet_child.load_content(str(path))["logging"]
    assert all(type(value) is nnunet_child.Opaque for values in logged.values() for value in values)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "no PyTorch checkpoint"),
        (lambda path: saved(path, state={}, compressed=True), "compressed"),
        (lambda path: torch.save([1], path), "no table"),
        (lambda path: saved(path, state={"a": 1}), "no network_weights"),
        (lambda path: saved(path, state={"a": torch.zeros(1).expand(10**9)}), "claims more values"),
        (lambda path: saved(path, state={"a": torch.full((2,), float("nan"))}), "infinite or undefined"),
    ],
)
def test_files_that_are_no_checkpoints_say_what_is_wrong(tmp_path, make, says):
    path = tmp_path / "model.pth"
    make(path)
    with pytest.raises(SystemExit, match=says):
        opened(path)


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path, network):
    path = saved(tmp_path / "model.pth", state=nnunet_state(network))
    data = bytearray(path.read_bytes())
    position = data.index(b"encoder.stages")
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit, match="checksum"):
        opened(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_never_ends_or_starts_is_refused(tmp_path):
    for index, code in enumerate(
        (b"", b"\x80\x02", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", b"\x80\x04K.")
    ):
        path = write_raw_pickle(tmp_path / f"{index}.pth", code)
        with pytest.raises((SystemExit, Exception)) as refusal:
            opened(path)
        assert not isinstance(refusal.value, AssertionError)


def test_settings_of_other_types_are_not_taken_over():
    described = nnunet_child.described({"init_args": {"configuration": 3}, "trainer_name": None})
    assert described == {"trainer": "None", "configuration": "", "mirror_axes": []}
    with pytest.raises(SystemExit, match="no axes"):
        nnunet_child.described({"inference_allowed_mirroring_axes": [0, "1"]})
    with pytest.raises(SystemExit, match="no axes"):
        nnunet_child.described({"inference_allowed_mirroring_axes": [3]})


def test_a_missing_checkpoint_is_named_before_any_process_starts(tmp_path):
    with pytest.raises(MissingInput, match=r"checkpoint_final\.pth"):
        read_checkpoints((tmp_path / "checkpoint_final.pth",), (tmp_path / "a.safetensors",))


def test_a_process_that_takes_too_long_or_dies_is_a_refusal(tmp_path, monkeypatch):
    path = write_raw_pickle(tmp_path / "model.pth", b"")
    monkeypatch.setattr(nnunet_weights, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(nnunet_weights, "READ_TIMEOUT_S", 0.05)
    with pytest.raises(IntegrityRefusal) as late:
        read_checkpoints((path,), (tmp_path / "a.safetensors",))
    assert "within" in (late.value.why or "")
    monkeypatch.setattr(nnunet_weights, "READ_TIMEOUT_S", 60.0)
    for start, says in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        (f"import sys; sys.stderr.write('forbidden: x\\n'); sys.exit({ENDED_BY_GUARD})", "never needs"),
        ("import sys; sys.exit('a\\x1bb' + 'c' * 999)", "abccc"),
        ("import sys; sys.exit('Unsupported global: GLOBAL a.b was')", "asks for a.b"),
        ("pass", "exit code 0"),
    ):
        monkeypatch.setattr(nnunet_weights, "_START", start)
        with pytest.raises(IntegrityRefusal) as died:
            read_checkpoints((path,), (tmp_path / "a.safetensors",))
        assert says in (died.value.why or "")
        assert len(died.value.why or "") < 500
