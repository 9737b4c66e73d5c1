"""Whether a campaign's launcher is at work: what a run folder tells of it, read from any shell or node."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from entk_app.layout import RunLayout

#: A lock that is refreshed every ten seconds is that of a living launcher while it is younger than this.
_HEARTBEAT_S = 60.0
#: Without a heartbeat and from another host: silence of every file for so long is taken for death.
_SILENCE_S = 600.0
#: A process may seem younger than its lock by the clock's resolution.
_CLOCK_S = 2.0


@dataclass(frozen=True)
class Launcher:
    """The process that took a run folder.

    Attributes
    ----------
    host, pid : str or None, int or None
        As the lock names it; None where there is no lock that can be read.
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
    """Look at the lock: a JSON record whose age is a heartbeat, or ``host pid`` alone.

    On this host its process decides, which must be older than its lock: a number that was given away again does not
    count. On another host, or where the lock cannot be understood, its heartbeat does, or the age of the campaign's
    files. Without a lock nobody is at work.
    """
    try:
        text = layout.lock.read_text(encoding="utf-8")
        changed = layout.lock.stat()
    except (OSError, UnicodeDecodeError):
        return Launcher(None, None, False, None, _newest(_signs(layout)))
    host, pid, taken, beats, is_here = _parse_lock(text)
    taken = changed.st_mtime if taken is None else taken
    sign = changed.st_mtime if beats else _newest([layout.lock, *_signs(layout)])
    is_fresh = sign is not None and now - sign < (_HEARTBEAT_S if beats else _SILENCE_S)
    # Processes of other users may be hidden here.
    if is_here and pid is not None and changed.st_uid == os.getuid():
        began = _find_start(pid)
        is_alive = began is not None and began <= taken + _CLOCK_S
    else:
        is_alive = is_fresh
    return Launcher(host, pid, is_alive, taken, sign)


def _parse_lock(text: str) -> tuple[str | None, int | None, float | None, bool, bool]:
    """Host, process, when it was taken where the lock says so; whether its age is a heartbeat; whether it is here."""
    try:
        record = json.loads(text)
    except ValueError:
        parts = text.split()
        if len(parts) < 2 or not parts[1].isdigit():
            return None, None, None, False, False
        return parts[0], int(parts[1]), None, False, parts[0] == platform.node()
    if not isinstance(record, dict):
        return None, None, None, False, False
    host, pid, taken = (record.get(name) for name in ("host", "pid", "unix"))
    return (
        host if isinstance(host, str) else None,
        pid if isinstance(pid, int) else None,
        float(taken) if isinstance(taken, int | float) else None,
        True,
        host == platform.node() and _is_this_kernel(record),
    )


def _is_this_kernel(record: dict[str, object]) -> bool:
    """Whether numbers of processes mean the same here: no reboot since, and no container of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return False
    return record.get("boot_id", boot) == boot and record.get("pid_namespace", namespace) == namespace


def _find_start(pid: int) -> float | None:
    """Unix time at which a process of this host began; None where there is none, or only what is left of one."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines()
            if line.startswith("btime")
        )
    except (OSError, StopIteration):
        return None
    # After the name: state, then 18 numbers, then the start in ticks since the boot.
    return None if fields[0] == "Z" else boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


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
