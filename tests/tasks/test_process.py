"""A task as a process: exit codes, and errors in its log."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import CHECKOUT, prepare, tiny_settings


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "entk_app.tasks", *map(str, arguments)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_task_runs_as_a_process(tmp_path):
    campaign = prepare(tmp_path / "a run", tiny_settings(), cores=1)
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
