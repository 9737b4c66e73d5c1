"""What RADICAL-Pilot leaves on disk, whole, cut off or missing, read into pilots and tasks."""

from __future__ import annotations

import json
import os

import pytest
from written_pilot import WrittenPilot, WrittenTask, write_segment

from entk_app.accounting import account
from entk_app.errors import RunFolderError
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock
from entk_app.profiles import find_pilots
from entk_app.records import Action, Decision, append_record
from entk_app.usage import is_living, read_usage

NOW = 10_000.0


@pytest.fixture
def layout(tmp_path) -> RunLayout:
    return RunLayout(tmp_path / "run")


@pytest.fixture
def as_launcher(layout, monkeypatch):
    """This process is the campaign's launcher, which works in the run folder."""
    layout.radical.mkdir(parents=True)
    CampaignLock.create(layout.lock)
    monkeypatch.chdir(layout.radical)


def make_tasks() -> list[WrittenTask]:
    return [
        WrittenTask("task.000000", "simulate.0001.0000.0000", 20, 21, 41, 42, cores=(0, 1), stage="simulate.0001.0001"),
        WrittenTask("task.000001", "simulate.0001.0001.0000", 20, 22, 52, 53, cores=(2,), stage="simulate.0001.0001"),
    ]


def test_a_pilot_and_its_tasks_are_read_with_their_times_and_slots(layout):
    WrittenPilot(tasks=make_tasks()).write(layout)
    usage = read_usage(layout, NOW)
    (pilot,) = usage.pilots
    assert (pilot.number, pilot.resource, pilot.state) == (1, "site.machine", "ended")
    assert (pilot.nodes, pilot.cores, pilot.gpus) == (1, 4, 0)
    assert (pilot.submitted, pilot.start, pilot.active, pilot.shutdown, pilot.end) == (995, 1000, 1010, 1095, 1100)
    assert pilot.request.model_dump() == {"nodes": 1, "cores": 4, "gpus": 0, "walltime_min": 10}
    first, second = usage.tasks
    assert (first.name, first.stage, first.kind) == ("simulate.0001.0000.0000", "simulate.0001.0001", "simulate")
    assert (first.iteration, first.simulation, first.segment) == (1, 0, 0)
    assert (first.node, first.core_ids, first.cores, first.gpus) == ("node1", (0, 1), 2.0, 0.0)
    assert (first.submitted, first.scheduled, first.started, first.stopped, first.released) == (
        1019.75, 1020, 1021, 1041, 1042,
    )  # fmt: skip
    assert (second.exit_code, second.state) == (0, "done")
    parts = account(usage, NOW).core_hours
    assert parts.in_use * 3600 == pytest.approx(2 * 20 + 30)
    assert parts.overhead * 3600 == pytest.approx(2 * 2 + 3)
    assert parts.idle * 3600 == pytest.approx(4 * 85 - 77)
    assert parts.accounted == pytest.approx(parts.whole)


@pytest.mark.parametrize("client", [True, False])
def test_a_task_on_half_a_gpu_counts_half_whether_the_session_was_closed_or_not(layout, client):
    tasks = [
        WrittenTask("task.000000", "simulate.0001.0000.0000", 20, 21, 41, 42, gpus=(0,), gpu_part=0.5),
        WrittenTask("task.000001", "simulate.0001.0001.0000", 20, 21, 51, 52, gpus=(0,), gpu_part=0.5),
        WrittenTask("task.000002", "train.0001.latent-3", 20, 21, 61, 62, gpus=(1,), publishes=False),
    ]
    WrittenPilot(tasks=tasks, gpus=2).write(layout, client=client)
    usage = read_usage(layout, NOW)
    assert [(task.gpus, task.gpu_ids) for task in usage.tasks] == [(0.5, (0,)), (0.5, (0,)), (1.0, (1,))]
    parts = account(usage, NOW).gpu_hours
    assert parts.of_kind("simulate") * 3600 == pytest.approx(0.5 * 20 + 0.5 * 30)
    assert parts.oversubscribed == 0
    assert parts.accounted == pytest.approx(parts.whole)


