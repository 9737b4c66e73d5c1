"""A task that makes no progress for too long ends itself: to wait for it longer would hold the whole campaign."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_last = time.monotonic()


def beat() -> None:
    """Say that this process' task has made progress: a frame, an epoch, a model analysed."""
    global _last
    _last = time.monotonic()


def watch(minutes: float, on_hang: Callable[[float], None]) -> None:
    """Call ``on_hang`` with the minutes of silence, in a thread of its own, when there has been no beat for so long.

    What hangs is a library's call (a GPU that answers no more, a file system that does not return), so that
    the thread that hangs cannot be asked to end.
    """
    beat()

    def wait() -> None:
        while (silent := time.monotonic() - _last) < 60.0 * minutes:
            time.sleep(min(60.0 * minutes - silent, 10.0) + 0.01)
        on_hang(silent / 60.0)

    threading.Thread(target=wait, name="hang", daemon=True).start()
