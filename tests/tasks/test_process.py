"""A task as a process: exit codes, and errors in its log."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from conftest import CHECKOUT, prepare, tiny_settings

from entk_app.records import SegmentRecord, read_record


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "entk_app.tasks", *map(str, arguments)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_task_runs_as_a_process(tmp_path):
    campaign = prepare(tmp_path / "a run", tiny_settings("coupling=staged"), cores=1)
    task = campaign.start().tasks[0]
    finished = run("simulate", campaign.layout.root, task.order)
    assert finished.returncode == 0, finished.stderr
    assert "15 frames, lowest RMSD" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["simulate"], 2, "usage"),
        (["dance", "run", "order"], 1, "no task kind 'dance'"),
        (["simulate", "run", "nowhere.json"], 1, "cannot read the SimulateTask"),
    ],
)
def test_a_task_that_cannot_run_says_why(arguments, code, words):
    finished = run(*arguments)
    assert finished.returncode == code
    assert words in finished.stderr


def test_a_simulation_that_is_ended_by_its_batch_system_keeps_what_it_has(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged", "simulate.segment_ns=1000"), cores=1)
    layout, order = campaign.layout, campaign.start().tasks[0].order
    command = [sys.executable, "-m", "entk_app.tasks", "simulate", str(layout.root), str(order)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not layout.segment(0, 0).in_work().progress.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log
    record = read_record(SegmentRecord, layout.segment(0, 0).record)
    assert (record.ended_by, record.n_frames > 0) == ("stop_request", True)