def test_failed_and_purged_work_is_told_apart(layout):
    tasks = [
        *make_tasks(),
        WrittenTask("task.000002", "simulate.0001.0002.0000", 20, 22, 32, 33, exit_code=3, publishes=False),
        WrittenTask("task.000003", "simulate.0001.0002.0000.try2", 40, 42, 52, 53),
    ]
    WrittenPilot(tasks=tasks).write(layout)
    purge = Action(kind="purge", simulation=1, reason="no outlier")
    append_record(layout.decisions, Decision(index=0, iteration=1, next="simulate", reason="r", actions=(purge,)))
    with layout.decisions.open("a") as stream:
        stream.write('{"index": 1, "iterat')
    assert [task.state for task in read_usage(layout, NOW).tasks] == ["done", "purged", "failed", "done"]


def test_without_exit_codes_a_record_of_another_try_is_not_the_tasks_own(layout):
    tasks = [
        WrittenTask("task.000002", "simulate.0001.0002.0000", 20, 22, 32, 33, publishes=False),
        WrittenTask("task.000003", "simulate.0001.0002.0000.try2", 40, 42, 52, 53),
    ]
    WrittenPilot(tasks=tasks).write(layout, client=False)
    assert [task.state for task in read_usage(layout, NOW).tasks] == ["failed", "done"]


def test_a_pilot_that_was_killed_with_its_launcher_is_counted_until_its_last_trace(layout):
    tasks = make_tasks()
    tasks[1].stopped = tasks[1].released = None
    tasks.append(WrittenTask("task.000002", "train.0001.latent3", 60, 61, gpus=(1,), publishes=False))
    WrittenPilot(tasks=tasks, cancelled=None, stop=None, gpus=2).write(layout, client=False)
    usage = read_usage(layout, NOW)
    (pilot,) = usage.pilots
    assert (pilot.state, pilot.end, pilot.shutdown) == ("cut off", 1061, None)
    assert (pilot.cores, pilot.gpus, pilot.request.walltime_min, pilot.resource) == (4, 2, 10, "site.machine")
    done, cut, training = usage.tasks
    assert (done.state, done.stage, done.cores) == ("done", "simulate.0001.0001", 2.0)
    assert (cut.state, cut.stopped) == ("failed", None)
    assert (training.kind, training.latent_dim, training.gpus, training.gpu_ids) == ("train", 3, 1.0, (1,))
    parts = account(usage, NOW).core_hours
    assert parts.in_use * 3600 == pytest.approx(2 * 20 + (61 - 22) + 0)
    assert parts.accounted == pytest.approx(parts.whole)


def test_a_tasks_own_record_stands_in_for_an_end_that_no_profile_has(layout):
    tasks = make_tasks()
    tasks[0].stopped = tasks[0].released = None
    WrittenPilot(tasks=tasks, cancelled=None, stop=None).write(layout, client=False)
    write_segment(layout, tasks[0].name, 1022.0, 1077.0)
    usage = read_usage(layout, NOW)
    assert (usage.tasks[0].state, usage.tasks[0].stopped) == ("done", 1077.0)
    assert usage.pilots[0].end == 1077.0


def test_documents_that_were_cut_off_are_as_if_not_there(layout):
    WrittenPilot(tasks=make_tasks()).write(layout)
    for path in layout.radical.glob("re.session.*/*.json"):
        path.write_text(path.read_text()[:-20])
    usage = read_usage(layout, NOW)
    assert [task.state for task in usage.tasks] == ["done", "done"]
    assert usage.pilots[0].cores == 4
    assert [task.cores for task in usage.tasks] == [2.0, 1.0]


def test_a_pilot_that_never_became_active_is_all_start_up(layout):
    WrittenPilot(active=None, cancelled=None, stop=30.0).write(layout)
    parts = account(read_usage(layout, NOW), NOW).core_hours
    assert parts.start_up * 3600 == pytest.approx(120)
    assert parts.accounted == pytest.approx(parts.whole)


