"""One campaign on a real local pilot, cut off by one fault after another, taken up after each, and finished.

The launcher is killed while it simulates, the agent while models train, the disk fills up, then a Ctrl-C. Each takes a
pilot of its own. What was finished is the same afterwards, and the run folder passes the checks that any other passes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from check_invariants import check_invariants
from check_run import check_run
from conftest import CHECKOUT, collect_logs
from real_pilot import count_left, end_everything, find_processes, read_summary, run_to_end, start, wait_for

from entk_app.layout import RunLayout
from entk_app.verify import verify_run

pytestmark = [pytest.mark.pilot, pytest.mark.timeout(900)]

#: A segment takes some seconds on any machine: long enough to be met at work.
OPTIONS = [
    "--run-dir", "run", "--seed", "3", "--set", "simulate.segment_ns=2", "--set", "train.epochs=2",
    "--set", "train.latent_dims=[3]", "--set", "steering.min_frames=20", "--set", "steering.window=20",
    "--set", "stop.target_rmsd_angstrom=0.1", "--set", "stop.max_iterations=2", "--set", "resource.cores=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A small file system of its own, or a plain folder where none can be mounted."""
    folder = tmp_path_factory.mktemp("faults") / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    assert mounted.returncode == 0 or not os.environ.get("ENTK_APP_REQUIRE_MOUNT"), mounted.stderr
    try:
        yield folder
    finally:
        for pid in find_processes(folder):
            os.kill(pid, signal.SIGKILL)
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class End:
    """How a launcher ended: its exit code and words, after how long, and what still ran a minute later."""

    code: int
    output: str
    seconds: float
    left: dict[int, str]


class Story:
    """What happened to the campaign, told once; the tests below ask for its parts."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.run = disk / "run"
        self.is_small = disk.is_mount()
        self.ends: dict[str, End] = {}
        self.kept: dict[Path, bytes] = {}
        self.listening: set[str] = set()
        self.refused: dict[str, subprocess.CompletedProcess] = {}
        self.first_pid = 0
        self.reasons: dict[str, str] = {}

    def note_finished(self) -> None:
        """Everything that is finished now has to stay as it is."""
        for pattern in ("simulations/*/segment-????/*", "models/*/latent-?/*"):
            for path in self.run.glob(pattern):
                if path.name != "embeddings.h5":
                    content = path.read_bytes()
                    assert self.kept.setdefault(path, content) == content, f"{path} has changed"
        assert all(path.exists() for path in self.kept)

    def count_segments(self) -> int:
        return len(list(self.run.glob("simulations/*/segment-????/segment.json")))

    def end(self, process: subprocess.Popen, what: str) -> None:
        """Wait for the launcher, and for everything that it started, to be gone."""
        began = time.monotonic()
        output, _ = process.communicate(timeout=120)
        seconds = time.monotonic() - began
        self.ends[what] = End(process.returncode, output, seconds, count_left(self.disk, 60.0))
        self.reasons[what] = read_last_decision(self.run).get("stop_reason") or ""
        self.note_finished()

    def refuse(self, what: str) -> None:
        command = [sys.executable, str(CHECKOUT / "app.py"), "--resume", "run"]
        self.refused[what] = subprocess.run(
            command, cwd=self.disk, capture_output=True, text=True, check=False, timeout=120
        )


def read_last_decision(run: Path) -> dict:
    return json.loads((run / "decisions.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def find_component(disk: Path, name: str) -> int:
    return next(pid for pid, command in find_processes(disk).items() if command.startswith(name))


def list_listening(disk: Path) -> set[str]:
    """Addresses that the campaign's processes listen on."""
    found = set()
    for pid in find_processes(disk):
        with contextlib.suppress(psutil.Error):
            connections = psutil.Process(pid).net_connections(kind="tcp")
            found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream, pytest.raises(OSError):
        while stream.write(b"x" * 2**16):
            pass


@pytest.fixture(scope="module")
def story(disk) -> Iterator[Story]:
    told = Story(disk)
    run, before = told.run, os.umask(0)
    try:
        tell(told, run, disk)
        yield told
    finally:
        os.umask(before)


