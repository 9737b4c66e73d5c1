"""A run folder that is taken up again: whose it is, and what may change."""

from __future__ import annotations

import os

import pytest
from conftest import prepare, tiny_settings

from entk_app.errors import RunFolderError
from entk_app.lock import CampaignLock, read_lock
from entk_app.processes import ProcessId
from entk_app.records import Decision
from entk_app.run_folder import change_settings, claim_run_folder, is_finished, read_settings


@pytest.fixture
def begun(tmp_path):
    return prepare(tmp_path / "run", tiny_settings()).layout


def test_limits_may_be_raised_and_are_kept(begun):
    more = tiny_settings("stop.max_iterations=200", "resource.walltime_min=5", "simulate.platform=CPU")
    change_settings(begun, more)
    assert read_settings(begun) == more


def test_a_campaign_whose_launcher_lives_is_not_taken_over(begun):
    CampaignLock.create(begun.lock)
    with pytest.raises(RunFolderError, match=f"still run by process {os.getpid()} on this host.*--resume"):
        claim_run_folder(begun)


def test_a_dead_launchers_folder_is_taken_over_and_old_requests_go(begun):
    lock = CampaignLock.create(begun.lock)
    begun.lock.write_text(lock.record.model_copy(update={"start": 1}).model_dump_json())
    begun.stop_request.touch()
    begun.deadline.write_text("{}")
    claim_run_folder(begun)
    assert read_lock(begun.lock).process == ProcessId.own()
    assert not begun.stop_request.exists() and not begun.deadline.exists()


@pytest.mark.parametrize(
    ("reason", "finished"),
    [("walltime", False), ("interrupted", False), ("pilot_lost", False), ("disk", False),
     ("failed", True), ("target_rmsd", True)],
)  # fmt: skip
def test_a_campaign_that_was_cut_off_is_not_finished(reason, finished):
    stop = Decision(index=0, iteration=1, next="stop", reason="so", stop_reason=reason)
    assert is_finished([stop]) is finished


def test_a_folder_without_a_campaign_is_refused(tmp_path):
    from entk_app.layout import RunLayout

    with pytest.raises(RunFolderError, match="holds no campaign"):
        read_settings(RunLayout(tmp_path))