def test_a_pilot_that_was_only_asked_for_has_cost_nothing(layout):
    pilot = WrittenPilot()
    sandbox = pilot.write(layout)
    for path in sandbox.iterdir():
        path.unlink()
    sandbox.rmdir()
    result = account(read_usage(layout, NOW), NOW)
    assert (result.pilots[0].state, result.core_hours.whole) == ("never started", 0.0)
    assert result.pilots[0].seconds_queued is None


def test_sessions_without_a_pilot_are_passed_over(layout):
    WrittenPilot(session="re.session.0002", tasks=make_tasks()).write(layout)
    (layout.radical / "re.session.0001").mkdir()
    (layout.radical / "radical.pilot.sandbox" / "re.session.0001").mkdir()
    (layout.radical / "radical.pilot.sandbox" / "re.session.0003" / "pilot.0000").mkdir(parents=True)
    assert [pilot.session for pilot in read_usage(layout, NOW).pilots] == ["re.session.0002"]


def test_the_copy_of_the_profiles_in_the_session_serves_where_the_sandbox_has_gone(layout):
    sandbox = WrittenPilot(tasks=make_tasks()).write(layout)
    sandbox.rename(layout.radical / "re.session.0001" / "pilot.0000")
    assert len(read_usage(layout, NOW).tasks) == 2


def test_a_sandbox_elsewhere_is_found_by_the_pilot_managers_word(layout, tmp_path):
    sandbox = WrittenPilot(tasks=make_tasks()).write(layout)
    elsewhere = tmp_path / "scratch" / "pilot.0000"
    elsewhere.parent.mkdir()
    sandbox.rename(elsewhere)
    path = layout.radical / "re.session.0001" / "pmgr.0000.json"
    document = json.loads(path.read_text())
    document["pilots"][0]["pilot_sandbox"] = f"file://localhost{elsewhere}/"
    path.write_text(json.dumps(document))
    assert len(read_usage(layout, NOW).tasks) == 2


def test_a_resumed_campaign_has_two_pilots_whose_tasks_share_uids_and_folders(layout):
    # The first was killed while task.000001 ran; the second ran the same segment again, under the same uid.
    tasks = make_tasks()
    tasks[1].stopped, tasks[1].released = None, None
    WrittenPilot(tasks=tasks, cancelled=None, stop=None).write(layout, client=False)
    again = WrittenTask("task.000001", "simulate.0001.0001.0000", 20, 21, 31, 32, cores=(3,), stage="s")
    new = WrittenTask("task.000000", "simulate.0001.0005.0000", 20, 21, 31, 32, cores=(0,), stage="s")
    WrittenPilot(session="re.session.0002", start=5000.0, tasks=[again, new], cores=8).write(layout)
    usage = read_usage(layout, NOW)
    assert [(p.number, p.start, p.end, p.state) for p in usage.pilots] == [
        (1, 1000.0, 1042.0, "cut off"), (2, 5000.0, 5100.0, "ended"),
    ]  # fmt: skip
    assert [(t.pilot, t.name, t.started, t.state) for t in usage.tasks] == [
        (1, "simulate.0001.0000.0000", 1021.0, "done"),
        (1, "simulate.0001.0001.0000", 1022.0, "failed"),
        (2, "simulate.0001.0005.0000", 5021.0, "done"),
        (2, "simulate.0001.0001.0000", 5021.0, "done"),
    ]
    result = account(usage, NOW)
    assert result.core_hours.whole * 3600 == pytest.approx(4 * 42 + 8 * 100)
    assert result.core_hours.accounted == pytest.approx(result.core_hours.whole, rel=1e-9)
    assert result.core_hours.of_state("failed") * 3600 == pytest.approx(20)


def test_a_record_of_an_earlier_pilot_is_not_taken_for_a_later_tries(layout):
    WrittenPilot(tasks=make_tasks()[:1]).write(layout)
    again = WrittenTask("task.000000", "simulate.0001.0000.0000", 20, 21, 31, 32, publishes=False)
    WrittenPilot(session="re.session.0002", start=5000.0, tasks=[again], stop=None).write(layout, client=False)
    assert [task.state for task in read_usage(layout, NOW).tasks] == ["done", "failed"]


