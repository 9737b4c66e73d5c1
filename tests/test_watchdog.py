"""The watchdog: it cleans up after a launcher that was killed, and after no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entk_app.campaign import TaskSpec
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock, read_lock
from entk_app.processes import ProcessId, wait_until
from entk_app.workflow import build_command

LAUNCHER = """
import sys, time
from pathlib import Path
from entk_app.lock import CampaignLock
from entk_app.watchdog import Watchdog
root = Path(sys.argv[1])
lock = CampaignLock.create(root / "campaign.lock")
watchdog = Watchdog(root, lock.path)
lock.note_watchdog(watchdog.process)
watchdog.watch(root / "radical")
print("up", flush=True)
sys.stdin.readline()
watchdog.dismiss()
"""

#: In place of ``entk_app.tasks``: it ends when it is asked to, and says so in its order's file.
TASK = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[3]).write_text("saved"), sys.exit(0)))
print("up", flush=True)
time.sleep(120)
"""


@pytest.fixture
def layout(tmp_path):
    layout = RunLayout(tmp_path / "run")
    layout.radical.mkdir(parents=True)
    return layout


@pytest.fixture
def launcher(layout):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(layout.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.communicate()
    lock = read_lock(layout.lock)
    if lock is not None and lock.watchdog is not None:
        lock.watchdog.kill()


def start(layout, *arguments, base=None, cwd=None):
    environment = {**os.environ, "RADICAL_BASE": str(base or layout.radical)}
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, cwd=cwd)
    assert process.stdout.readline() == b"up\n"
    return process


def start_task(layout, order):
    """Something with the command line of a simulate task."""
    package = layout.root.with_name("stand-in") / "entk_app"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(TASK)
    spec = TaskSpec(kind="simulate", name="simulate.0001.0000.0000", order=order, cores=1, gpus=0)
    return start(layout, *build_command(spec, layout.root, order, Path(sys.executable))[1:], cwd=package.parent)


def sleeper(layout, **options):
    return start(layout, "-c", "import time; print('up', flush=True); time.sleep(120)", **options)


def test_what_a_killed_launcher_leaves_is_ended_in_order_and_then_by_force(layout, launcher, tmp_path):
    sandbox = layout.radical / "radical.pilot.sandbox" / "session" / "pilot.0000"
    sandbox.mkdir(parents=True)
    stranger = sleeper(layout, base=tmp_path)
    saved = layout.root / "saved"
    task = start_task(layout, saved)
    stubborn = start(
        layout, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(120)"
    )
    watchdog = read_lock(layout.lock).watchdog
    # The whole process group of the launcher, as a batch system does.
    os.killpg(launcher.pid, signal.SIGKILL)
    assert wait_until(lambda: task.poll() is not None, 15)
    assert saved.read_text() == "saved"
    assert stubborn.poll() is None
    assert wait_until(lambda: stubborn.poll() is not None, 40)
    assert wait_until(lambda: not watchdog.lives, 20)
    assert stranger.poll() is None
    assert (sandbox / "killme.signal").exists() and layout.stop_request.exists()
    for process in (stranger, task, stubborn):
        process.kill()
        process.communicate()


def test_what_a_launcher_said_last_is_heard_after_its_death(layout):
    # Killed before its watchdog had come up.
    lock = CampaignLock.create(layout.lock)
    own, dead = lock.record, subprocess.Popen(["true"])
    dead.wait()
    watchdog = subprocess.Popen(
        [sys.executable, "-m", "entk_app.watchdog", str(dead.pid), "1", str(layout.root), str(layout.lock)],
        stdin=subprocess.PIPE,
    )
    found = ProcessId.of(watchdog.pid)
    layout.lock.write_text(
        own.model_copy(
            update={"pid": dead.pid, "start": 1, "watchdog_pid": found.pid, "watchdog_start": found.start}
        ).model_dump_json()
    )
    task = start_task(layout, layout.root / "saved")
    watchdog.stdin.write(os.fsencode(layout.radical) + b"\n")
    watchdog.stdin.close()
    # Which is to be waited for: a zombie does not live, but it is not over either.
    task.communicate(timeout=10)
    assert watchdog.wait(timeout=30) == 1
    assert (layout.root / "saved").read_text() == "saved"


def test_it_ends_with_a_launcher_that_ends_in_order(layout, launcher):
    process = sleeper(layout)
    watchdog = read_lock(layout.lock).watchdog
    assert watchdog.lives
    launcher.communicate(b"\n")
    assert not watchdog.lives
    assert process.poll() is None and not layout.stop_request.exists()
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_signal_but_a_kill_ends_it(layout, launcher, number):
    watchdog = read_lock(layout.lock).watchdog
    assert os.getsid(watchdog.pid) == watchdog.pid
    time.sleep(1.0)
    os.kill(watchdog.pid, number)
    time.sleep(0.5)
    assert watchdog.lives


@pytest.mark.parametrize("change", ["taken", "other watchdog", "released"])
def test_it_touches_nothing_of_a_launcher_that_has_taken_the_folder_over(layout, launcher, change):
    watchdog = read_lock(layout.lock).watchdog
    process = sleeper(layout)
    text = json.loads(layout.lock.read_text())
    layout.lock.unlink()
    if change == "taken":
        CampaignLock.create(layout.lock)
    elif change == "other watchdog":
        layout.lock.write_text(json.dumps({**text, "watchdog_start": 1}))
    launcher.kill()
    assert wait_until(lambda: not watchdog.lives, 20)
    assert process.poll() is None and not layout.stop_request.exists()
    process.kill()
    process.communicate()


def test_it_imports_the_standard_library_only():
    script = (
        "import sys, entk_app.watchdog\n"
        "heavy = [m for m in ('pydantic', 'numpy', 'radical', 'yaml', 'rich') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_its_process_is_known_by_its_start(layout, launcher):
    assert read_lock(layout.lock).watchdog == ProcessId.of(read_lock(layout.lock).watchdog_pid)
