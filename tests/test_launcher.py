"""Whether a launcher is at work: by its process here, by its heartbeat or the age of files elsewhere."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time

import pytest

from entk_app.launcher import describe_age, find_launcher
from entk_app.layout import RunLayout

NOW = 2e9


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "decisions.jsonl").write_text("")
    os.utime(tmp_path / "decisions.jsonl", (NOW - 5000, NOW - 5000))
    return RunLayout(tmp_path)


def lock(layout, text, age=0.0):
    layout.lock.write_text(text)
    os.utime(layout.lock, (NOW - age, NOW - age))


def own_start():
    """When this process began."""
    return (
        time.time()
        - time.clock_gettime(time.CLOCK_BOOTTIME)
        + float(
            open("/proc/self/stat").read().rpartition(")")[2].split()[19]  # noqa: PTH123
        )
        / os.sysconf("SC_CLK_TCK")
    )


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_process_of_this_host_that_is_older_than_its_lock_is_alive(layout, form):
    taken = own_start() + 1
    record = {"host": platform.node(), "pid": os.getpid(), "unix_started": taken}
    layout.lock.write_text(json.dumps(record) if form == "json" else f"{platform.node()} {os.getpid()}\n")
    found = find_launcher(layout, time.time() + 1e6)  # however old the lock
    assert (found.host, found.pid, found.is_alive) == (platform.node(), os.getpid(), True)


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_number_that_another_process_was_given_later_is_not_the_launcher(layout, form):
    taken = own_start() - 60
    record = {"host": platform.node(), "pid": os.getpid(), "unix": taken}
    layout.lock.write_text(json.dumps(record) if form == "json" else f"{platform.node()} {os.getpid()}\n")
    if form == "plain":
        os.utime(layout.lock, (taken, taken))
    assert not find_launcher(layout, time.time()).is_alive


def test_a_process_that_has_gone_is_dead_at_once(layout):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    layout.lock.write_text(json.dumps({"host": platform.node(), "pid": gone.pid, "unix": time.time()}))
    assert not find_launcher(layout, time.time()).is_alive


@pytest.mark.parametrize(("age", "is_alive"), [(5, True), (59, True), (61, False), (5000, False)])
def test_on_another_host_the_heartbeat_decides(layout, age, is_alive):
    lock(layout, json.dumps({"host": "elsewhere", "pid": 1, "unix": NOW - 9000}), age)
    found = find_launcher(layout, NOW)
    assert (found.is_alive, found.taken_unix, found.last_sign_unix) == (is_alive, NOW - 9000, NOW - age)


@pytest.mark.parametrize(("age", "is_alive"), [(300, True), (900, False)])
@pytest.mark.parametrize("sign", ["decisions.jsonl", "simulations/0003/segment-0001.partial/progress.json"])
def test_without_a_heartbeat_the_age_of_files_decides(layout, sign, age, is_alive):
    lock(layout, "elsewhere 17\n", age=5000)
    path = layout.root / sign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (NOW - age, NOW - age))
    found = find_launcher(layout, NOW)
    assert (found.host, found.pid, found.is_alive, found.last_sign_unix) == ("elsewhere", 17, is_alive, NOW - age)


@pytest.mark.parametrize("text", ["", "torn", '{"host": "els', "[]", "{}", "null", '{"host": 3, "pid": "x"}', "\x00"])
def test_a_lock_that_cannot_be_understood_raises_nothing(layout, text):
    lock(layout, text, age=900)
    assert not find_launcher(layout, NOW).is_alive
    os.utime(layout.lock, (NOW, NOW))
    assert find_launcher(layout, NOW).is_alive


def test_without_a_lock_nobody_is_at_work(layout):
    found = find_launcher(layout, NOW)
    assert (found.host, found.pid, found.is_alive, found.last_sign_unix) == (None, None, False, NOW - 5000)


def test_ages_are_said_as_people_do():
    assert [describe_age(s) for s in (0, 59.6, 119, 600, 7300, 90_000, 400_000)] == [
        "0 s", "60 s", "119 s", "10 min", "2 h", "25 h", "5 d",
    ]  # fmt: skip
