"""The guard over a running campaign: what it notices, and what it does not hold for a fault."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from entk_app import guard as guard_module
from entk_app.guard import Guard
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock
from entk_app.processes import ProcessId, end_processes, find_components, find_processes, wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(guard_module, "_LOOK_S", 0.05)
    monkeypatch.setattr(guard_module, "_NOTICE_S", 0.3)
    monkeypatch.setattr(guard_module, "HEARTBEAT_S", 0.1)


@pytest.fixture
def layout(tmp_path):
    layout = RunLayout(tmp_path / "run")
    layout.radical.mkdir(parents=True)
    return layout


@pytest.fixture
def guard(layout):
    guard = Guard(layout, CampaignLock.create(layout.lock))
    guard.told = []
    guard.on_fault = guard.told.append
    with guard:
        yield guard


def component(layout, name="rp.agent.0"):
    """As radical's own processes are: a title, no environment, a folder below radical."""
    return subprocess.Popen([name, "60"], executable="/bin/sleep", cwd=layout.radical, env={})


def end(process):
    process.kill()
    process.wait()


def test_the_heartbeat_shows_while_all_is_well(guard, layout):
    os.utime(layout.lock, (1, 1))
    assert wait_until(lambda: layout.lock.stat().st_mtime > 1, 10)
    assert guard.fault is None


def test_a_lock_of_another_ends_the_campaign_without_a_record(guard, layout):
    text = layout.lock.read_text()
    other = layout.root / "other"
    other.write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 1'))
    other.replace(layout.lock)
    assert wait_until(lambda: guard.fault is not None, 10)
    assert guard.fault.stop_reason is None and "is held by process 1" in guard.fault.message


def test_a_run_folder_that_has_gone_ends_the_campaign_and_is_told_once(guard, layout):
    layout.root.rename(layout.root.with_name("moved"))
    assert wait_until(lambda: guard.told != [], 10)
    threading.Event().wait(0.3)
    assert [(fault.stop_reason, fault.message) for fault in guard.told] == [
        ("disk", f"{layout.root} has gone: put it back")
    ]
    assert not layout.root.exists()


def test_a_trouble_of_a_moment_is_none(layout, monkeypatch):
    answers = iter([None, "away", None, "away", None])
    monkeypatch.setattr(guard_module, "find_trouble", lambda folder: next(answers, None))
    with Guard(layout, CampaignLock.create(layout.lock)) as guard:
        assert wait_until(lambda: next(answers, "over") == "over", 10)
    assert guard.fault is None


def test_too_little_room_ends_the_campaign(layout, monkeypatch):
    monkeypatch.setattr("entk_app.storage._RESERVE_FILES", 2**62)
    with Guard(layout, CampaignLock.create(layout.lock)) as guard:
        assert wait_until(lambda: guard.fault is not None, 10)
    assert guard.fault.stop_reason == "disk" and "is nearly full" in guard.fault.message


def test_the_death_of_a_process_of_radical_is_noticed(guard, layout):
    first, second = component(layout), component(layout, "rp.agent_executing.0000")
    closing = threading.Event()
    try:
        guard.watch_pilot(layout, closing.is_set)
        assert wait_until(lambda: len(guard.components) == 2, 10)
        threading.Event().wait(0.5)
        assert guard.fault is None
        end(first)
        assert wait_until(lambda: guard.fault is not None, 10)
    finally:
        end(first)
        end(second)
    assert guard.fault.stop_reason == "pilot_lost"
    assert "rp.agent.0 ended unasked" in guard.fault.message


def test_processes_that_end_while_the_campaign_closes_are_no_fault(guard, layout):
    process = component(layout)
    closing = threading.Event()
    guard.watch_pilot(layout, closing.is_set)
    assert wait_until(lambda: guard.components, 10)
    closing.set()
    end(process)
    threading.Event().wait(1.0)
    assert guard.fault is None


def test_radicals_own_processes_are_found_by_title_and_folder_and_no_others(layout, tmp_path):
    (tmp_path / "other" / "radical").mkdir(parents=True)
    own, other = component(layout), component(RunLayout(tmp_path / "other"))
    plain = subprocess.Popen(["sleep", "60"], cwd=layout.radical, env={})
    try:
        assert find_components(layout) == {ProcessId.of(own.pid): "rp.agent.0"}
        assert find_processes(layout) == [own.pid]
        # Also when their folder has been moved away since.
        known = find_components(layout)
        layout.root.rename(tmp_path / "moved")
        assert find_processes(layout) == []
        reaper = threading.Thread(target=own.wait)
        reaper.start()
        end_processes(layout, grace_s=0.0, also=known)
        reaper.join(5)
        assert own.returncode == -15
        assert other.poll() is None and plain.poll() is None
    finally:
        for process in (own, other, plain):
            end(process)


@pytest.mark.parametrize("code", [0, 130])
def test_a_process_leaves_although_a_thread_of_its_own_would_not(code):
    script = (
        "import threading, time; from entk_app import processes; processes._LEAVE_S = 0.2\n"
        "threading.Thread(target=time.sleep, args=(600,)).start(); print('said'); "
        f"processes.leave({code})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "said\n")
