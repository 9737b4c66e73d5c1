"""The pilot's parts that need no pilot: its description, its environment, and the processes that belong to a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from entk_app import pilot
from entk_app.layout import RunLayout
from entk_app.resources import find_resource
from entk_app.settings import ResourceSettings


def sleeper(base: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(120)"], env={**os.environ, "RADICAL_BASE": str(base)}
    )


@pytest.mark.parametrize(
    ("base", "belongs"),
    [("run/radical", True), ("run/radical/radical.pilot.sandbox", True), ("run/radical2", False), ("run", False)],
)
def test_processes_of_a_run_are_known_by_their_radical_base(tmp_path, base, belongs):
    layout = RunLayout(tmp_path / "run")
    process = sleeper(tmp_path / base)
    try:
        time.sleep(0.3)
        assert (process.pid in pilot._find_processes(layout)) == belongs
        killed = pilot.end_processes(layout, grace_s=0.0)
        assert (killed, process.poll() is not None) == ((1, True) if belongs else (0, False))
    finally:
        process.kill()
        process.wait()


def test_what_ends_by_itself_in_time_is_not_killed(tmp_path):
    layout = RunLayout(tmp_path / "run")
    process = sleeper(layout.radical)
    threading.Timer(0.7, process.terminate).start()
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    assert pilot.end_processes(layout, grace_s=20.0) == 0
    reaper.join()


def test_the_resource_description_is_entks():
    settings = ResourceSettings(cores=4, gpus=1, walltime_min=2.5, queue="short", project="abc")
    assert pilot.describe_resource(settings, find_resource(settings)) == {
        "resource": "local.localhost", "walltime": 3, "cpus": 4, "gpus": 1, "queue": "short", "project": "abc",
    }  # fmt: skip


def test_the_environment_points_into_the_run_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    own = home / ".radical" / "pilot" / "configs"
    own.mkdir(parents=True)
    (own / "resource_mine.json").write_text("{}")
    for name in list(os.environ):
        if name.startswith(("RADICAL", "ENTK_APP")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"/usr/bin:{tmp_path}/with space/bin")
    for name in ("PWD", "TMPDIR", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "x")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    layout = RunLayout(tmp_path / "run")
    try:
        pilot.prepare_environment(layout, find_resource(ResourceSettings(cores=3)), Path(sys.prefix))
        after = dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)
    for name in ("RADICAL_BASE", "RADICAL_CONFIG_USER_DIR", "TMPDIR", "HOME", "PWD"):
        assert after[name].startswith(str(layout.radical)), name
    assert after["ENTK_APP_HOME"] == str(home)
    assert after["PATH"].split(":") == [str(Path(sys.prefix) / "bin"), "/usr/bin"]
    configs = layout.radical / ".radical" / "pilot" / "configs"
    assert json.loads((configs / "resource_local.json").read_text())["localhost"]["cores_per_node"] == 3
    assert (configs / "resource_mine.json").exists()


@pytest.mark.parametrize("name", ["run", "my run", "it's", 'a "b"', "$HOME", "a;b"])
def test_radical_sees_no_path_that_its_scripts_cannot_take(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = RunLayout(tmp_path / name)
    layout.root.mkdir()
    with pilot._shell_safe(layout) as (safe, prefix):
        assert pilot._is_shell_safe(safe.root)
        assert pilot._is_shell_safe(safe.radical)
        assert pilot._is_shell_safe(prefix)
        safe.radical.mkdir(exist_ok=True)
        (safe.radical / "session").write_text("log")
        (safe.root / "summary.json").write_text("{}")
    assert (layout.radical / "session").read_text() == "log"
    assert (layout.root / "summary.json").exists()
    assert not safe.root.exists() or safe == layout


def test_an_environment_in_a_folder_with_a_space_works_by_links(tmp_path):
    prefix, link = tmp_path / "my environment", tmp_path / "link"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    script = prefix / "bin" / "radical-pilot-thing"
    script.write_text(f"#!{prefix}/bin/python\nimport sys\nprint(sys.prefix)\n")
    script.chmod(0o755)
    pilot._link_environment(prefix, link)
    finished = subprocess.run([link / "bin" / "radical-pilot-thing"], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == str(link)
    assert str(prefix) not in (link / "bin" / "activate").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_the_tasks_to_end_and_interrupts_the_main_thread(tmp_path, number):
    layout = RunLayout(tmp_path)
    signals = pilot._Signals(layout)
    with pytest.raises(KeyboardInterrupt), signals:
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert signals.received == [number]
    assert layout.stop_request.exists()


def test_while_the_campaign_is_closed_a_first_signal_is_only_noted(tmp_path):
    signals = pilot._Signals(RunLayout(tmp_path))
    with signals:
        signals.only_note()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
    assert signals.received == [signal.SIGINT]


def test_children_do_not_get_the_terminals_interrupt(tmp_path):
    with pilot._Signals(RunLayout(tmp_path)):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(30)"], stdout=-1
        )
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert child.poll() is None
        child.kill()
        child.wait()
        child.stdout.close()
