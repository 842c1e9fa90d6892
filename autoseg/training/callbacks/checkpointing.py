"""Checkpoints as often as they are cheap, at the end and at an interruption."""

from __future__ import annotations

from autoseg.training.callbacks.base import RunContext, Throttle
from autoseg.training.checkpoint import save_checkpoint
from autoseg.training.loop import Callback, EpochResult
from autoseg.training.step import TrainingState

SAVING_SHARE = 0.01
"""Largest share of the time spent on checkpoints; a run that is killed loses about 100 times the cost of one."""


class Checkpointing(Callback):
    """Saves the state, and the run's state.json with it."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._throttle = Throttle(SAVING_SHARE)

    def after_epoch(self, _result: EpochResult, state: TrainingState) -> None:
        """Saves at the end of the training, and whenever it is time again."""
        if state.is_finished or self._throttle.is_due():
            self._save(state)

    def on_interrupt(self, state: TrainingState) -> None:
        """Saves where the training stopped, in the middle of an epoch or not."""
        state.seconds = self._run.seconds()
        self._save(state)

    def _save(self, state: TrainingState) -> None:
        self._throttle.run(lambda: save_checkpoint(state, self._run.folder.checkpoint))
        self._run.save_status()
