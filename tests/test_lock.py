"""One campaign per run folder: who has the lock, who may take it, and that two takers do not both get it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from entk_app import lock as lock_module
from entk_app.errors import LockLost, RunFolderError
from entk_app.lock import CampaignLock, read_lock
from entk_app.processes import Host, ProcessId


@pytest.fixture
def path(tmp_path):
    return tmp_path / "campaign.lock"


def take_and_die(path, **changes) -> None:
    """A lock whose launcher has been killed, with changes."""
    script = "import pathlib, sys, entk_app.lock as m; m.CampaignLock.create(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def living():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield ProcessId.of(process.pid)
    process.kill()
    process.wait()


def test_a_process_is_told_from_a_later_one_of_its_number(living):
    assert living.lives
    assert not ProcessId(living.pid, living.start + 1).lives
    assert not ProcessId.of(2**22 + 1).lives


def test_a_zombie_does_not_live():
    process = subprocess.Popen(["true"])
    found = ProcessId.of(process.pid)
    end = time.monotonic() + 10
    while found.lives and time.monotonic() < end:
        time.sleep(0.02)
    assert not found.lives
    process.wait()


def test_a_living_launcher_keeps_its_folder_and_is_named(path, living):
    take_and_die(path, pid=living.pid, start=living.start)
    with pytest.raises(RunFolderError, match=rf"still run by process {living.pid} on this host .*--resume"):
        CampaignLock.acquire(path)
    assert read_lock(path).pid == living.pid


@pytest.mark.parametrize("changes", [{}, {"start": 1}, {"pid": os.getpid()}])
def test_a_dead_launchers_lock_is_taken_at_once(path, changes):
    take_and_die(path, **changes)
    told = []
    taken = CampaignLock.acquire(path, told.append, watch_s=3600)
    assert told == []
    assert read_lock(path) == taken.record
    assert taken.record.process == ProcessId.own()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"boot_id": "another"}, {"pid_namespace": "pid:[1]"}]
)
def test_a_launcher_elsewhere_is_watched_for_its_heartbeat(path, changes, living):
    take_and_die(path, pid=living.pid, start=living.start, **changes)
    told = []
    CampaignLock.acquire(path, told.append, watch_s=0.5)
    assert len(told) == 1 and f"process {living.pid} on" in told[0]
    assert read_lock(path).process == ProcessId.own()


@pytest.mark.parametrize("how", ["touch", "rewrite"])
def test_a_heartbeat_from_elsewhere_keeps_the_folder(path, how):
    take_and_die(path, host="elsewhere")
    before = path.read_text()

    def beat():
        time.sleep(0.4)
        os.utime(path) if how == "touch" else path.write_text(before + "\n")

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunFolderError, match="on elsewhere"):
        CampaignLock.acquire(path, lambda text: None, watch_s=30)
    thread.join()
    assert "elsewhere" in path.read_text()


@pytest.mark.parametrize("text", ["", "host 123\n", "{}", "{"])
def test_a_lock_that_says_nothing_is_taken_when_nobody_touches_it(path, text):
    path.write_text(text)
    CampaignLock.acquire(path, lambda text: None, watch_s=0.3)
    assert read_lock(path).process == ProcessId.own()


def _compete(path, start, results):
    start.wait()
    try:
        taken = CampaignLock.acquire(path, lambda text: None, watch_s=0.5)
    except RunFolderError:
        results.put(None)
        return
    results.put(os.getpid())
    # As a launcher, until everybody has tried.
    time.sleep(3.0)
    taken.check()


@pytest.mark.parametrize("changes", [{}, {"host": "elsewhere"}])
def test_of_many_takers_of_a_dead_launchers_lock_one_gets_it(path, changes):
    take_and_die(path, **changes)
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    takers = [context.Process(target=_compete, args=(path, start, results)) for _ in range(8)]
    for taker in takers:
        taker.start()
    start.set()
    found = [results.get(timeout=20) for _ in takers]
    for taker in takers:
        taker.join()
    winners = [pid for pid in found if pid is not None]
    assert len(winners) == 1
    assert read_lock(path).pid == winners[0]
    assert [taker.exitcode for taker in takers] == [0] * 8


def test_a_fresh_lock_is_not_taken_for_the_stale_one(path, monkeypatch):
    # Between the judgement and the removal, another taker has been there.
    take_and_die(path)
    seen = lock_module._look(path)
    path.unlink()
    fresh = CampaignLock.create(path)
    lock_module._take_away(path, seen)
    assert read_lock(path) == fresh.record
    fresh.check()


def test_a_lock_that_is_anothers_by_now_is_lost(path):
    mine = CampaignLock.create(path)
    mine.beat()
    path.unlink()
    take_and_die(path)
    with pytest.raises(LockLost, match="is held by process"):
        mine.beat()
    path.unlink()
    with pytest.raises(LockLost, match="was removed"):
        mine.beat()


def test_a_heartbeat_shows(path):
    mine = CampaignLock.create(path)
    os.utime(path, (1, 1))
    seen = lock_module._look(path)
    mine.beat()
    assert lock_module._look(path) != seen


def test_a_folder_that_has_gone_is_no_lost_lock(tmp_path):
    (tmp_path / "run").mkdir()
    mine = CampaignLock.create(tmp_path / "run" / "campaign.lock")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        mine.beat()
    assert not (tmp_path / "run").exists()


def test_a_lock_is_released_but_not_anothers(path):
    with CampaignLock.create(path):
        assert path.exists()
    assert not path.exists()
    mine = CampaignLock.create(path)
    path.unlink()
    take_and_die(path)
    mine.release()
    assert path.exists()


def test_the_watchdog_of_a_dead_launcher_is_ended_before_the_campaign_goes_on(path, living):
    take_and_die(path, watchdog_pid=living.pid, watchdog_start=living.start)
    CampaignLock.acquire(path)
    assert not living.lives


def test_a_watchdog_is_noted_without_losing_the_lock(path, living):
    mine = CampaignLock.create(path)
    mine.note_watchdog(living)
    mine.check()
    assert read_lock(path).watchdog == living


def test_this_host_is_known():
    here = Host.here()
    assert here.boot_id and here.pid_namespace.startswith("pid:[")
