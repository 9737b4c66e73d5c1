"""The sweep: known answers by hand, and what holds for any pilot and any tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entk_app.accounting import (
    Pilot,
    Request,
    StageAccount,
    Task,
    Usage,
    account,
    compute_gaps,
    compute_parts,
    compute_utilisation,
    judge_task,
    list_stages,
)
from entk_app.records import SegmentRecord

HOUR = 3600.0


def make_pilot(**values) -> Pilot:
    given = {
        "number": 1, "uid": "pilot.0000", "session": "s", "resource": "r", "request": Request(), "nodes": 1, "cores": 4,
        "gpus": 2, "start": 0.0, "end": 100.0 * HOUR, "active": 10.0 * HOUR, "shutdown": 90.0 * HOUR,
    }  # fmt: skip
    return Pilot(**{**given, **values})


def make_task(scheduled=None, started=None, stopped=None, released=None, **values) -> Task:
    """Times in hours."""
    given = {"pilot": 1, "uid": "task.0", "name": "x", "kind": "simulate", "stage": "s", "state": "done"}
    times = {"scheduled": scheduled, "started": started, "stopped": stopped, "released": released}
    return Task(**{**given, **values}, **{name: None if t is None else t * HOUR for name, t in times.items()})


def make_segment(simulation=0, rmsd=3.0, unix_end=HOUR, time_ps=1000.0) -> SegmentRecord:
    return SegmentRecord(
        simulation=simulation, segment=0, iteration=1, decision=0, origin=None, seed=1, n_frames=10, steps=100,
        first_step=0, time_ps=time_ps, start_time_ps=0.0, min_rmsd_angstrom=rmsd,
        min_rmsd_frame=None if rmsd is None else 7, last_rmsd_angstrom=rmsd,
        platform="CPU", device=None, cores=1, friction_per_ps=1.0, temperature_k=300.0,
        ended_by="length", seconds_setup=0.1, seconds_md=1.0, ns_per_day=1.0, unix_start=0.0, unix_end=unix_end,
    )  # fmt: skip


def test_parts_of_a_pilot_with_two_tasks_by_hand():
    tasks = [
        make_task(20, 22, 52, 53, cores=1, gpus=1),
        make_task(30, 31, 41, 45, cores=2, gpus=0, kind="train", state="failed"),
    ]
    parts = compute_parts(make_pilot(), tasks, "cores")
    assert parts.whole == pytest.approx(400)
    assert parts.start_up == pytest.approx(40)
    assert parts.shutdown == pytest.approx(40)
    assert parts.use == {"simulate": {"done": pytest.approx(30)}, "train": {"failed": pytest.approx(20)}}
    assert parts.in_use == pytest.approx(50)
    assert parts.overhead == pytest.approx(2 + 1 + 2 * (1 + 4))
    assert parts.idle == pytest.approx(4 * 80 - 50 - 13)
    assert parts.oversubscribed == 0
    gpus = compute_parts(make_pilot(), tasks, "gpus")
    assert (gpus.whole, gpus.in_use, gpus.overhead) == (pytest.approx(200), pytest.approx(30), pytest.approx(3))
    assert gpus.idle == pytest.approx(2 * 80 - 33)


def test_what_a_process_takes_before_and_after_its_tasks_own_clock_is_told():
    tasks = [make_task(20, 20, 60, 60, cores=2, recorded_s=30 * HOUR), make_task(20, 20, 60, 60, state="failed")]
    assert compute_parts(make_pilot(), tasks, "cores").unrecorded == pytest.approx(2 * 10)


def test_half_a_gpu_is_half_the_gpu_hours():
    parts = compute_parts(make_pilot(), [make_task(20, 20, 60, 60, gpus=0.5)], "gpus")
    assert parts.in_use == pytest.approx(20)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"active": None, "shutdown": None}, {"start_up": 400}),  # never became active
        ({"active": None, "shutdown": 60 * HOUR}, {"start_up": 240, "shutdown": 160}),  # cancelled before it was active
        ({"shutdown": None}, {"start_up": 40, "idle": 360}),  # killed: no time to shut down
        ({"active": -5 * HOUR, "shutdown": 120 * HOUR}, {"idle": 400}),  # clocks that disagree are cut to its life
        ({"start": 100 * HOUR}, {}),  # no life at all
        ({"cores": 0}, {}),
    ],
)
def test_pilots_without_tasks(changes, expected):
    parts = compute_parts(make_pilot(**changes), [], "cores")
    got = {name: getattr(parts, name) for name in ("start_up", "in_use", "overhead", "idle", "shutdown")}
    assert got == {name: pytest.approx(expected.get(name, 0.0)) for name in got}
    assert parts.accounted == pytest.approx(parts.whole)


def test_a_task_that_has_no_end_runs_until_the_pilot_ends():
    parts = compute_parts(make_pilot(shutdown=None), [make_task(20, 20)], "cores")
    assert parts.in_use == pytest.approx(80)


def test_a_slot_whose_task_never_started_is_overhead():
    parts = compute_parts(make_pilot(shutdown=None), [make_task(20, None, None, 50)], "cores")
    assert (parts.in_use, parts.overhead) == (0, pytest.approx(30))


def test_a_task_that_outlives_the_cancel_command_is_in_use_and_not_shutdown():
    parts = compute_parts(make_pilot(), [make_task(80, 80, 95, 95, cores=4)], "cores")
    assert (parts.in_use, parts.shutdown) == (pytest.approx(60), pytest.approx(20))


def test_more_tasks_than_devices_do_not_exceed_the_whole_and_the_excess_is_told():
    tasks = [make_task(20, 20, 30, 30, cores=4), make_task(20, 20, 30, 30, cores=4, kind="train")]
    parts = compute_parts(make_pilot(), tasks, "cores")
    assert parts.use == {"simulate": {"done": pytest.approx(20)}, "train": {"done": pytest.approx(20)}}
    assert parts.oversubscribed == pytest.approx(40)
    assert parts.accounted == pytest.approx(parts.whole)


def test_a_running_task_goes_before_a_slot_that_is_being_freed():
    # The next task on a core may start before the event that frees it is written.
    tasks = [make_task(20, 20, 30, 32, cores=4), make_task(30, 31, 40, 40, cores=4)]
    parts = compute_parts(make_pilot(), tasks, "cores")
    assert (parts.in_use, parts.overhead) == (pytest.approx(40 + 36), pytest.approx(4))


@pytest.mark.parametrize(
    ("values", "pilot_state", "state"),
    [
        ({}, "ended", "waiting"),
        ({"started": 1, "published": True, "stopped": 2}, "ended", "done"),
        ({"started": 1, "published": True, "stopped": 2, "exit_code": 143}, "ended", "done"),  # ended with its job
        ({"started": 1, "stopped": 2, "exit_code": 3}, "ended", "failed"),
        ({"started": 1, "stopped": 2, "exit_code": 0}, "ended", "failed"),  # no record
        ({"started": 1}, "cut off", "failed"),
        ({"started": 1}, "running", "running"),
        ({"started": 1, "published": True, "stopped": 2, "simulation": 5}, "ended", "purged"),
        ({"started": 1, "published": True, "stopped": 2, "simulation": 6}, "ended", "done"),
        ({"started": 1, "stopped": 2, "simulation": 5}, "ended", "failed"),  # it did no work that could be purged
    ],
)
def test_a_tasks_state(values, pilot_state, state):
    task = make_task(**{"state": "waiting", **values})
    assert judge_task(task, make_pilot(state=pilot_state), frozenset({5})).state == state


times = st.none() | st.floats(-50, 150)
tasks_of_any_kind = st.lists(
    st.builds(
        make_task, times, times, times, times,
        cores=st.integers(1, 6).map(float), gpus=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]),
        kind=st.sampled_from(["simulate", "train", "analyse"]), state=st.sampled_from(["done", "failed", "purged"]),
    ),
    max_size=12,
)  # fmt: skip
pilots_of_any_kind = st.builds(
    lambda start, life, active, shutdown, cores, gpus: make_pilot(
        start=start * HOUR, end=(start + life) * HOUR, active=None if active is None else active * HOUR,
        shutdown=None if shutdown is None else shutdown * HOUR, cores=cores, gpus=gpus,
    ),
    st.floats(-10, 10), st.floats(0, 120), times, times, st.integers(0, 8), st.integers(0, 4),
)  # fmt: skip


@given(pilots_of_any_kind, tasks_of_any_kind, st.sampled_from(["cores", "gpus"]))
def test_parts_add_up_to_the_whole_and_none_is_negative(pilot, tasks, device):
    parts = compute_parts(pilot, tasks, device)
    assert parts.accounted == pytest.approx(parts.whole, rel=1e-9, abs=1e-9)
    uses = [hours for states in parts.use.values() for hours in states.values()]
    assert min(parts.start_up, parts.in_use, parts.overhead, parts.idle, parts.shutdown, *uses, 0.0) >= 0
    assert parts.oversubscribed >= -1e-9
    assert all(task.seconds(pilot) >= 0 for task in tasks)


@st.composite
def tasks_on_their_own_cores(draw):
    """Tasks one after the other on each of four cores: nothing overlaps."""
    tasks = []
    for core in range(4):
        borders = sorted(draw(st.lists(st.floats(0, 100), min_size=0, max_size=12)))
        for i in range(0, len(borders) - 3, 4):
            tasks.append(make_task(*borders[i : i + 4], core_ids=(core,), cores=1.0))
    return tasks


@given(tasks_on_their_own_cores())
def test_idle_hours_are_those_that_each_core_has_free_between_its_tasks(tasks):
    # By another road than the sweep's: core by core, the active time less what its own tasks held.
    pilot = make_pilot()
    idle = 0.0
    for core in range(4):
        held = [task.holding(pilot) for task in tasks if task.core_ids == (core,)]
        active = [(max(begin, pilot.active), min(end, pilot.shutdown)) for begin, end in held]
        idle += 80.0 - sum(max(0.0, end - begin) for begin, end in active) / HOUR
    parts = compute_parts(pilot, tasks, "cores")
    assert parts.idle == pytest.approx(idle, abs=1e-6)
    assert parts.in_use == pytest.approx(sum(task.seconds(pilot) for task in tasks) / HOUR, abs=1e-6)
    assert parts.oversubscribed == pytest.approx(0.0, abs=1e-9)


@given(pilots_of_any_kind, tasks_of_any_kind)
def test_utilisation_over_time_averages_to_what_is_in_use(pilot, tasks):
    loads = compute_utilisation(pilot, tasks, n_bins=7)
    hours = sum(load.cores for load in loads) * pilot.seconds / 7 / HOUR
    assert hours == pytest.approx(compute_parts(pilot, tasks, "cores").in_use, rel=1e-6, abs=1e-6)


def make_usage() -> Usage:
    """Two pilots, the second of a resumed campaign with other devices."""
    first = make_pilot()
    other = {"number": 2, "start": 200 * HOUR, "end": 210 * HOUR, "active": 201 * HOUR, "shutdown": None, "cores": 8}
    second = replace(first, **other)
    tasks = (
        make_task(20, 20, 60, 60, cores=2, gpus=1, stage="a", simulation=0),
        make_task(61, 62, 64, 65, kind="train", stage="b"),
        make_task(202, 203, 205, 206, pilot=2, cores=8, gpus=2, stage="c", simulation=1),
    )
    segments = (
        make_segment(0, 3.0, 60 * HOUR),
        make_segment(1, 1.5, 205 * HOUR, time_ps=500.0),
        make_segment(2, None, 207 * HOUR, time_ps=250.0),
    )
    return Usage((first, second), tasks, segments, unix_began=-HOUR)


def test_the_parts_of_several_pilots_add_up_to_the_whole():
    result = account(make_usage(), 300 * HOUR)
    assert result.core_hours.whole == pytest.approx(400 + 80)
    assert result.core_hours.accounted == pytest.approx(480, rel=1e-9)
    assert result.core_hours.use == {"simulate": {"done": pytest.approx(80 + 16)}, "train": {"done": pytest.approx(2)}}
    assert result.gpu_hours.whole == pytest.approx(200 + 20)
    assert result.gpu_hours.accounted == pytest.approx(220, rel=1e-9)
    assert result.node_hours == pytest.approx(110)
    assert sum(stage.core_hours for stage in result.stages) == pytest.approx(result.core_hours.in_use)
    assert result.n_tasks == {"done": 3}
    assert not result.running


def test_rates_and_the_cost_of_the_lowest_rmsd():
    result = account(make_usage(), 300 * HOUR)
    assert result.ns == pytest.approx(1.75)
    assert result.ns_per_core_hour == pytest.approx(1.75 / 480)
    assert result.ns_per_gpu_hour == pytest.approx(1.75 / 220)
    assert result.ns_per_gpu_hour_simulating == pytest.approx(1.75 / (40 + 4))
    cost = result.lowest_rmsd
    assert (cost.rmsd_angstrom, str(cost.frame)) == (1.5, "simulation 1 segment 0 frame 7")
    assert cost.core_hours == pytest.approx(400 + 8 * 5)  # all of the first pilot, half of the second
    assert cost.gpu_hours == pytest.approx(200 + 2 * 5)
    assert cost.ns == pytest.approx(1.5)
    assert result.seconds_to_first_task == pytest.approx(21 * HOUR)


def test_without_gpus_or_a_native_structure_there_is_no_such_number():
    usage = Usage((make_pilot(gpus=0),), (), (make_segment(rmsd=None),))
    result = account(usage, 0.0)
    assert result.ns_per_gpu_hour is None
    assert result.ns_per_core_hour_simulating is None
    assert result.lowest_rmsd is None
    assert result.gaps.median_s is None


def test_gaps_run_from_the_last_end_to_the_next_start_and_not_across_pilots():
    assert account(make_usage(), 0.0).gaps.model_dump() == {
        "n": 1, "median_s": 2 * HOUR, "longest_s": 2 * HOUR, "total_s": 2 * HOUR,
    }  # fmt: skip


def test_overlapping_stages_have_no_gap():
    def stage(begin, end):
        return StageAccount(
            pilot=1, name="s", kind="train", iteration=1, n_tasks=1, unix_start=begin, unix_end=end, core_hours=0.0,
            gpu_hours=0.0,
        )  # fmt: skip

    assert compute_gaps([stage(0, 10), stage(5, 6), stage(12, 13)]) == [0.0, 2.0]


def test_stages_leave_out_tasks_that_have_not_started():
    stages = list_stages(make_pilot(), [make_task(20, 21, 30, 31), make_task(), make_task(40, 41, 50, 51, stage="t")])
    assert [(stage.name, stage.n_tasks) for stage in stages] == [("s", 1), ("t", 1)]
