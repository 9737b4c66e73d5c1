"""Whether a campaign's launcher is at work: what a run folder tells of it, read from any shell or node."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from entk_app.errors import RecordError
from entk_app.layout import RunLayout
from entk_app.lock import HEARTBEAT_S, read_lock

#: A lock that is younger is that of a living launcher.
_FRESH_S = 6 * HEARTBEAT_S
#: Without a heartbeat: silence of every file for so long is taken for death.
_SILENCE_S = 600.0


@dataclass(frozen=True)
class Launcher:
    """The process that took a run folder.

    Attributes
    ----------
    host, pid : str or None, int or None
        As the lock names it; None where there is none that can be read.
    is_alive : bool
    taken_unix : float or None
        When it took the folder.
    last_sign_unix : float or None
        The newest sign of life: its heartbeat, else the newest file of the campaign.
    """

    host: str | None
    pid: int | None
    is_alive: bool
    taken_unix: float | None
    last_sign_unix: float | None


def find_launcher(layout: RunLayout, now: float) -> Launcher:
    """Look at the lock.

    On its own host its process decides, elsewhere its heartbeat. Where the lock cannot be understood, the age of the
    campaign's files does. Without a lock nobody is at work: a launcher takes it away when it ends in order.
    """
    try:
        beat = layout.lock.stat()
        lock = read_lock(layout.lock)
    except (RecordError, UnicodeDecodeError):
        sign = _newest([layout.lock, *_signs(layout)])
        return Launcher(None, None, sign is not None and now - sign < _SILENCE_S, None, sign)
    except OSError:
        lock = None
    if lock is None:
        return Launcher(None, None, False, None, _newest(_signs(layout)))
    is_alive = now - beat.st_mtime < _FRESH_S
    # Processes of other users may be hidden here.
    if lock.is_here and beat.st_uid == os.getuid():
        is_alive = lock.process.lives
    return Launcher(lock.host, lock.pid, is_alive, lock.unix, beat.st_mtime)


def _signs(layout: RunLayout) -> Iterable[Path]:
    """Files that change while a campaign runs."""
    yield layout.decisions
    yield from layout.simulations.glob("*/*.partial/progress.json")
    # One folder more a task.
    yield from layout.logs.glob("tasks*")


def _newest(paths: Iterable[Path]) -> float | None:
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            # Gone between the listing and the look.
            continue
    return max(times, default=None)


def describe_age(seconds: float) -> str:
    """Seconds as people say them: 12 s, 5 min, 3 h, 2 d."""
    for limit, unit, divisor in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{max(0.0, seconds) / divisor:.0f} {unit}"
    return f"{seconds / 86_400.0:.0f} d"
