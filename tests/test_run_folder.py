"""A run folder that is taken up again: whose it is, and what may change."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from conftest import prepare, tiny_settings

from entk_app.errors import RunFolderError
from entk_app.run_folder import change_settings, claim_run_folder, read_settings


@pytest.fixture
def begun(tmp_path):
    return prepare(tmp_path / "run", tiny_settings()).layout


def test_limits_may_be_raised_and_are_kept(begun):
    more = tiny_settings("stop.max_iterations=200", "resource.walltime_min=5", "simulate.platform=CPU")
    change_settings(begun, more)
    assert read_settings(begun) == more


def test_a_campaign_whose_launcher_lives_is_not_taken_over(begun, tmp_path):
    script = tmp_path / "app.py"
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    launcher = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    try:
        assert launcher.stdout.readline() == b"up\n"
        begun.lock.write_text(f"{platform.node()} {launcher.pid}\n")
        with pytest.raises(RunFolderError, match=f"still run by process {launcher.pid}"):
            claim_run_folder(begun)
        begun.lock.write_text(f"elsewhere {launcher.pid}\n")
        claim_run_folder(begun)
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
    assert begun.lock.read_text() == f"{platform.node()} {os.getpid()}\n"


@pytest.mark.parametrize("lock", ["", "host", "host notanumber", "{host} 4194305", "{host} {pid}"])
def test_a_stale_lock_is_taken_over_and_old_requests_go(begun, lock):
    begun.lock.write_text(lock.format(host=platform.node(), pid=os.getpid()))
    begun.stop_request.touch()
    begun.deadline.write_text("{}")
    claim_run_folder(begun)
    assert begun.lock.read_text() == f"{platform.node()} {os.getpid()}\n"
    assert not begun.stop_request.exists() and not begun.deadline.exists()


def test_a_folder_without_a_campaign_is_refused(tmp_path):
    from entk_app.layout import RunLayout

    with pytest.raises(RunFolderError, match="holds no campaign"):
        read_settings(RunLayout(tmp_path))
