"""The tasks of a campaign: each is one process that reads its order, computes, and publishes its result whole.

``python -m entk_app.tasks KIND RUN ORDER`` runs one; tests and the in-process runner call :func:`run_task`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Literal

from entk_app.errors import BlewUpError, EntkAppError, Interrupted
from entk_app.integrity import DamagedError
from entk_app.layout import RunLayout, failure_of
from entk_app.placement import take_place
from entk_app.records import Deadline, TaskFailure, read_record, write_record

logger = logging.getLogger(__name__)

KINDS = ("simulate", "train", "analyse")


def run_task(kind: str, run: Path, order: Path) -> None:
    """Run one task in this process.

    Parameters
    ----------
    kind : {'simulate', 'train', 'analyse'}
    run : Path
        Run folder.
    order : Path
        The task's order, written by the campaign.

    Raises
    ------
    Interrupted
        The campaign is being ended.
    """
    if kind not in KINDS:
        raise EntkAppError(f"there is no task kind '{kind}'; there are: {', '.join(KINDS)}")
    # Before the task's module imports a GPU library.
    placement = take_place()
    logger.info("on %s, device %s, cores %s", placement.host, placement.device, placement.cores)
    layout = RunLayout(run)
    reason = Stopper(layout)()
    if reason is not None:
        # Nor is a library imported for nothing while the pilot's last seconds run.
        raise Interrupted(f"ended by {reason} before it began: there is nothing to keep")
    import_module(f"entk_app.tasks.{kind}").run(layout, order, placement)


def note_failure(layout: RunLayout, order: Path, error: Exception) -> None:
    """Leave the reason of a failure beside the order, for the campaign to act on."""
    kind: Literal["damaged", "blew_up", "error"] = "error"
    damaged = None
    if isinstance(error, DamagedError):
        kind, damaged = "damaged", error.result.relative_to(layout.root).as_posix()
    elif isinstance(error, BlewUpError):
        kind = "blew_up"
    words = str(error) or type(error).__name__
    reason = words if isinstance(error, EntkAppError) else f"{type(error).__name__}: {words}"
    write_failure(order, TaskFailure(kind=kind, reason=reason, damaged=damaged, unix=time.time()))


def write_failure(order: Path, failure: TaskFailure) -> None:
    """Likewise, in these words."""
    if not order.exists():
        # Started by hand, for something that no campaign asked.
        return
    try:
        write_record(failure_of(order), failure)
    except OSError as error:
        # The disk may be why it failed; the task's log has the reason too.
        logger.error("the failure could not be noted: %s", error)


#: Set by a SIGTERM: a batch system sends one some seconds before it kills.
_terminated = threading.Event()


def end_in_order_on_sigterm() -> None:
    """Let a SIGTERM end this process' task as a stop request does: it keeps what it has."""
    signal.signal(signal.SIGTERM, lambda number, frame: _terminated.set())


class Stopper:
    """Says when a task is to end in order, and why: asked to, or out of the pilot's time. Cheap to ask often.

    The deadline appears in the run folder once the pilot runs: a queued pilot's is not known when orders are written.

    Parameters
    ----------
    layout : RunLayout
    end_request : Path, optional
        File that asks this very task to end.
    """

    def __init__(self, layout: RunLayout, end_request: Path | None = None) -> None:
        self._layout = layout
        self._end_request = end_request
        self._deadline: Deadline | None = None

    def __call__(self) -> Literal["decision", "stop_request", "walltime", "budget"] | None:
        if self._end_request is not None and self._end_request.exists():
            return "decision"
        if _terminated.is_set() or self._layout.stop_request.exists():
            return "stop_request"
        if self._deadline is None and self._layout.deadline.exists():
            self._deadline = read_record(Deadline, self._layout.deadline)
        if self._deadline is not None and time.time() >= self._deadline.end_by_unix:
            return self._deadline.limit
        return None
