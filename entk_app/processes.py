"""Which processes belong to a campaign, which of them live, and how they are ended. Standard library only.

A process is told from a later one of the same number by its start time. Linux only, as radical is.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from entk_app.layout import RunLayout

logger = logging.getLogger(__name__)

_PROC = Path("/proc")

#: What the command line of a launcher names: ``python app.py``, ``entk-app``, ``python -m entk_app``.
LAUNCHER_NAMES = ("app.py", "entk-app", "entk_app", "__main__.py")

#: Seconds that a campaign's processes have to end by themselves before they are killed.
GRACE_S = 8.0

#: Seconds that threads of radical have at the very end.
_LEAVE_S = 5.0


@dataclass(frozen=True)
class Host:
    """A kernel and a set of process numbers: where these are equal, a pid means the same process."""

    name: str
    boot_id: str
    pid_namespace: str

    @classmethod
    def here(cls) -> Host:
        try:
            boot_id = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            namespace = str((_PROC / "self/ns/pid").readlink())
        except OSError:
            # A hidden /proc: no process can be judged from here, by anybody.
            boot_id = namespace = ""
        return cls(platform.node(), boot_id, namespace)


@dataclass(frozen=True)
class ProcessId:
    """A process on this host, told from later ones of its number by its start (clock ticks since boot)."""

    pid: int
    start: int

    @classmethod
    def own(cls) -> ProcessId:
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Of a process that lives; ``start`` is -1 for one that has gone."""
        state = read_stat(pid)
        return cls(pid, -1 if state is None else state.start)

    @property
    def lives(self) -> bool:
        state = read_stat(self.pid)
        return state is not None and state.start == self.start and state.code not in "ZX"

    def kill(self, patience_s: float = 5.0) -> None:
        """Kill it, and wait until it has gone."""
        end = time.monotonic() + patience_s
        while self.lives and time.monotonic() < end:
            _send(self.pid, signal.SIGKILL)
            time.sleep(0.05)


@dataclass(frozen=True)
class ProcessState:
    """Of ``/proc/PID/stat``: one-letter state, parent, start."""

    code: str
    parent: int
    start: int


def read_stat(pid: int) -> ProcessState | None:
    """The state of a process; None where there is none."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        return ProcessState(fields[0], int(fields[1]), int(fields[19]))
    except (OSError, IndexError):
        return None


def end_processes(
    layout: RunLayout, grace_s: float = GRACE_S, also: Collection[ProcessId] = (), tell_agents: bool = True
) -> int:
    """End what is left of this campaign's pilot and tasks; returns how many had to be killed.

    A process belongs to the campaign when its environment's ``RADICAL_BASE`` lies in the run's ``radical`` folder,
    which RADICAL-Pilot's agent and tasks inherit (with the pilot's sandbox below it), or when it is one of radical's
    own and works there: these write their titles over their environment. ``also`` are processes that were found
    earlier, before the folder was moved away. Agents on other hosts are told by a file in their sandboxes.
    """

    def find() -> list[int]:
        return [*find_processes(layout), *(process.pid for process in also if process.lives)]

    if tell_agents:
        end_agents(layout)
    deadline = time.monotonic() + grace_s
    if grace_s > 0:
        # They publish what they have; the stop request says the same, where it could be written.
        _send_all([process.pid for process in find_tasks(layout, "simulate")], signal.SIGTERM)
    while find() and time.monotonic() < deadline:
        time.sleep(0.2)
    left = find()
    for child in multiprocessing.active_children():
        child.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        _send_all(find(), number)
        wait_until(lambda: not find(), 1.0)
    return len(left)


def end_agents(layout: RunLayout) -> None:
    """Tell the agents of this run's pilots to end, wherever they run: their bootstrappers watch for this file."""
    for sandbox in layout.radical.glob("radical.pilot.sandbox/*/pilot.*"):
        with contextlib.suppress(OSError):
            (sandbox / "killme.signal").touch()


def find_processes(layout: RunLayout) -> list[int]:
    """Living processes of this campaign's pilots on this host, the present one left out."""
    radical = layout.radical.resolve()
    return [pid for pid in _list_pids() if pid != os.getpid() and _belongs(pid, radical)]


def find_components(layout: RunLayout) -> dict[ProcessId, str]:
    """Names of radical's own processes that work for this campaign on this host: bridges, components, the agent."""
    radical = layout.radical.resolve()
    found = {}
    for pid in _list_pids():
        process = ProcessId.of(pid)
        with contextlib.suppress(OSError):
            if _is_component(_PROC / str(pid), radical) and process.lives:
                found[process] = _read_command(pid)[0].strip()
    return found


def find_tasks(layout: RunLayout, kind: str) -> dict[ProcessId, Path]:
    """Tasks of a kind that run on this host, and their orders."""
    found = {}
    for pid in find_processes(layout):
        process, command = ProcessId.of(pid), [part for part in _read_command(pid) if part]
        # The process itself, not a shell that started it.
        if len(command) > 5 and command[1:4] == ["-m", "entk_app.tasks", kind] and process.lives:
            found[process] = Path(command[5])
    return found


def wait_until(is_true: Callable[[], bool], patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while not is_true():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def leave(code: int) -> NoReturn:
    """End this process with an exit code, also where threads that radical has started would keep it for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code:
        # Nothing is left to be said: on a full disk, objects that Python takes apart would say a lot.
        os._exit(code)
    end = time.monotonic() + _LEAVE_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                os._exit(code)
    sys.exit(code)


def _send_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        _send(pid, number)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        logger.debug("process %d has gone by itself", pid)


def _list_pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _belongs(pid: int, radical: Path) -> bool:
    entry, state = _PROC / str(pid), read_stat(pid)
    if state is None or state.code in "ZX":
        return False
    try:
        return _works_for(entry, radical) or _is_component(entry, radical) or _is_orphan(entry, radical)
    except (OSError, IndexError):
        # Gone in the meantime, or another user's.
        return False


def _works_for(entry: Path, radical: Path) -> bool:
    """Whether a process' environment says that it belongs to the pilot of this folder, by whatever name of it."""
    for variable in (entry / "environ").read_bytes().split(b"\0"):
        name, _, value = variable.partition(b"=")
        if name == b"RADICAL_BASE":
            return Path(os.fsdecode(value)).resolve().is_relative_to(radical)
    return False


def _is_component(entry: Path, radical: Path) -> bool:
    """Whether a process is radical's own by its title, and works in this folder."""
    if not re.match(rb"rp\.", (entry / "cmdline").read_bytes()):
        return False
    # Linux marks a folder that was removed.
    folder = Path(str((entry / "cwd").readlink()).removesuffix(" (deleted)"))
    return folder.is_relative_to(radical)


def _is_orphan(entry: Path, radical: Path) -> bool:
    """Whether a process is a fork of a launcher that was killed: the launcher's Python, working where that did.

    Such a process' environment is the launcher's as it was started, before ``RADICAL_BASE`` was set. The forks of a
    living launcher are left to it.
    """
    if (entry / "cwd").readlink() != radical:
        return False
    program, *arguments = _read_command(int(entry.name))
    state = read_stat(int(entry.name))
    parent = 0 if state is None else state.parent
    is_forked = parent > 1 and (_PROC / str(parent) / "cwd").readlink() == radical
    is_launcher = Path(program).name.startswith("python") and any(
        Path(argument).name in LAUNCHER_NAMES for argument in arguments[:3]
    )
    return is_launcher and not is_forked


def _read_command(pid: int) -> list[str]:
    try:
        return [os.fsdecode(part) for part in (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return [""]
