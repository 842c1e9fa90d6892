"""Every error says what, where, why and what to do, and has its own code."""

import errno
import os
from pathlib import Path

import pytest

from autoseg.core import errors
from autoseg.core.errors import (
    AutoSegError,
    GeometryMismatch,
    MissingInput,
    NotEnoughResources,
    UsageError,
    error_for,
    for_users,
    is_machine_fault,
)
from autoseg.core.registry import choose


def kinds():
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AutoSegError)]


def test_codes_are_unique_and_exit_codes_are_those_of_the_contract():
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert {kind.exit_code for kind in kinds()} <= {1, 2, 3, 4, 5, 6, 75, 130}


def test_the_message_holds_every_part():
    error = GeometryMismatch("shapes differ", where="a.nii", why="cropped", do="resample")
    assert str(error) == "shapes differ (a.nii) cropped -> resample"
    assert str(GeometryMismatch("shapes differ")) == "shapes differ"


def test_choosing_an_unknown_name_lists_all():
    assert choose("a", {"a": 1}, "thing") == 1
    with pytest.raises(UsageError) as caught:
        choose("zscroe", {"zscore": 1, "ct": 2}, "normalization")
    assert caught.value.do == "did you mean zscore? choose one of: ct, zscore"


SYSTEM_ERRORS = {
    errno.ENOSPC: 5,
    errno.EDQUOT: 5,
    errno.EFBIG: 5,
    errno.EMFILE: 5,
    errno.ENFILE: 5,
    errno.EIO: 5,
    errno.EACCES: 2,
    errno.EPERM: 2,
    errno.EROFS: 2,
    errno.ENOENT: 2,
    errno.ENOTDIR: 2,
    errno.EISDIR: 2,
    errno.ENAMETOOLONG: 2,
    errno.ELOOP: 2,
    errno.EPIPE: 2,
    errno.ENXIO: 5,
}


@pytest.mark.parametrize(("number", "code"), SYSTEM_ERRORS.items())
def test_every_refusal_of_the_system_has_a_box(number, code):
    raised = OSError(number, os.strerror(number), "/somewhere/plan.json")
    meant = error_for(raised)
    assert meant.exit_code == code
    assert meant.where == "/somewhere/plan.json"
    assert meant.what.startswith("plan.json: ")
    assert meant.do
    assert meant.__cause__ is raised


def test_lack_of_memory_is_known_by_its_many_names():
    class OutOfMemoryError(RuntimeError):
        """As torch calls it."""

    texts = ("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory", "can't start new thread")
    for raised in (MemoryError(), OutOfMemoryError("CUDA"), *map(RuntimeError, texts)):
        assert error_for(raised).exit_code == 5
        assert is_machine_fault(raised)


@pytest.mark.parametrize(
    "why",
    [
        "libtorch_cpu.so: failed to map segment from shared object",
        "libtorch.so: cannot open shared object file: Too many open files",
        "libc10.so: Cannot allocate memory",
    ],
)
def test_a_library_that_the_machine_cannot_load_is_no_damaged_package(why):
    assert is_machine_fault(ImportError(why, name="_C"))
    assert not is_machine_fault(ImportError("libc10.so: cannot open shared object file: No such file or directory"))


def test_a_full_disk_is_known_in_the_words_of_other_libraries():
    raised = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert isinstance(error_for(raised), NotEnoughResources)


def test_a_missing_file_is_no_fault_of_the_machine():
    assert not is_machine_fault(FileNotFoundError(errno.ENOENT, "x"))
    assert not is_machine_fault(ValueError("x"))
    assert not is_machine_fault(None)


def test_the_unexpected_is_a_fault_of_the_program():
    meant = error_for(KeyError("spacing"))
    assert (meant.exit_code, meant.code) == (1, "E0999")
    assert "KeyError" in meant.what


def test_functions_for_users_raise_errors_for_users():
    @for_users()
    def read(path):
        return path.read_bytes()

    with pytest.raises(MissingInput, match="nowhere"):
        read(Path("/nowhere"))
    with pytest.raises(AttributeError):  # a fault of the program keeps its traceback in a notebook
        read(None)