def tell(told: Story, run: Path, disk: Path) -> None:
    process = start(OPTIONS, disk)
    try:
        wait_for(process, disk, "a simulation", lambda: list(run.glob("simulations/*/*.partial/progress.json")))
        told.first_pid = process.pid
        told.listening = list_listening(disk)
        told.refuse("second")
        process.kill()
        told.end(process, "launcher killed")

        process = start(["--resume", "run"], disk)
        # Of this pilot: on a slow machine the first may have come so far before it was killed.
        wait_for(process, disk, "a training", lambda: list(run.glob("logs/tasks-0001/train.*/*.err")))
        os.kill(find_component(disk, "rp.agent.0"), signal.SIGKILL)
        told.end(process, "agent killed")

        if told.is_small:
            process = start(["--resume", "run"], disk)
            wait_for(process, disk, "a task", lambda: list(run.glob("logs/tasks-0002/*/*.err")))
            fill(disk / "filler")
            told.end(process, "disk full")
            told.refuse("disk full")
            (disk / "filler").unlink()

        before = count_bootstrappers(run)
        process = start(["--resume", "run"], disk)
        wait_for(process, disk, "the next pilot", lambda: count_bootstrappers(run) > before)
        os.killpg(process.pid, signal.SIGINT)
        told.end(process, "ctrl-c")
    finally:
        end_everything(process, disk)
        process.stdout.close()
    finished = run_to_end(["--resume", "run"], disk)
    told.ends["finished"] = End(finished.returncode, finished.stdout, 0.0, finished.left)
    told.note_finished()


def count_bootstrappers(run: Path) -> int:
    """Of the pilots so far; its output is the first sign of one."""
    return len(list(run.glob("radical/radical.pilot.sandbox/*/pilot.0000/bootstrap_0.out")))


def test_a_second_launcher_is_refused_while_the_first_lives(story):
    second = story.refused["second"]
    assert second.returncode == 2
    assert f"still run by process {story.first_pid} on this host" in second.stderr


def test_no_socket_of_the_campaign_can_be_reached_from_outside(story):
    assert story.listening == {"127.0.0.1"}


def test_nothing_outlives_a_killed_launcher_and_its_simulations_keep_what_they_have(story):
    end = story.ends["launcher killed"]
    assert (end.code, end.left) == (-signal.SIGKILL, {})
    # Both were within their first segment, and published a shorter one.
    assert list(story.run.glob("simulations/000[01]/segment-0000/segment.json"))
    assert not story.run.joinpath("stop.request").exists()


def test_the_loss_of_the_agent_is_noticed_and_is_no_failure_of_the_campaign(story):
    end = story.ends["agent killed"]
    assert (end.code, end.left) == (1, {}), end.output
    assert end.seconds < 90
    assert story.reasons["agent killed"] == "pilot_lost"
    assert f"--resume {story.run}" in end.output and "Traceback" not in end.output


def test_a_full_disk_ends_a_campaign_in_a_sentence_and_nothing_is_started_on_it(story):
    if not story.is_small:
        pytest.skip("no file system can be mounted here")
    end = story.ends["disk full"]
    assert (end.code, end.left) == (1, {}), end.output
    assert end.seconds < 90
    said = [line for line in end.output.splitlines() if line.startswith("entk-app: ")]
    assert len(said) == 1, end.output
    assert "make space" in said[0] and f"--resume {story.run}" in said[0]
    assert "Traceback" not in end.output
    refused = story.refused["disk full"]
    assert refused.returncode == 2, refused.stderr
    assert re.search(r"make (space|room)", refused.stderr)


def test_an_interrupt_while_the_pilot_starts_ends_it_in_time(story):
    end = story.ends["ctrl-c"]
    assert (end.code, end.left) == (130, {}), end.output
    assert end.seconds < 30
    assert story.reasons["ctrl-c"] == "interrupted"


def test_the_campaign_is_finished_all_the_same(story):
    end = story.ends["finished"]
    assert (end.code, end.left) == (0, {}), end.output + collect_logs(story.disk)
    summary = read_summary(story.run)
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 2, 0)
    assert not (story.run / "campaign.lock").exists()


def test_its_run_folder_is_as_if_nothing_had_happened(story):
    assert story.kept
    check_invariants(story.run)
    check_run(story.run, every=20)
    assert verify_run(RunLayout(story.run)).problems == []


def test_nothing_in_it_can_be_written_by_everybody_although_the_user_would_let_them(story):
    paths = [story.run, *story.run.rglob("*")]
    assert len(paths) > 100
    assert [path for path in paths if not path.is_symlink() and path.stat().st_mode & 0o022] == []
