"""One campaign on a real local pilot, with faults of its tasks, its decisions and its files.

Simulations are killed and stopped, the launcher is killed while models train, while frames are analysed and while it
decides, files are damaged; then a SIGTERM and a walltime. It is taken up after each, and finished.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from check_invariants import check_invariants
from check_run import check_run
from conftest import collect_logs
from real_pilot import count_left, end_everything, find_processes, read_summary, run_to_end, start, wait_for

from entk_app.layout import RunLayout
from entk_app.verify import verify_run

pytestmark = [pytest.mark.pilot, pytest.mark.timeout(1200)]

OPTIONS = [
    "--run-dir", "run", "--seed", "5", "--set", "simulate.segment_ns=2", "--set", "train.epochs=2",
    "--set", "train.latent_dims=[3]", "--set", "steering.min_frames=20", "--set", "steering.window=20",
    "--set", "steering.min_restarts=1", "--set", "stop.target_rmsd_angstrom=0.1", "--set", "stop.max_iterations=4",
    "--set", "resource.cores=2", "--set", "faults.hang_minutes=0.4", "--set", "faults.save_minutes=0.02",
]  # fmt: skip


@dataclass
class Story:
    """What happened to the campaign, told once; the tests below ask for its parts."""

    folder: Path
    codes: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    left: dict[str, dict[int, str]] = field(default_factory=dict)
    reasons: dict[str, str | None] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: dict[str, list] = field(default_factory=dict)
    kept: dict[Path, bytes] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def segments(self) -> list[Path]:
        return sorted(self.run.glob("simulations/*/segment-????/segment.json"))

    def count_saved(self) -> int:
        """Segments of the simulation that has saved less."""
        return min(len(list(self.run.glob(f"simulations/000{n}/segment-????/segment.json"))) for n in (0, 1))

    def decisions(self) -> list[dict]:
        return [json.loads(line) for line in (self.run / "decisions.jsonl").read_text().splitlines()]

    def end(self, process: subprocess.Popen, what: str, timeout_s: float = 120) -> None:
        """Wait until the launcher and all that it started have gone, then check what there is."""
        output, _ = process.communicate(timeout=timeout_s)
        self.codes[what], self.outputs[what] = process.returncode, output
        self.left[what] = count_left(self.folder, 60.0)
        self.check(what)

    def check(self, what: str) -> None:
        self.reasons[what] = self.decisions()[-1].get("stop_reason")
        for path in self.segments():
            content = path.read_bytes()
            assert self.kept.setdefault(path, content) == content, f"{path} has changed"
        lost = {path for path in self.kept if not path.exists()}
        assert {path.parent for path in lost} == set(self.damaged), "a finished segment is gone"
        self.counts[what] = check_invariants(self.run)
        self.problems[what] = verify_run(RunLayout(self.run)).problems


def find_task(folder: Path, kind: str) -> list[int]:
    return [pid for pid, command in find_processes(folder).items() if f"-m entk_app.tasks {kind} " in command + " "]


def wait_for_decision(process: subprocess.Popen, told: Story, count: int) -> None:
    """Until the launcher has written so many decisions: what follows from the last is not written yet."""
    path, deadline = told.run / "decisions.jsonl", time.monotonic() + 180
    while path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, "no decision\n" + collect_logs(told.folder)


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Iterator[Story]:
    told = Story(tmp_path_factory.mktemp("campaign faults"))
    tell(told)
    yield told


def tell(told: Story) -> None:
    folder = told.folder
    process = start(OPTIONS, folder)
    try:
        # One simulation is killed and the other stopped, once each has saved something.
        wait_for(process, folder, "saved segments", lambda: told.count_saved() >= 2)
        one, other = find_task(folder, "simulate")
        os.kill(one, signal.SIGKILL)
        os.kill(other, signal.SIGSTOP)
        wait_for(process, folder, "a training", lambda: find_task(folder, "train"))
        process.kill()
        told.end(process, "killed while models train")

        process = start(["--resume", "run"], folder)
        wait_for(process, folder, "an analysis", lambda: find_task(folder, "analyse"))
        process.kill()
        told.end(process, "killed while frames are analysed")

        # Of two segments, one in each simulation: a bit, and the second half.
        first, second = (told.run / "simulations" / f"000{n}" / "segment-0000" / "frames.h5" for n in (0, 1))
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(content)
        os.truncate(second, second.stat().st_size // 2)
        told.damaged += [first.parent, second.parent]
        process = start(["--resume", "run"], folder)
        count = len(told.decisions())
        wait_for_decision(process, told, count + 1)
        process.kill()
        told.end(process, "killed while it decides")

        process = start(["--resume", "run"], folder)
        before = len(told.segments())
        wait_for(process, folder, "a segment", lambda: len(told.segments()) > before)
        process.terminate()
        told.end(process, "sigterm")

        options = ["--set", "resource.walltime_min=0.7", "--set", "simulate.segment_ns=2"]
        process = start(["--resume", "run", *options], folder)
        told.end(process, "walltime")
    finally:
        end_everything(process, folder)
        process.stdout.close()
    finished = run_to_end(["--resume", "run", "--set", "resource.walltime_min=null"], folder)
    told.codes["finished"], told.outputs["finished"], told.left["finished"] = (
        finished.returncode, finished.stdout, finished.left,
    )  # fmt: skip
    told.check("finished")


FAULTS = [
    "killed while models train", "killed while frames are analysed", "killed while it decides", "sigterm", "walltime",
    "finished",
]  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_after_each_fault_every_finished_frame_counts_once(story, what):
    assert story.problems[what] == []
    assert story.counts[what]["frames"] > 0


@pytest.mark.parametrize("what", FAULTS)
def test_after_each_fault_no_process_is_left(story, what):
    assert story.left[what] == {}


def test_each_end_is_told_by_its_exit_code(story):
    expected = dict.fromkeys(FAULTS[:3], -signal.SIGKILL) | {"sigterm": 130, "walltime": 0, "finished": 0}
    assert story.codes == expected, story.outputs
    assert (story.reasons["sigterm"], story.reasons["walltime"]) == ("interrupted", "walltime")
    assert story.reasons["finished"] == "max_iterations", story.outputs["finished"]


def test_a_killed_and_a_hung_simulation_have_failed_and_go_on(story):
    reasons = [json.loads(path.read_text()) for path in story.run.glob("simulations/*/*.failure.json")]
    assert any(reason["kind"] == "hung" for reason in reasons)
    # What each had saved was kept, and the next decision let both go on.
    following = story.decisions()[1:3]
    assert all(action["kind"] != "end" for decision in following for action in decision["actions"])
    records = [json.loads(path.read_text()) for path in story.kept if path.exists()]
    assert {record["ended_by"] for record in records} >= {"save", "length"}


def test_damaged_segments_are_set_aside_with_their_reasons(story):
    notes = [json.loads(line) for line in (story.run / "set-aside" / "notes.jsonl").read_text().splitlines()]
    reasons = {note["path"]: note["reason"] for note in notes}
    assert "is altered" in reasons["simulations/0000/segment-0000"]
    assert "bytes, it was published with" in reasons["simulations/0001/segment-0000"]


def test_the_finished_campaign_passes_the_independent_checks(story):
    summary = read_summary(story.run)
    assert summary["n_iterations"] == 4
    assert summary["n_failed_tasks"] >= 2
    assert summary["n_restarts"] >= 1
    assert story.counts["finished"]["set aside"] >= 2
    check_run(story.run)
