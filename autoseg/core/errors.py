"""What AutoSeg tells its users when something is wrong: what, where, why, and what to type next."""

from __future__ import annotations

from typing import ClassVar


class AutoSegError(Exception):
    """The root of every error meant for a user; the command line prints it as one box, without traceback.

    Args:
        what: one sentence saying what is wrong, with the values found.
        where: the file, folder, case or option concerned.
        why: the cause, as far as it is known.
        do: what the user types or changes next.
    """

    code: ClassVar[str] = "E0001"
    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, do: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.do = do

    def __str__(self) -> str:
        parts = [self.what, self.where and f"({self.where})", self.why, self.do and f"-> {self.do}"]
        return " ".join(part for part in parts if part)


class UsageError(AutoSegError):
    """An option or argument is wrong or contradicts another."""

    code = "E0101"


class RecordFault(AutoSegError):
    """A JSON or YAML file does not hold what it should; every fault is listed with its path."""

    code = "E0102"


class MissingInput(AutoSegError):
    """A file or folder that the command needs is not there."""

    code = "E0103"


class DataRefused(AutoSegError):
    """Nothing usable is left of the data, or `--strict` forbids going on with the rest."""

    code = "E0201"
    exit_code = 3


class LeakingFolds(DataRefused):
    """The same image is trained on and validated with, under two names, so that scores would be too good."""

    code = "E0209"


class UnreadableFile(AutoSegError):
    """A file is damaged, truncated, of an unsupported kind, or its header cannot be true."""

    code = "E0401"
    exit_code = 3


class GeometryMismatch(AutoSegError):
    """Two arrays that must share a grid do not."""

    code = "E0212"
    exit_code = 3


class LabelFault(AutoSegError):
    """A label map holds values that the dataset does not declare."""

    code = "E0301"
    exit_code = 3


class PlanFault(AutoSegError):
    """A plan, pin or configuration cannot be used as it is."""

    code = "E0501"


class TrainingStopped(AutoSegError):
    """Training cannot go on, for example because the loss stays non-finite."""

    code = "E0601"


class NonFiniteLogits(AutoSegError):
    """A network answered with infinite or undefined values."""

    code = "E0602"
    exit_code = 4


class NotEnoughResources(AutoSegError):
    """Memory or disk does not suffice; nothing was left half done."""

    code = "E0701"
    exit_code = 5


class IntegrityRefusal(AutoSegError):
    """A stored file does not match its hash, or a model file is not what it claims to be."""

    code = "E0801"
    exit_code = 6


class Interrupted(AutoSegError):
    """The user or the system stopped the command; the same command resumes."""

    code = "E0901"
    exit_code = 75


class InterruptedEarly(Interrupted):
    """The user or the system stopped the command before anything was worth keeping."""

    code = "E0902"
    exit_code = 130
