"""The simulate task: from where it starts, and that a segment appears whole or not at all."""

from __future__ import annotations

import threading
import time

import MDAnalysis
import numpy as np
import pytest
from conftest import prepare, tiny_settings

from entk_app.errors import DataError, Interrupted
from entk_app.frames import read_columns, read_start_positions
from entk_app.records import Deadline, FrameRef, SegmentRecord, SimulateTask, read_record, write_record
from entk_app.tasks import run_task, simulate


@pytest.fixture
def begun(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings(), cores=1)
    stage = campaign.start()
    run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    return campaign


def order(campaign, simulation, segment, origin=None, **values):
    path = campaign.layout.segment(simulation, segment).task
    task = SimulateTask(
        simulation=simulation, segment=segment, iteration=1, decision=0, seed=5, origin=origin, cores=1, gpus=0
    )
    write_record(path, task.model_copy(update=values))
    return path


def test_a_segment_is_whole(begun):
    folder = begun.layout.segment(0, 0).folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "frames.h5", "log.csv", "segment.json", "state.xml", "trajectory.dcd",
    ]  # fmt: skip
    assert not folder.with_name("segment-0000.partial").exists()


def test_a_segment_goes_on_where_the_one_before_ended(begun):
    layout = begun.layout
    run_task("simulate", layout.root, order(begun, 0, 1))
    record = read_record(SegmentRecord, layout.segment(0, 1).record)
    before = read_record(SegmentRecord, layout.segment(0, 0).record)
    assert record.first_step == before.steps
    last = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory)).trajectory[-1].positions
    np.testing.assert_allclose(read_start_positions(layout.segment(0, 1).frames), last, atol=1e-4)


def test_a_restart_starts_at_its_frame(begun):
    layout, ref = begun.layout, FrameRef(simulation=0, segment=0, frame=7)
    run_task("simulate", layout.root, order(begun, 1, 0, ref))
    universe = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory))
    expected = universe.trajectory[7].positions
    np.testing.assert_allclose(read_start_positions(layout.segment(1, 0).frames), expected, atol=1e-4)
    start = MDAnalysis.Universe(str(layout.start_structure(1)))
    np.testing.assert_allclose(start.atoms.positions, expected, atol=1.1e-3)


def test_every_frame_is_read_by_its_own_number(begun):
    universe = MDAnalysis.Universe(str(begun.layout.topology), str(begun.layout.segment(0, 0).trajectory))
    for frame in range(len(universe.trajectory)):
        found = simulate.read_frame_positions(begun.layout, FrameRef(simulation=0, segment=0, frame=frame))
        np.testing.assert_array_equal(found, universe.trajectory[frame].positions)


def test_a_frame_that_does_not_exist_is_an_error(begun):
    with pytest.raises(DataError, match="has 15 frames, there is no frame 15"):
        simulate.read_frame_positions(begun.layout, FrameRef(simulation=0, segment=0, frame=15))


def test_a_finished_segment_is_never_run_again(begun):
    before = begun.layout.segment(0, 0).trajectory.read_bytes()
    with pytest.raises(DataError, match="never run again"):
        run_task("simulate", begun.layout.root, order(begun, 0, 0))
    assert begun.layout.segment(0, 0).trajectory.read_bytes() == before


def test_what_a_killed_try_left_is_not_data(begun):
    partial = begun.layout.segment(0, 1).in_work().folder
    partial.mkdir()
    (partial / "frames.h5").write_text("torn")
    run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert read_record(SegmentRecord, begun.layout.segment(0, 1).record).n_frames == 15


def test_a_task_that_fails_publishes_nothing(begun, monkeypatch):
    from entk_app import md

    def fail(*args, **kwargs):
        raise RuntimeError("NaN")

    monkeypatch.setattr(md, "run_segment", fail)
    with pytest.raises(RuntimeError, match="NaN"):
        run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert not begun.layout.segment(0, 1).folder.exists()


def run_until_told(tmp_path, tell):
    """A segment far longer than a test, that something else ends once it has frames."""
    campaign = prepare(tmp_path / "run", tiny_settings("simulate.segment_ns=1000"), cores=1)
    layout = campaign.layout
    progress = layout.segment(0, 0).in_work().progress

    def watch():
        while not progress.exists():
            time.sleep(0.05)
        tell(layout)

    threading.Thread(target=watch, daemon=True).start()
    run_task("simulate", layout.root, order(campaign, 0, 0))
    record = read_record(SegmentRecord, layout.segment(0, 0).record)
    frames = len(read_columns(layout.segment(0, 0).frames)["step"])
    trajectory = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory)).trajectory
    assert frames == record.n_frames == len(trajectory) > 0
    assert record.steps == 200 * record.n_frames
    return record


@pytest.mark.parametrize("limit", ["walltime", "budget"])
def test_the_pilots_time_ends_a_segment_in_order(tmp_path, limit):
    # A queued pilot's orders are written before its time begins: the deadline may appear late.
    def tell(layout):
        write_record(layout.deadline, Deadline(end_by_unix=time.time() + 0.5, limit=limit))

    assert run_until_told(tmp_path, tell).ended_by == limit


def test_a_stop_request_ends_a_segment_in_order(tmp_path):
    assert run_until_told(tmp_path, lambda layout: layout.stop_request.touch()).ended_by == "stop_request"


def test_asked_to_stop_before_its_first_frame_a_segment_publishes_nothing(begun):
    begun.layout.stop_request.touch()
    with pytest.raises(Interrupted, match="before it began"):
        run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert not begun.layout.segment(0, 1).folder.exists()
