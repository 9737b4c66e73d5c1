"""A campaign that is killed again and again at random moments comes to its end all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_a_campaign_survives_25_kills_at_random_moments(tmp_path):
    # In a process of its own: it forks, which a process that has run TensorFlow must not.
    seed = os.environ.get("ENTK_APP_CHAOS_SEED", "1")
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("chaos.py")), str(tmp_path / "run"), "--seed", seed],
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr[-4000:]
    assert "survived 25 kills" in finished.stdout
    # They came at more than one place.
    places = {line.split(": ", 1)[1] for line in finished.stdout.splitlines() if line.startswith("kill ")}
    assert len(places) >= 5, finished.stdout
