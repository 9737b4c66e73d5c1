"""Simulations on this host that show no new frame and do not end themselves either are killed by the launcher.

A task watches over itself (:mod:`entk_app.tasks.hang`), wherever it runs. One that is stopped, or whose every thread
waits for a file system, cannot: this is for those.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from entk_app.layout import RunLayout
from entk_app.processes import ProcessId, find_tasks
from entk_app.records import TaskFailure
from entk_app.tasks import write_failure

logger = logging.getLogger(__name__)

#: Seconds after which a task that watches over itself should have ended.
_PATIENCE_S = 10.0


class HungTasks:
    """Looks at the simulate tasks of a pilot from time to time.

    Parameters
    ----------
    layout : RunLayout
    minutes : float
        Without a new frame a task has hung.
    """

    def __init__(self, layout: RunLayout, minutes: float) -> None:
        self._layout = layout
        self._patience_s = 60.0 * minutes + _PATIENCE_S
        self._every_s = min(15.0, 0.25 * self._patience_s)
        self._last_look = float("-inf")
        self._seen: dict[ProcessId, tuple[object, float]] = {}

    def look(self, now: float) -> None:
        """Kill what has shown nothing new for too long; ``now`` is of a monotonic clock."""
        if now - self._last_look < self._every_s:
            return
        self._last_look = now
        tasks = find_tasks(self._layout, "simulate")
        self._seen = {process: seen for process, seen in self._seen.items() if process in tasks}
        for process, order in tasks.items():
            shown = _find_progress(order)
            before, since = self._seen.get(process, (None, now))
            if shown != before:
                self._seen[process] = (shown, now)
            elif now - since > self._patience_s:
                minutes = (now - since) / 60.0
                reason = f"no new frame for {minutes:.3g} minutes (faults.hang_minutes): it had hung and was killed"
                logger.warning("process %d (%s): %s", process.pid, order.name, reason)
                write_failure(order, TaskFailure(kind="hung", reason=reason, unix=time.time()))
                process.kill()


def _find_progress(order: Path) -> object:
    """Something that changes with every few frames of a simulation."""
    shown = []
    for path in order.parent.glob("segment-*"):
        progress = path / "progress.json"
        try:
            shown.append((path.name, progress.stat().st_mtime_ns if path.suffix == ".partial" else 0))
        except FileNotFoundError:
            # Not a frame yet, or published just now.
            shown.append((path.name, 0))
    return sorted(shown)
