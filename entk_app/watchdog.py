"""Cleans up after a launcher that was killed: ``python -m entk_app.watchdog`` beside every launcher, started by it.

It waits in a session of its own, where no Ctrl-C and no signal to the launcher's process group reaches it, until the
launcher says that it is done or has gone without a word. Then it asks the campaign's tasks and pilot to end, and kills
what is left. It imports the standard library only and has nothing of radical in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import entk_app
from entk_app.layout import RunLayout
from entk_app.processes import ProcessId, end_processes, find_components

#: Seconds between two looks at the launcher, and between two at radical's processes.
_LOOK_S = 0.5
_LIST_S = 10.0

#: Seconds that simulations have to publish what they have.
_SAVE_S = 15.0

_DONE = b"done"


class Watchdog:
    """The watchdog of this process, as a launcher sees it.

    Parameters
    ----------
    root : Path
        Run folder.
    lock : Path
        The campaign's lock.
    """

    def __init__(self, root: Path, lock: Path) -> None:
        launcher = ProcessId.own()
        # As modules of this very package, whether it is installed or not.
        environment = {**os.environ, "PYTHONPATH": str(Path(entk_app.__file__).resolve().parent.parent)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "entk_app.watchdog", str(launcher.pid), str(launcher.start), str(root), str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        self.process = ProcessId.of(self._process.pid)

    def watch(self, radical: Path) -> None:
        """Say where radical writes: what works there is ended."""
        self._say(os.fsencode(radical))

    def dismiss(self) -> None:
        """The campaign has been closed: there is nothing to do."""
        self._say(_DONE)
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _say(self, line: bytes) -> None:
        if self._process.stdin is not None:
            # It may have been killed.
            with contextlib.suppress(OSError):
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()


def main(arguments: Sequence[str]) -> int:
    """Wait for the launcher's end; 0 when it was in order, 1 when there was something to clean up."""
    # A batch system sends its signals to every process of a job.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    launcher = ProcessId(int(arguments[0]), int(arguments[1]))
    root, lock = Path(arguments[2]), Path(arguments[3])
    layouts: list[RunLayout] = []
    known: set[ProcessId] = set()
    listed, lives = float("-inf"), True
    said = _Pipe(sys.stdin.fileno())
    while lives:
        # Asked for first: what it said last is heard.
        lives = launcher.lives
        for line in said.read_lines(_LOOK_S if lives else 0.0):
            if line == _DONE:
                return 0
            # radical writes to a folder of this parent.
            layouts.append(RunLayout(root, scratch=Path(os.fsdecode(line)).parent))
        if time.monotonic() - listed > _LIST_S:
            listed = time.monotonic()
            known |= {process for layout in layouts for process in find_components(layout)}
    if not _is_of(lock, launcher):
        # The next launcher has the folder already, and cleans up itself.
        return 0
    for layout in layouts:
        clean_up(layout, known)
    return 1


class _Pipe:
    """Lines of a pipe, as they come; its writer may have gone."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._is_open = True
        self._rest = b""

    def read_lines(self, patience_s: float) -> list[bytes]:
        """What has come, after a wait of so long at most."""
        if not self._is_open:
            time.sleep(patience_s)
            return []
        if select.select([self._number], [], [], patience_s)[0]:
            found = os.read(self._number, 65536)
            self._is_open = bool(found)
            self._rest += found
        *lines, self._rest = self._rest.split(b"\n")
        return lines


def clean_up(layout: RunLayout, known: set[ProcessId]) -> None:
    """End a campaign whose launcher is dead: in order, then by force."""
    with contextlib.suppress(OSError):
        # Tasks look for it; whoever resumes the campaign takes it away.
        layout.stop_request.touch()
    end_processes(layout, grace_s=_SAVE_S, also=known)


def _is_of(lock: Path, launcher: ProcessId) -> bool:
    """Whether the lock still names the launcher that has died, and this process as its watchdog."""
    try:
        record = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        # With its folder or without: nobody else has taken it.
        return not lock.parent.exists()
    except (OSError, ValueError):
        return True
    own = ProcessId.own()
    found = tuple(record.get(key) for key in ("pid", "start", "watchdog_pid", "watchdog_start"))
    return found == (launcher.pid, launcher.start, own.pid, own.start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
