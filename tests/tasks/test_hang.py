"""A task that shows no progress ends itself, and says so."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from conftest import CHECKOUT, prepare, tiny_settings

from entk_app.layout import failure_of
from entk_app.records import TaskFailure, read_record
from entk_app.tasks import hang


def test_silence_is_noticed_and_progress_is_not(monkeypatch):
    told = threading.Event()
    began = time.monotonic()
    hang.watch(0.02, lambda minutes: told.set())
    while time.monotonic() - began < 2.5:
        hang.beat()
        time.sleep(0.01)
    assert not told.is_set()
    assert told.wait(30)


HANGING = """
import sys, time
from entk_app import md
md.run_segment = lambda *arguments, **more: time.sleep(600)
from entk_app.tasks.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_simulation_that_hangs_fails_with_that_reason(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged", "faults.hang_minutes=0.03"), cores=1)
    order = campaign.start().tasks[0].order
    finished = subprocess.run(
        [sys.executable, "-c", HANGING, "simulate", str(campaign.layout.root), str(order)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 1
    assert "faults.hang_minutes" in finished.stderr
    failure = read_record(TaskFailure, failure_of(order))
    assert (failure.kind, "it has hung" in failure.reason) == ("hung", True)
