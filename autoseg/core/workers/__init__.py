"""Processes that serve calls, and a pool of them; one that dies, hangs or runs out of memory is named and replaced.

Readers of damaged files crash, the system kills what takes too much memory, a network drive hangs. `map_supervised`
works on items in processes, one item at a time each; a process that dies or exceeds its time is replaced, its item is
tried once more when nothing else takes memory, and after that it is a failure with a reason.

`Worker` is one such process. An executor of training runs keeps one for each device:

    worker = Worker(partial(train, device), name="autoseg cuda:1")   # train(device, task, send) of a module
    worker.call(task)                                   # returns at once
    while isinstance(answer := worker.answer(), Message): ...   # what `train` sent meanwhile: steps done, log records
    if isinstance(answer, Failure): ...                 # an exception of `train`, or how the process died
    else: ...                                           # Returned: what `train` returned; the worker is free again
    worker.process.terminate()                          # SIGTERM, as a request: launch.interrupts.stoppable
    worker.close(grace_s=60)                            # a worker at work has a minute to end, then it is killed

A worker whose parent dies sends itself SIGTERM as well, and so never outlives it.

A `Helper` is one process for calls that come one at a time: untrusted files are read in one while a network computes.

Why neither concurrent.futures nor loky: their result pipe stays open in the parent. A process that is killed while its
answer is on the way is therefore not noticed before the timeout, and the program can never exit afterwards. Here each
process has a pipe of its own, whose end is seen at once.
"""

from autoseg.core.workers.pool import ITEM_TIMEOUT_S, Helper, Outcome, map_supervised
from autoseg.core.workers.worker import Failure, Message, Returned, Worker, answers

__all__ = [
    "ITEM_TIMEOUT_S",
    "Failure",
    "Helper",
    "Message",
    "Outcome",
    "Returned",
    "Worker",
    "answers",
    "map_supervised",
]
