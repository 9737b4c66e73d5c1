"""Real campaigns as a user runs them: started, watched, ended, and every process that they started found again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import CHECKOUT, collect_logs

#: Environment variable by which everything that a test started is found again.
MARK = "ENTK_APP_TEST_FOLDER"

def find_processes(mark: Path) -> dict[int, str]:
    """Command lines by pid of living processes that were started, by whomever, with this folder as their mark.

    radical's own write their titles over their environment: these are found by the folder that they work in.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            command = " ".join(process.cmdline()).strip()
            works_here = command.startswith("rp.") and Path(process.cwd()).is_relative_to(mark)
            if (f"{MARK}={mark}".encode() in variables or works_here) and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = command
        except (OSError, psutil.Error):
            # Gone in the meantime.
            continue
    return found


def start(arguments: list[str], cwd: Path, home: Path | None = None) -> subprocess.Popen:
    """Start the command line in its own process group, with a mark that everything it starts inherits."""
    environment = {**os.environ, MARK: str(cwd)}
    if home is not None:
        environment["HOME"] = str(home)
    return subprocess.Popen(
        [sys.executable, str(CHECKOUT / "app.py"), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end_everything(process: subprocess.Popen, cwd: Path) -> None:
    """Whatever a test has started is ended, also when the test failed."""
    for pid in (process.pid, *find_processes(cwd)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Finished:
    """What a command came to, and the processes that outlived it."""

    returncode: int
    stdout: str
    left: dict[int, str]


def run_to_end(
    arguments: list[str], cwd: Path, home: Path | None = None, timeout_s: float = 600, watch=None
) -> Finished:
    """Run the command to its end; a hang fails with the pilot's logs shown."""
    process = start(arguments, cwd, home)
    deadline = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                pytest.fail(f"no end after {timeout_s} s\n{collect_logs(cwd)}")
            if watch is not None:
                watch(process.pid)
            time.sleep(0.25)
        # What has been killed takes a moment to go.
        return Finished(process.returncode, process.stdout.read(), count_left(cwd, 20.0))
    finally:
        end_everything(process, cwd)
        process.stdout.close()


def wait_for(process: subprocess.Popen, cwd: Path, what: str, has_come: Callable[[], object], timeout_s: float = 180):
    """Wait until a campaign has come somewhere; one that ends before fails with its pilot's logs shown."""
    deadline = time.monotonic() + timeout_s
    while not (found := has_come()):
        assert process.poll() is None, f"the campaign ended before {what}\n" + collect_logs(cwd)
        assert time.monotonic() < deadline, f"{what} did not come\n" + collect_logs(cwd)
        time.sleep(0.1)
    return found


def count_left(cwd: Path, timeout_s: float) -> dict[int, str]:
    """Processes that are left after so long at most."""
    deadline = time.monotonic() + timeout_s
    while (left := find_processes(cwd)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def read_summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))
