"""Whether a launcher is at work: by its process here, by its heartbeat elsewhere, by the age of files at worst."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from entk_app.launcher import describe_age, find_launcher
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock, LockRecord

NOW = 2e9


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "decisions.jsonl").write_text("")
    os.utime(tmp_path / "decisions.jsonl", (NOW - 5000, NOW - 5000))
    return RunLayout(tmp_path)


def write_lock(layout, age, **changes):
    values = {"host": "elsewhere", "boot_id": "b", "pid_namespace": "n", "pid": 1, "start": 5, "unix": NOW - 9000}
    layout.lock.write_text(LockRecord(**{**values, **changes}).model_dump_json())
    os.utime(layout.lock, (NOW - age, NOW - age))


def test_a_process_of_this_host_that_holds_the_lock_is_alive_however_old_its_heartbeat(layout):
    lock = CampaignLock.create(layout.lock)
    found = find_launcher(layout, time.time() + 1e6)
    assert (found.is_alive, found.pid, found.taken_unix) == (True, os.getpid(), lock.record.unix)
    lock.release()
    assert not find_launcher(layout, time.time()).is_alive


def test_a_number_that_another_process_was_given_later_is_not_the_launcher(layout):
    record = CampaignLock.create(layout.lock).record
    layout.lock.write_text(record.model_copy(update={"start": record.start - 1}).model_dump_json())
    assert not find_launcher(layout, time.time()).is_alive


def test_a_process_that_has_gone_is_dead_at_once(layout):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    record = CampaignLock.create(layout.lock).record
    layout.lock.write_text(record.model_copy(update={"pid": gone.pid}).model_dump_json())
    assert not find_launcher(layout, time.time()).is_alive


@pytest.mark.parametrize(("age", "is_alive"), [(5, True), (59, True), (61, False), (5000, False)])
def test_on_another_host_the_heartbeat_decides(layout, age, is_alive):
    write_lock(layout, age)
    found = find_launcher(layout, NOW)
    assert (found.host, found.pid) == ("elsewhere", 1)
    assert (found.is_alive, found.taken_unix, found.last_sign_unix) == (is_alive, NOW - 9000, NOW - age)


@pytest.mark.parametrize(
    "text", ["", "host 17\n", '{"host": "els', "[]", "{}", "null", '{"host": 3}', "\x00", "\udcff"]
)
@pytest.mark.parametrize(("age", "is_alive"), [(300, True), (900, False)])
@pytest.mark.parametrize("sign", ["decisions.jsonl", "simulations/0003/segment-0001.partial/progress.json"])
def test_where_the_lock_cannot_be_understood_the_age_of_files_decides(layout, text, sign, age, is_alive):
    layout.lock.write_text(text, errors="surrogateescape")
    os.utime(layout.lock, (NOW - 5000, NOW - 5000))
    path = layout.root / sign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (NOW - age, NOW - age))
    found = find_launcher(layout, NOW)
    assert (found.pid, found.is_alive, found.last_sign_unix) == (None, is_alive, NOW - age)


def test_without_a_lock_nobody_is_at_work(layout):
    found = find_launcher(layout, NOW)
    assert (found.host, found.pid, found.is_alive, found.last_sign_unix) == (None, None, False, NOW - 5000)


def test_ages_are_said_as_people_do():
    assert [describe_age(s) for s in (0, 59.6, 119, 600, 7300, 90_000, 400_000)] == [
        "0 s", "60 s", "119 s", "10 min", "2 h", "25 h", "5 d",
    ]  # fmt: skip