def test_of_a_resumed_campaign_that_runs_only_the_last_pilot_is_counted_until_now(layout, as_launcher):
    WrittenPilot(tasks=make_tasks(), cancelled=None, stop=None).write(layout, client=False)
    WrittenPilot(session="re.session.0002", start=5000.0, cancelled=None, stop=None).write(layout, client=False)
    assert [(p.state, p.end) for p in read_usage(layout, NOW).pilots] == [("cut off", 1053.0), ("running", NOW)]


def test_a_segment_that_is_still_being_written_is_not_counted(layout):
    WrittenPilot(tasks=make_tasks()).write(layout)
    folder = layout.segment(0, 0).folder
    folder.rename(folder.with_name("segment-0000.partial"))
    assert [segment.simulation for segment in read_usage(layout, NOW).segments] == [1]


def test_the_launchers_own_list_of_pilots_comes_first(layout):
    WrittenPilot(tasks=make_tasks(), cancelled=None, stop=None).write(layout, client=False)
    lines = [
        {"number": 1, "session": "re.session.0001", "resource": "site.big", "nodes": 2, "cores": 96, "gpus": 6,
         "walltime_min": 30, "unix_submitted": 900.0, "unix_active": None, "unix_end": None},
        {"number": 1, "session": "re.session.0001", "unix_submitted": None, "unix_end": 1080.0},
    ]  # fmt: skip
    layout.pilots.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"number": 2, "ses')
    (pilot,) = read_usage(layout, NOW).pilots
    assert pilot.request.model_dump() == {"nodes": 2, "cores": 96, "gpus": 6, "walltime_min": 30.0}
    assert (pilot.resource, pilot.submitted, pilot.end) == ("site.big", 900.0, 1080.0)
    assert (pilot.cores, pilot.gpus) == (4, 0)  # what it held is another matter


def test_a_running_campaign_is_counted_until_now(layout, as_launcher):
    tasks = make_tasks()
    tasks[1].stopped = tasks[1].released = None
    tasks[1].publishes = False
    WrittenPilot(tasks=tasks, cancelled=None, stop=None).write(layout, client=False)
    usage = read_usage(layout, 1200.0)
    assert (usage.pilots[0].state, usage.pilots[0].end) == ("running", 1200.0)
    assert [task.state for task in usage.tasks] == ["done", "running"]
    parts = account(usage, 1200.0).core_hours
    assert parts.in_use * 3600 == pytest.approx(40 + 178)
    assert parts.accounted == pytest.approx(parts.whole)


@pytest.mark.parametrize(
    ("lock", "age", "living"),
    [
        ({}, 1e6, True),
        ({"start": 1}, 0.0, False),  # another process by now
        ({"pid": 2**22 + 1}, 0.0, False),
        ({"host": "another-host"}, 10.0, True),
        ({"host": "another-host"}, 1e6, False),
        (None, 0.0, False),
    ],
)
def test_whether_a_campaign_lives(layout, lock, age, living):
    layout.root.mkdir()
    own = CampaignLock.create(layout.lock).record
    layout.lock.write_text("torn" if lock is None else own.model_copy(update=lock).model_dump_json())
    layout.decisions.write_text("")
    os.utime(layout.decisions, (NOW - age, NOW - age))
    assert is_living(layout, NOW) is living


def test_a_launcher_at_work_lives_however_long_its_files_have_not_changed(layout, as_launcher):
    assert is_living(layout, NOW)


def test_what_is_no_run_folder_or_has_no_pilot_is_refused_in_a_sentence(layout):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        read_usage(layout, NOW)
    layout.root.mkdir()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        read_usage(layout, NOW)
    layout.settings.write_text("{}")
    with pytest.raises(RunFolderError, match="no pilot has left a trace"):
        read_usage(layout, NOW)
    assert find_pilots(layout) == []
