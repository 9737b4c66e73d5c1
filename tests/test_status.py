"""Where a campaign stands: numbers against what is on disk, states, what failed, and when it would end."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from dataclasses import replace
from typing import get_args, get_origin

import h5py
import pytest
from conftest import CHECKOUT, learned, prepare, tiny_settings
from hypothesis import given
from hypothesis import strategies as st

from entk_app import status
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock, LockRecord, read_lock
from entk_app.records import (
    AnalysisRecord,
    Deadline,
    Decision,
    ModelRecord,
    PilotRecord,
    Record,
    SegmentProgress,
    append_record,
    read_record,
    write_lines,
    write_record,
)
from entk_app.run_reader import RunReader
from entk_app.status import StatusReport, count_frames_to_purge, find_best_model, read_status
from entk_app.steering import SimulationHistory, explain_purge
from entk_app.tasks import run_task
from entk_app.tasks.analyse import choose_best

#: A moment before any of these campaigns.
LONG_AGO = 1.5e9


def look(layout, now=None):
    return read_status(RunReader(layout), now)


def set_lock(layout, is_alive, taken=None):
    """Of a launcher on another host."""
    now = time.time()
    taken = now if taken is None else taken
    record = LockRecord(host="elsewhere", boot_id="b", pid_namespace="n", pid=1, start=5, unix=taken)
    layout.lock.write_text(record.model_dump_json())
    age = 0 if is_alive else 1000
    os.utime(layout.lock, (now - age, now - age))


def shift(layout, seconds):
    """The lock was taken so many seconds later."""
    record = read_lock(layout.lock)
    layout.lock.write_text(record.model_copy(update={"unix": record.unix + seconds}).model_dump_json())


def make_pilot(**changes):
    values = {
        "number": 0, "session": "s", "resource": "local.localhost", "nodes": 1, "cores": 2, "gpus": 0,
        "walltime_min": 60, "queued": False, "unix_submitted": 1000.0, "unix_began": 1000.0,
    }  # fmt: skip
    return PilotRecord(**{**values, **changes})


@pytest.fixture
def ended(tiny_campaign, tmp_path):
    """A copy of a finished campaign whose launcher has gone."""
    shutil.copytree(tiny_campaign.layout.root, tmp_path / "run")
    layout = RunLayout(tmp_path / "run")
    set_lock(layout, is_alive=False, taken=LONG_AGO)
    return layout


@pytest.fixture
def begun(tmp_path):
    """A campaign whose first simulations were ordered; its launcher is this process."""
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    campaign.start()
    CampaignLock.create(campaign.layout.lock)
    # As a launcher does before its first decision.
    shift(campaign.layout, -1.0)
    return campaign


def test_the_numbers_are_those_of_the_raw_files(ended):
    root, report = ended.root, look(ended)
    rmsd, times = {}, {}
    for path in sorted(root.glob("simulations/*/segment-????/frames.h5")):
        place = (int(path.parts[-3]), int(path.parts[-2][-4:]))
        with h5py.File(path) as file:
            rmsd[place], times[place] = file["rmsd_angstrom"][:], file["time_ps"][:]
    lowest, frame = min((values.min(), (*place, int(values.argmin()))) for place, values in rmsd.items())
    assert report.n_frames == sum(map(len, rmsd.values()))
    assert report.min_rmsd_angstrom == pytest.approx(lowest, abs=1e-12)
    assert report.min_rmsd_frame.key == frame
    outliers = json.loads((root / f"analysis/iteration-{learned(3):04d}.json").read_text())["outliers"]
    for slot in report.slots:
        own = [place for place in rmsd if place[0] == slot.simulation]
        values = [value for place in own for value in rmsd[place]]
        assert slot.n_frames == len(values)
        assert (slot.last_rmsd_angstrom, slot.min_rmsd_angstrom) == pytest.approx((values[-1], min(values)))
        assert slot.time_ns == pytest.approx(1e-3 * times[own[-1]][-1])
        at = [
            sum(len(rmsd[place]) for place in own if place[1] < frame["segment"]) + frame["frame"]
            for frame in (outlier["frame"] for outlier in outliers)
            if frame["simulation"] == slot.simulation
        ]
        assert slot.frames_since_outlier == (len(values) - 1 - max(at) if at else None)
    summary = json.loads((root / "summary.json").read_text())
    for key in ("n_frames", "n_simulations", "n_purged", "n_restarts", "n_iterations", "stop_reason", "message"):
        assert getattr(report, key) == summary[key], key
    assert report.time_ns == pytest.approx(summary["total_time_us"] * 1e3)
    assert report.analysis.n_outliers == len(outliers)
    assert [row.n_frames_so_far for row in report.iterations][-1] == report.n_frames
    assert report.iterations[-1].min_rmsd_so_far_angstrom == report.min_rmsd_angstrom
    best = json.loads((root / "analysis/iteration-0003.json").read_text())["best_model"]["latent_dim"]
    assert [model.latent_dim for model in report.models if model.is_best] == [best]


def test_a_report_is_json_and_reads_back(ended):
    report = look(ended)
    assert StatusReport.model_validate_json(report.model_dump_json()) == report


def test_every_field_of_the_json_is_documented():
    text = (CHECKOUT / "docs" / "status.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`(\w+)`", text))

    def fields(model):
        for name, info in model.model_fields.items():
            yield name
            kinds = get_args(info.annotation) if get_origin(info.annotation) is tuple else ()
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, Record):
                    yield from fields(kind)

    missing = [name for name in fields(StatusReport) if name not in known]
    assert not missing


# Purges and models: the same rules as the campaign's.


@given(
    n_frames=st.integers(0, 60),
    min_frames=st.integers(1, 40),
    window=st.integers(1, 40),
    data=st.data(),
)
def test_the_countdown_ends_when_the_rule_of_purges_first_holds(n_frames, min_frames, window, data):
    settings = tiny_settings(f"steering.min_frames={max(min_frames, window)}", f"steering.window={window}")
    last = data.draw(st.none() | st.integers(0, n_frames - 1)) if n_frames else None
    left = count_frames_to_purge(n_frames, last, settings)

    def is_due(n):
        grown = type("Grown", (SimulationHistory,), {"n_frames": n})(0)
        return explain_purge(grown, last, settings) is not None

    assert is_due(n_frames + left)
    assert left == 0 or not is_due(n_frames + left - 1)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 6), st.sampled_from([1.0, 2.0, 3.0])),
        min_size=1,
        unique_by=lambda item: item[:2],
    )
)
def test_the_best_model_is_the_one_that_an_analysis_chooses(items):
    records = [
        ModelRecord.model_construct(iteration=iteration, latent_dim=dim, held_out_reconstruction=loss)
        for iteration, dim, loss in items
    ]
    best, chosen = find_best_model(records), choose_best(records)
    assert (best.iteration, best.latent_dim) == (chosen.iteration, chosen.latent_dim)


# States.


def test_a_campaign_that_ended_says_why(ended):
    report = look(ended)
    assert (report.state, report.stop_reason, report.can_resume) == ("ended", "max_iterations", False)
    assert report.message == "3 iterations done, stop.max_iterations reached"
    assert all(slot.activity == "idle" for slot in report.slots)
    assert report.ends == ()


def test_one_that_was_cut_off_can_be_resumed(ended):
    decisions = RunReader(ended).read(0).decisions
    write_lines(ended.decisions, [*decisions[:-1], decisions[-1].model_copy(update={"stop_reason": "walltime"})])
    report = look(ended)
    assert (report.state, report.stop_reason, report.can_resume) == ("ended", "walltime", True)


def test_one_whose_launcher_went_without_a_word_is_dead(begun):
    set_lock(begun.layout, is_alive=False)
    report = look(begun.layout)
    assert (report.state, report.stop_reason, report.can_resume) == ("dead", None, True)
    assert "its launcher (process 1 on elsewhere) is gone without a word" in report.message
    assert "17 min old" in report.message


def test_a_segment_that_its_dead_task_left_does_not_count(begun):
    write_record(
        begun.layout.segment(0, 0).in_work().progress,
        SegmentProgress(simulation=0, segment=0, n_frames=9, min_rmsd_angstrom=1.0, ns_per_day=1.0),
    )
    set_lock(begun.layout, is_alive=True, taken=LONG_AGO)
    assert look(begun.layout).n_frames_running == 9
    set_lock(begun.layout, is_alive=False)
    report = look(begun.layout)
    assert (report.n_frames_running, report.min_rmsd_angstrom) == (0, None)


@pytest.mark.parametrize(
    ("pilot", "activity"),
    [
        ({"queued": True, "unix_began": None}, "its pilot waits in the queue"),
        ({}, "the pilot starts"),
        ({"queued": True}, "the pilot starts"),
    ],
)
def test_a_campaign_that_starts_says_what_it_waits_for(begun, pilot, activity):
    set_lock(begun.layout, is_alive=True, taken=LONG_AGO)
    append_record(begun.layout.pilots, make_pilot(**pilot))
    report = look(begun.layout)
    assert (report.state, report.activity) == ("starting", activity)


def test_it_runs_once_its_pilot_is_active(begun):
    append_record(begun.layout.pilots, make_pilot(unix_active=1010.0))
    report = look(begun.layout)
    assert (report.state, report.activity) == ("running", "simulate, 0 of 2 done")
    assert (report.host, report.pid) == (platform.node(), os.getpid())
    assert [slot.activity for slot in report.slots] == ["waits", "waits"]


def test_one_that_is_asked_to_stop_is_ending(begun):
    begun.layout.stop_request.write_text("")
    assert look(begun.layout).state == "ending"


def test_one_that_is_taken_up_again_starts_although_its_last_decision_was_a_stop(ended):
    set_lock(ended, is_alive=True)
    report = look(ended)
    assert (report.state, report.stop_reason) == ("starting", None)
    set_lock(ended, is_alive=True, taken=LONG_AGO)
    assert look(ended).state == "ending"
    append_record(ended.pilots, make_pilot(unix_end=2000.0))
    assert look(ended).state == "ended"


# Stages.


def test_stages_are_followed_task_by_task(tmp_path):
    settings = tiny_settings("coupling=staged", "resource.md_slots=2", "resource.ml_slots=2")
    campaign = prepare(tmp_path / "run", settings, cores=4, gpus=4)
    assert campaign.machine.slots.is_split
    root, layout = campaign.layout.root, campaign.layout
    seen = []
    stage = campaign.start()
    set_lock(layout, is_alive=True, taken=LONG_AGO)
    for _ in range(2):
        for task in stage.tasks:
            report = look(layout)
            seen.append((report.stage, report.stage_done, report.stage_tasks))
            if task.kind == "simulate":
                run_task(task.kind, root, task.order)
        report = look(layout)
        seen.append((report.stage, report.stage_done, report.stage_tasks))
        if report.stage == "simulate":
            assert report.activity == "simulate is done, deciding"
            assert {slot.activity for slot in report.slots} == {"done"}
            stage = campaign.advance()
    assert seen == [
        *(("simulate", n, 4) for n in range(5)),
        # The trainings were not run.
        *(("simulate+train", n, 4) for n in (0, 1, 2, 2, 2)),
    ]
    report = look(layout)
    assert (report.iteration, report.n_iterations, len(report.slots)) == (2, 1, 2)
    assert [slot.n_frames for slot in report.slots] == [30, 30]


def test_a_running_segment_counts(begun):
    for simulation, rmsd in ((0, 7.5), (1, 6.25)):
        write_record(
            begun.layout.segment(simulation, 0).in_work().progress,
            SegmentProgress(
                simulation=simulation, segment=0, n_frames=5, min_rmsd_angstrom=rmsd, ns_per_day=100.0 + simulation
            ),
        )
    report = look(begun.layout)
    assert (report.n_frames, report.n_frames_running, report.min_rmsd_angstrom) == (0, 10, 6.25)
    assert report.min_rmsd_frame is None  # its place is known when the segment is whole
    assert report.time_ns == pytest.approx(10 * 4e-3)
    slot = report.slots[1]
    assert (slot.activity, slot.task_frames, slot.task_frames_expected, slot.ns_per_day) == (
        "simulates", 5, 15, 101.0,
    )  # fmt: skip
    assert (slot.frames_since_outlier, slot.frames_to_purge) == (None, None)  # nothing was analysed


def test_a_segment_that_was_only_saved_leaves_its_task_under_way(begun):
    task = next(path for path in begun.layout.simulation(0).glob("*.task.json"))
    run_task("simulate", begun.layout.root, task)
    assert [slot.activity for slot in look(begun.layout).slots] == ["done", "waits"]
    path = begun.layout.segment(0, 0).record
    path.write_text(path.read_text().replace('"ended_by": "length"', '"ended_by": "save"'))
    report = look(begun.layout)
    assert (report.stage_done, report.n_frames) == (0, 15)
    assert [(slot.activity, slot.task_frames) for slot in report.slots] == [("simulates", 15), ("waits", 0)]


# What failed.


def test_tasks_that_published_nothing_are_named_and_counted_as_the_campaign_does(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged", "steering.initial_frames=1000"))
    layout = campaign.layout
    stage = campaign.start()
    for _ in range(3):
        run_task("simulate", layout.root, stage.tasks[0].order)
        stage = campaign.advance()
    logs = layout.logs / "tasks" / "simulate.0001.0001.0000.try2"
    logs.mkdir(parents=True)
    (logs / "task.000003.err").write_text("Particle coordinate is NaN\n")
    report = look(layout)
    names = [task.name for task in report.failed_tasks]
    assert names[:2] == ["simulate.0001.0001.0000", "simulate.0001.0001.0000.try2"]
    assert report.failed_tasks[1].logs == (str(logs / "task.000003.err"),)
    assert report.n_failed_tasks == len(names) == campaign.n_failed_tasks == 3


@pytest.mark.staged("it counts frames, or names iterations")
def test_trainings_and_analyses_that_published_nothing_have_failed_when_their_stage_is_over(ended):
    shutil.rmtree(ended.model(2, 4).folder)
    ended.analysis(1).unlink()
    ended.summary.unlink()
    report = look(ended)
    assert [task.name for task in report.failed_tasks] == ["analyse.0001", "train.0002.latent4"]


def test_what_is_cut_off_with_its_pilot_has_not_failed(begun):
    append_record(
        begun.layout.decisions,
        Decision(index=1, iteration=1, next="stop", reason="the walltime is used up", stop_reason="walltime", unix=5.0),
    )
    set_lock(begun.layout, is_alive=False)
    assert look(begun.layout).n_failed_tasks == 0


# When it ends.


def make_laps(begun, moments, **changes):
    """Decisions of iterations that began at these moments."""
    lines = [
        begun.decisions[0].model_copy(update={"index": n, "iteration": n + 1, "unix": moment, "n_frames": 30 * n})
        for n, moment in enumerate(moments)
    ]
    write_lines(begun.layout.decisions, lines)
    set_lock(begun.layout, is_alive=True, taken=LONG_AGO)
    write_lines(begun.layout.pilots, [make_pilot(unix_active=1000.0, **changes)])


def ends_of(layout, now):
    run = RunReader(layout).read(now)
    return {end.limit: end.unix for end in status.estimate_ends(run)}


def test_the_end_by_iterations_follows_from_the_last_ones(begun):
    # The first took 500 s, for its pilot started; then 100 s and 120 s: the third is under way, none is left.
    make_laps(begun, [1000.0, 1500.0, 1600.0])
    assert ends_of(begun.layout, 1610.0) == {"max_iterations": pytest.approx(1700.0)}
    # Late already.
    assert ends_of(begun.layout, 1800.0) == {"max_iterations": pytest.approx(1800.0)}


def test_where_no_iteration_is_over_no_end_is_known(begun):
    make_laps(begun, [1000.0])
    assert ends_of(begun.layout, 1100.0) == {}


def test_the_deadline_is_an_end_and_the_first_comes_first(begun):
    make_laps(begun, [1000.0, 1500.0, 1600.0])
    write_record(begun.layout.deadline, Deadline(end_by_unix=1650.0, limit="budget"))
    run = RunReader(begun.layout).read(1610.0)
    assert [end.limit for end in status.estimate_ends(run)] == ["budget", "max_iterations"]


def test_an_iteration_that_a_change_of_pilots_fell_into_tells_nothing(begun):
    make_laps(begun, [1000.0, 1500.0, 1600.0])
    first, second = (
        make_pilot(unix_active=1000.0, unix_end=1520.0),
        make_pilot(unix_submitted=1550.0, unix_active=1560.0),
    )
    write_lines(begun.layout.pilots, [first, second])
    assert ends_of(begun.layout, 1610.0) == {"max_iterations": pytest.approx(1600.0 + 500.0)}


def test_the_end_by_simulated_time_follows_from_its_rate(begun):
    make_laps(begun, [1000.0, 1500.0, 1600.0])
    run = RunReader(begun.layout).read(1610.0)
    limit = run.settings.stop.model_copy(update={"max_time_us": 0.0012})
    run = replace(run, settings=run.settings.model_copy(update={"stop": limit}))
    # 30 frames of 4 ps in 100 s, none on disk: 1.2 ns take 1000 s.
    ends = {end.limit: end.unix for end in status.estimate_ends(run)}
    assert ends["max_time"] == pytest.approx(1600.0 + 1000.0)


def test_time_is_that_of_all_pilots(begun):
    set_lock(begun.layout, is_alive=True, taken=LONG_AGO)
    pilots = [make_pilot(unix_active=1010.0, unix_end=1100.0), make_pilot(unix_submitted=2000.0, unix_active=2010.0)]
    write_lines(begun.layout.pilots, pilots)
    assert look(begun.layout, now=time.time()).n_pilots == 2
    assert look(begun.layout, now=2050.0).elapsed_s == pytest.approx(150.0)


def test_logs_are_where_the_present_pilot_writes_them(begun, tmp_path):
    (tmp_path / "scratch" / "logs").mkdir(parents=True)
    pilot = make_pilot(radical=str(tmp_path / "scratch" / "radical"), unix_active=1010.0)
    write_lines(begun.layout.pilots, [pilot])
    assert look(begun.layout).logs == str(tmp_path / "scratch" / "logs")
    write_lines(begun.layout.pilots, [pilot.model_copy(update={"unix_end": 2000.0})])
    assert look(begun.layout).logs == str(begun.layout.logs)


def test_a_record_of_an_analysed_segment_that_is_lost_raises_nothing(ended):
    slot = next(slot for slot in look(ended).slots if slot.frames_since_outlier is not None)
    newest = max(ended.analyses.glob("iteration-????.json"))
    analysis = read_record(AnalysisRecord, newest)
    frame = next(o.frame for o in analysis.outliers if o.frame.simulation == slot.simulation)
    shutil.rmtree(ended.segment(frame.simulation, frame.segment).folder)
    assert slot.simulation in {s.simulation for s in look(ended).slots}


def test_without_a_native_structure_there_is_no_rmsd(ended):
    system = json.loads(ended.system_record.read_text())
    ended.system_record.write_text(json.dumps(system | {"has_native": False}))
    for path in ended.simulations.glob("*/segment-????/segment.json"):
        gone = dict.fromkeys(("min_rmsd_angstrom", "min_rmsd_frame", "last_rmsd_angstrom"))
        path.write_text(json.dumps(json.loads(path.read_text()) | gone))
    report = look(ended)
    assert (report.has_native, report.min_rmsd_angstrom, report.min_rmsd_frame) == (False, None, None)
    assert all(row.min_rmsd_so_far_angstrom is None for row in report.iterations)
