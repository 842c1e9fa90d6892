"""Whose turn it is: the runs of a queue one after the other, a cascade only when its first stage is through."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoseg.core.errors import AutoSegError, Interrupted, NotEnoughResources
from autoseg.runs.execute import RunReport, report_of
from autoseg.runs.guards import Busy
from autoseg.runs.queue import QueuedRun


@dataclass(slots=True)
class Schedule:
    """The runs of a command: those that wait, those at work, and what became of the others.

    Attributes:
        runs: of the queue, in order.
        reports: by position in the queue.
        stop: what ends the whole command, once something does.
    """

    runs: tuple[QueuedRun, ...]
    reports: dict[int, RunReport] = field(default_factory=dict)
    stop: AutoSegError | None = None
    _waiting: list[int] = field(default_factory=list)
    _working: set[int] = field(default_factory=set)
    _was_busy: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._waiting = list(range(len(self.runs)))

    @property
    def open_runs(self) -> list[QueuedRun]:
        """Those that wait or are at work, in order."""
        return [self.runs[index] for index in sorted({*self._waiting, *self._working})]

    def next_run(self) -> QueuedRun | None:
        """The first run that waits and may begin; None if none may, or none may any more."""
        if self.stop is not None:
            return None
        unfinished = {self.runs[index].configuration.name for index in (*self._waiting, *self._working)}
        for index in self._waiting:
            if self.runs[index].configuration.cascade_from not in unfinished:
                return self.runs[index]
        return None

    def start(self, run: QueuedRun) -> None:
        """Notes that a run is at work."""
        index = self.runs.index(run)
        self._waiting.remove(index)
        self._working.add(index)

    def settle(self, report: RunReport) -> None:
        """Notes what became of a run. One that another process has is come to once more, after all the others."""
        index = self._index(report)
        self._working.discard(index)
        if index in self._waiting:
            self._waiting.remove(index)
        if report.state == "busy" and index not in self._was_busy:
            self._was_busy.add(index)
            self._waiting.append(index)
            return
        self.reports[index] = report
        if isinstance(report.error, Interrupted | NotEnoughResources) and report.state != "busy":
            self.stop = self.stop or report.error

    def give_up(self, configuration: str, error: AutoSegError) -> None:
        """Reports every run of a configuration that cannot be begun."""
        for run in [run for run in self.open_runs if run.configuration.name == configuration]:
            self._was_busy.add(self.runs.index(run))
            self.settle(report_of(run, "busy" if isinstance(error, Busy) else "failed", error))

    def is_busy_elsewhere(self, configuration: str | None) -> Busy | None:
        """The error of a run of a configuration that another process has."""
        for report in self.reports.values():
            if report.configuration == configuration and isinstance(report.error, Busy):
                return report.error
        return None

    def outcome(self) -> tuple[tuple[RunReport, ...], AutoSegError | None]:
        """All reports in the order of the queue, and the error that the command ends with.

        That is what stopped it; or the error of the only run; or that another process has a run.
        """
        reports = tuple(self.reports[index] for index in sorted(self.reports))
        errors = [report.error for report in reports if report.error is not None]
        busy = [error for error in errors if isinstance(error, Busy)]
        if self.stop is not None:
            return reports, self.stop
        return reports, errors[0] if len(reports) == 1 and errors else busy[0] if busy else None

    def _index(self, report: RunReport) -> int:
        names = [(run.configuration.name, run.number) for run in self.runs]
        return names.index((report.configuration, report.fold))
