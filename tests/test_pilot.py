"""The pilot's parts that need no pilot: its description, its environment, and the processes that belong to a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from conftest import tiny_settings

from entk_app import pilot, processes
from entk_app import signals as signals_module
from entk_app.errors import RecordError, SettingsError
from entk_app.guard import Fault, Guard
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock
from entk_app.pilot_log import PilotLog, find_bootstrap, find_closing_seconds
from entk_app.records import PilotRecord, read_lines
from entk_app.resources import find_resource
from entk_app.settings import ResourceSettings
from entk_app.shell_safe import link_environment, make_shell_safe
from entk_app.signals import Signals
from entk_app.workflow import is_shell_safe


def signals_for(layout: RunLayout) -> Signals:
    return Signals(layout, Guard(layout, CampaignLock.create(layout.root / f"{uuid.uuid4().hex}.lock")))


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
        assert (process.pid in processes.find_processes(layout)) == belongs
        killed = processes.end_processes(layout, grace_s=0.0)
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
    assert processes.end_processes(layout, grace_s=20.0) == 0
    reaper.join()


def test_the_resource_description_is_entks():
    label = "local.dgx2_emulated"
    settings = ResourceSettings(label=label, cores=4, gpus=1, walltime_min=2.5, queue="short", project="abc")
    assert pilot.describe_resource(settings, find_resource(settings)) == {
        "resource": label, "walltime": 3, "cpus": 4, "gpus": 1, "queue": "short", "project": "abc",
        "access_schema": "local",
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
        resource = find_resource(ResourceSettings(label="local.dgx2_emulated", cores=6, gpus=0))
        pilot.prepare_environment(layout, resource, Path(sys.prefix))
        after = dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)
    for name in ("RADICAL_BASE", "RADICAL_CONFIG_USER_DIR", "TMPDIR", "HOME", "PWD"):
        assert after[name].startswith(str(layout.radical)), name
    assert after["ENTK_APP_HOME"] == str(home)
    assert after["PATH"].split(":") == [str(Path(sys.prefix) / "bin"), "/usr/bin"]
    configs = layout.radical / ".radical" / "pilot" / "configs"
    assert json.loads((configs / "resource_local.json").read_text())["dgx2_emulated"]["cores_per_node"] == 3
    assert (configs / "resource_mine.json").exists()


@pytest.mark.parametrize("name", ["run", "my run", "it's", 'a "b"', "$HOME", "a;b"])
def test_radical_sees_no_path_that_its_scripts_cannot_take(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = RunLayout(tmp_path / name)
    layout.root.mkdir()
    with make_shell_safe(layout, None) as (safe, prefix):
        assert is_shell_safe(safe.root)
        assert is_shell_safe(safe.radical)
        assert is_shell_safe(prefix)
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
    link_environment(prefix, link)
    finished = subprocess.run([link / "bin" / "radical-pilot-thing"], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == str(link)
    assert str(prefix) not in (link / "bin" / "activate").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_the_tasks_to_end_and_interrupts_the_main_thread(tmp_path, number):
    layout = RunLayout(tmp_path)
    signals = signals_for(layout)
    with pytest.raises(KeyboardInterrupt), signals:
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert signals.received == [number]
    assert layout.stop_request.exists()


def test_a_fork_of_the_launcher_that_is_ended_asks_nobody_to_stop(tmp_path):
    import multiprocessing

    layout = RunLayout(tmp_path)
    with signals_for(layout):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.3)
        child.terminate()
        child.join(10)
    assert child.exitcode in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert not layout.stop_request.exists()


def test_a_second_sigterm_is_not_a_second_ctrl_c(tmp_path):
    # RADICAL-Pilot sends one when its pilot fails, which the first one may have caused.
    signals = signals_for(RunLayout(tmp_path))
    with signals:
        signals.only_note()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    assert set(signals.received) == {signal.SIGTERM}


def test_radicals_own_sigterm_is_known_by_the_failed_pilot(tmp_path):
    for state, by_radical in (("FAILED", True), ("PMGR_ACTIVE", False), (None, False)):
        signals = signals_for(RunLayout(tmp_path))
        signals.pilot_state = lambda state=state: state
        with pytest.raises(KeyboardInterrupt), signals:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert signals.by_radical is by_radical


def test_while_the_campaign_is_closed_a_first_signal_is_only_noted(tmp_path):
    signals = signals_for(RunLayout(tmp_path))
    with signals:
        signals.only_note()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
    assert signals.received == [signal.SIGINT]


def test_children_do_not_get_the_terminals_interrupt(tmp_path):
    with signals_for(RunLayout(tmp_path)):
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


DGX2 = ResourceSettings(label="local.dgx2_emulated", walltime_min=30)


def pilot_log(layout, **stop):
    settings = tiny_settings(*(f"stop.{key}={value}" for key, value in stop.items()), "resource.walltime_min=30")
    return PilotLog(layout, settings, find_resource(DGX2))


def test_a_pilots_life_is_kept_and_the_next_one_has_the_next_number(tmp_path):
    layout = RunLayout(tmp_path)
    first = pilot_log(layout)
    first.begin(layout)
    first.update(unix_active=time.time(), session="re.session.1")
    first.end()
    second = pilot_log(layout)
    second.begin(layout)
    records = list(read_lines(PilotRecord, layout.pilots))
    assert [record.number for record in records] == [0, 1] and second.number == 1
    assert (records[0].session, records[0].gpus, records[0].cores) == ("re.session.1", 16, 96)
    assert records[0].unix_end is not None and records[1].unix_end is None


def test_a_pilot_that_was_not_asked_for_is_forgotten(tmp_path):
    layout = RunLayout(tmp_path)
    first = pilot_log(layout)
    first.begin(layout)
    first.end()
    second = pilot_log(layout)
    second.begin(layout)
    second.discard()
    second.end()
    assert [record.number for record in read_lines(PilotRecord, layout.pilots)] == [0]


def test_a_pilot_whose_launcher_was_killed_ended_with_its_last_sign_of_life(tmp_path):
    layout = RunLayout(tmp_path)
    first = pilot_log(layout)
    first.begin(layout)
    first.update(session="re.session.1")
    profile = layout.radical / "radical.pilot.sandbox" / "re.session.1" / "pilot.0000" / "agent_0.prof"
    profile.parent.mkdir(parents=True)
    profile.write_text("")
    began = next(read_lines(PilotRecord, layout.pilots)).unix_submitted
    os.utime(profile, (began + 225, began + 225))
    pilot_log(layout).begin(layout)
    record = next(read_lines(PilotRecord, layout.pilots))
    assert record.unix_end == pytest.approx(began + 225)
    assert record.gpu_hours == pytest.approx(16 * 225 / 3600)


def test_the_deadline_is_the_nearest_of_walltime_job_and_budget(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME", "ENTK_APP_JOB_END"):
        monkeypatch.delenv(name, raising=False)
    layout, now = RunLayout(tmp_path), time.time()

    def find(**stop):
        log = pilot_log(layout, **stop)
        log.add(layout)
        return log.find_deadline()

    walltime = find()
    assert (walltime.limit, walltime.end_by_unix) == ("walltime", pytest.approx(now + 29 * 60, abs=5))
    # 16 GPUs use 1.6 GPU-hours in six minutes; a tenth of the time is kept to close the pilot.
    budget = find(budget_gpu_hours=1.6)
    assert (budget.limit, budget.end_by_unix) == ("budget", pytest.approx(now + 360 - 36, abs=5))
    monkeypatch.setenv("ENTK_APP_JOB_END", str(int(now + 600)))
    assert find().end_by_unix == pytest.approx(now + 540, abs=5)


@pytest.mark.parametrize(
    ("seconds", "kept"), [(86400, 60), (600, 60), (360, 36), (100, 20), (60, 20), (30, 15), (0, 0)]
)
def test_time_is_kept_for_a_pilot_to_close(seconds, kept):
    assert find_closing_seconds(seconds) == pytest.approx(kept)


def test_earlier_pilots_count_towards_the_budget(tmp_path):
    layout = RunLayout(tmp_path)
    first = pilot_log(layout)
    first.begin(layout)
    first.update(unix_began=time.time() - 450)  # 2 GPU-hours
    first.end()
    settings = tiny_settings("stop.budget_gpu_hours=1.9", "resource.walltime_min=30")
    with pytest.raises(SettingsError, match="no budget is left"):
        pilot.check_time_left(layout, settings, find_resource(DGX2))
    assert len(list(read_lines(PilotRecord, layout.pilots))) == 1  # nothing was begun
    log = pilot_log(layout, budget_gpu_hours=2.4)
    log.add(layout)
    assert log.find_deadline().end_by_unix == pytest.approx(time.time() + 0.4 * 225 - 20, abs=5)


def test_a_budget_of_gpu_hours_needs_gpus(tmp_path):
    settings = tiny_settings("stop.budget_gpu_hours=1")
    with pytest.raises(SettingsError, match="local.dgx2_emulated has no GPU"):
        resource = find_resource(ResourceSettings(label="local.dgx2_emulated", gpus=0))
        pilot.check_time_left(RunLayout(tmp_path), settings, resource)


def test_what_a_killed_pilot_left_in_its_scratch_folder_comes_home(tmp_path):
    layout, away = RunLayout(tmp_path / "run"), tmp_path / "scratch" / "entk-app-abc"
    (away / "radical" / "radical.pilot.sandbox" / "re.session.9").mkdir(parents=True)
    (away / "logs" / "tasks").mkdir(parents=True)
    layout.root.mkdir()
    first = pilot_log(layout)
    first.begin(RunLayout(layout.root, scratch=away))
    first.update(session="re.session.9")
    left = sleeper(away / "radical" / "radical.pilot.sandbox")
    try:
        pilot_log(layout).close_earlier()
        assert left.wait(timeout=5) != 0
    finally:
        left.kill()
        left.wait()
    assert (layout.radical / "radical.pilot.sandbox" / "re.session.9").is_dir()
    assert (layout.logs / "tasks").is_dir()
    assert not away.exists()


@pytest.mark.parametrize(
    ("command", "orphan"),
    [
        (["-c", "import time; time.sleep(60)", "app.py"], True),
        (["-c", "import time; time.sleep(60)", "notes/entk-app.txt"], False),
        (["-c", "import time; time.sleep(60)"], False),
    ],
)
def test_only_a_launchers_fork_is_taken_for_one(tmp_path, command, orphan):
    layout = RunLayout(tmp_path)
    layout.radical.mkdir()
    process = subprocess.Popen([sys.executable, *command], cwd=layout.radical)
    try:
        time.sleep(0.3)
        assert (process.pid in processes.find_processes(layout)) is orphan
    finally:
        process.kill()
        process.wait()


def test_a_run_folder_by_another_name_is_the_same(tmp_path):
    layout = RunLayout(tmp_path / "run")
    layout.radical.mkdir(parents=True)
    (tmp_path / "link").symlink_to(layout.root)
    process = sleeper(tmp_path / "link" / "radical" / "radical.pilot.sandbox")
    try:
        assert process.pid in processes.find_processes(layout)
    finally:
        process.kill()
        process.wait()


def test_a_queued_pilots_time_begins_with_its_job(tmp_path):
    layout = RunLayout(tmp_path)
    folder = layout.radical / "radical.pilot.sandbox" / "s" / "pilot.0000"
    folder.mkdir(parents=True)
    (folder / "bootstrap_0.prof").write_text(
        "#time,event,comp,thread,uid,state,msg\n1790000000.5,bootstrap_0_start,bootstrap_0,MainThread,pilot.0000,,\n"
    )
    assert find_bootstrap(layout, "s") == 1790000000.5
    assert find_bootstrap(layout, "other") == pytest.approx(time.time(), abs=5)


def test_a_scratch_folder_takes_what_radical_writes_until_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout, scratch = RunLayout(tmp_path / "run"), tmp_path / "scratch"
    (layout.radical / "re.session.1").mkdir(parents=True)  # of an earlier pilot
    with make_shell_safe(layout, scratch) as (safe, _):
        assert safe.radical.parent.parent == scratch
        (safe.radical / "re.session.2").mkdir()
        (safe.logs / "tasks-0001").mkdir()
    assert {path.name for path in layout.radical.iterdir()} == {"re.session.1", "re.session.2"}
    assert (layout.logs / "tasks-0001").is_dir()
    assert list(scratch.iterdir()) == []


def test_slurm_is_asked_for_the_gpus_that_radical_forgets(tmp_path, monkeypatch):
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    asked = ResourceSettings(label="slurm.cluster", cores_per_node=8, gpus_per_node=4, submit=True)
    try:
        os.environ.pop("SBATCH_GRES", None)
        pilot.prepare_environment(RunLayout(tmp_path / "run"), find_resource(asked, environment={}), Path(sys.prefix))
        assert os.environ["SBATCH_GRES"] == "gpu:4"
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(("label", "submit"), [("local.dgx2_emulated", False), ("ornl.dgx2", True)])
def test_an_agent_learns_to_share_gpus_where_it_is_asked_to_and_also_a_queued_one(tmp_path, monkeypatch, label, submit):
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    layout, resource = RunLayout(tmp_path / "run"), find_resource(ResourceSettings(label=label, submit=submit))
    configs = layout.radical / ".radical" / "pilot" / "configs"
    lines = []
    try:
        for shares_gpus in (False, True):
            pilot.prepare_environment(layout, resource, Path(sys.prefix), shares_gpus)
            entry = json.loads((configs / f"resource_{resource.site}.json").read_text())[resource.key]
            lines.append(entry.get("pre_bootstrap_0", []))
    finally:
        os.environ.clear()
        os.environ.update(before)
    hook = layout.radical / "gpu-sharing"
    assert lines[1] == [*lines[0], f"export PYTHONPATH={hook}:$PYTHONPATH"]
    assert sorted(path.name for path in hook.iterdir()) == ["entk_app_loopback.py", "sitecustomize.py"]


def test_a_launcher_that_lost_its_lock_asks_nobody_to_stop(tmp_path):
    # The run folder is another's by now: its tasks look for that file, too.
    layout = RunLayout(tmp_path)
    guard = Guard(layout, CampaignLock.create(layout.lock))
    signals = Signals(layout, guard)
    guard.fault = Fault(None, "lost")
    with pytest.raises(KeyboardInterrupt), signals:
        guard.on_fault(guard.fault)
        time.sleep(10)
    assert not layout.stop_request.exists() and signals.received == []


def test_a_fault_interrupts_the_main_thread_again_until_it_closes(tmp_path, monkeypatch):
    monkeypatch.setattr(signals_module, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(signals_module, "_ATTEMPT_S", 0.3)
    layout, interrupts = RunLayout(tmp_path), 0
    guard = Guard(layout, CampaignLock.create(layout.lock))
    with Signals(layout, guard) as signals:
        threading.Timer(0.1, guard.on_fault, [Fault("disk", "full")]).start()
        for _ in range(3):
            # As radical's own clean-up that waits for a component that is dead.
            try:
                time.sleep(10)
            except KeyboardInterrupt:
                interrupts += 1
        signals.only_note()
        time.sleep(0.8)
    assert interrupts == 3
    assert layout.stop_request.exists()


class FakeCampaign:
    """What :func:`pilot._judge` asks of a campaign."""

    def __init__(self, root, final=None, is_over=False):
        self.layout, self.final_decision, self.is_over = RunLayout(root), final, is_over


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "failed"),
        ({"state": "FAILED", "active": True}, "pilot_lost"),
        ({"state": "FAILED", "active": False}, "failed"),
        ({"state": "FAILED", "active": True, "is_over": True}, "walltime"),
        ({"received": [signal.SIGTERM]}, "interrupted"),
        ({"received": [signal.SIGTERM], "by_radical": True, "state": "FAILED", "active": True}, "pilot_lost"),
        ({"cause": OSError(28, "No space left on device", "/run/x")}, "disk"),
        ({"cause": RuntimeError("[Errno 28] No space left on device")}, "disk"),
        ({"fault": Fault("disk", "full"), "received": [signal.SIGTERM], "by_radical": True}, "disk"),
        ({"cause": RecordError("cannot read it"), "gone": True}, "disk"),
        ({"fault": Fault("pilot_lost", "gone"), "cause": KeyboardInterrupt()}, "pilot_lost"),
        ({"fault": Fault(None, "lost"), "cause": KeyboardInterrupt()}, None),
    ],
)
def test_why_a_campaign_has_ended(tmp_path, given, reason):
    guard = Guard(RunLayout(tmp_path), CampaignLock.create(tmp_path / "lock"))
    guard.fault = given.get("fault")
    if given.get("gone"):
        guard.add_folder(tmp_path / "gone")
    signals = Signals(RunLayout(tmp_path), guard)
    signals.received, signals.by_radical = given.get("received", []), given.get("by_radical", False)
    log = pilot_log(RunLayout(tmp_path))
    log.begin(RunLayout(tmp_path))
    if given.get("active"):
        log.update(unix_active=time.time())
    campaign = FakeCampaign(tmp_path, is_over=given.get("is_over", False))
    end = pilot._judge(campaign, log, signals, guard, given.get("cause"), given.get("state"))
    assert end.stop_reason == reason
    if guard.fault is None or guard.fault.stop_reason is not None:
        # A rule that ended it comes first.
        over = FakeCampaign(tmp_path, final="over")
        assert pilot._judge(over, log, signals, guard, given.get("cause"), given.get("state")) is None
