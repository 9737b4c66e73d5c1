"""The simulate task: from where it starts, and that a segment appears whole or not at all."""

from __future__ import annotations

import re
import threading
import time
from itertools import pairwise

import MDAnalysis
import numpy as np
import pytest
from conftest import prepare, tiny_settings

from entk_app import integrity, md, trajectory
from entk_app.errors import BlewUpError, DataError, Interrupted
from entk_app.frames import read_columns, read_start_positions
from entk_app.integrity import DamagedError, digest_file
from entk_app.publish import ScratchError
from entk_app.records import Deadline, FrameRef, SegmentRecord, SimulateTask, read_record, write_record
from entk_app.tasks import run_task


@pytest.fixture
def begun(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"), cores=1)
    stage = campaign.start()
    run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    return campaign


def order(campaign, simulation, segment, origin=None, **values):
    path = campaign.layout.segment(simulation, segment).task
    task = SimulateTask(
        simulation=simulation, segment=segment, iteration=1, decision=0, seed=5, origin=origin, cores=1, gpus=0,
        previous=segment - 1 if segment else None, n_frames=campaign.settings.frames_per_segment, minutes=None,
    )  # fmt: skip
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
        found = trajectory.read_frame(begun.layout, FrameRef(simulation=0, segment=0, frame=frame)).positions
        np.testing.assert_array_equal(found, universe.trajectory[frame].positions)


def test_a_frame_that_does_not_exist_is_an_error(begun):
    with pytest.raises(DataError, match="has 15 frames, there is no frame 15"):
        trajectory.read_frame(begun.layout, FrameRef(simulation=0, segment=0, frame=15))


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
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged", "simulate.segment_ns=1000"), cores=1)
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


def test_a_decision_ends_a_simulation_within_its_segment(tmp_path):
    assert run_until_told(tmp_path, lambda layout: layout.end_request(0).touch()).ended_by == "decision"


def test_a_simulation_that_was_ended_before_its_segment_began_has_not_failed(begun):
    begun.layout.end_request(0).touch()
    run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert not list(begun.layout.simulation(0).glob("segment-0001*[!n]"))  # but its order


def test_asked_to_stop_before_its_first_frame_a_segment_publishes_nothing(begun):
    begun.layout.stop_request.touch()
    with pytest.raises(Interrupted, match="before it began"):
        run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert not begun.layout.segment(0, 1).folder.exists()


def save_often(campaign):
    """Let every frame that takes any time at all close a segment: as often as a simulation can be saved."""
    text = campaign.layout.settings.read_text()
    assert "save_minutes: 5.0" in text
    campaign.layout.settings.write_text(text.replace("save_minutes: 5.0", "save_minutes: 1.0e-9"))


def test_a_long_task_publishes_what_it_has_every_few_minutes(begun):
    save_often(begun)
    run_task("simulate", begun.layout.root, order(begun, 0, 1, n_frames=4))
    records = [read_record(SegmentRecord, begun.layout.segment(0, number).record) for number in range(5)]
    assert [(r.n_frames, r.ended_by) for r in records[1:]] == [(1, "save")] * 3 + [(1, "length")]
    # One trajectory: each begins at the very step and positions where the one before ended.
    for before, record in pairwise(records):
        assert record.first_step == before.first_step + before.steps
        start = read_start_positions(begun.layout.segment(0, record.segment).frames)
        trajectory = MDAnalysis.Universe(
            str(begun.layout.topology), str(begun.layout.segment(0, before.segment).trajectory)
        ).trajectory
        np.testing.assert_allclose(start, trajectory[-1].positions, atol=1e-4)
    assert all(r.unix_start >= before.unix_end for before, r in pairwise(records[1:]))


def test_saving_does_not_change_the_trajectory(tmp_path):
    found = []
    for name in ("seldom", "often"):
        campaign = prepare(tmp_path / name, tiny_settings("coupling=staged"), cores=1)
        if name == "often":
            save_often(campaign)
        run_task("simulate", campaign.layout.root, order(campaign, 0, 0, n_frames=5))
        numbers = campaign.layout.segment_numbers(0)
        columns = [read_columns(campaign.layout.segment(0, number).frames)["rmsd_angstrom"] for number in numbers]
        found.append(np.concatenate(columns))
    np.testing.assert_array_equal(*found)
    assert len(numbers) == 5


@pytest.mark.parametrize("where", ["made", "relative", "unset", "a file"])
def test_a_task_writes_to_the_nodes_own_disk_and_publishes_whole(begun, tmp_path, monkeypatch, where):
    named = {"made": "$NODE_DISK/mine", "relative": "scratch", "unset": "$NOT_SET/x", "a file": "$NODE_DISK/file"}
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("in the way")
    settings = begun.layout.settings
    settings.write_text(settings.read_text().replace("node_local_path: null", f"node_local_path: {named[where]}"))
    if where != "made":
        with pytest.raises(ScratchError, match="resource.node_local_path = "):
            run_task("simulate", begun.layout.root, order(begun, 0, 1))
        return
    seen = set()
    real = md.run_segment

    def run(simulation, settings, folder, *args, **kwargs):
        seen.add(folder)
        return real(simulation, settings, folder, *args, **kwargs)

    monkeypatch.setattr(md, "run_segment", run)
    run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert all(folder.is_relative_to(tmp_path / "disk" / "mine") for folder in seen) and seen
    record = read_record(SegmentRecord, begun.layout.segment(0, 1).record)
    assert {name: digest_file(begun.layout.segment(0, 1).folder / name) for name in record.files} == record.files
    assert not [path for path in (tmp_path / "disk" / "mine").rglob("*") if path.is_file()]


def test_a_simulation_that_blows_up_says_so_and_publishes_nothing(begun):
    state = begun.layout.segment(0, 0).state
    text = state.read_text()
    # A velocity that no thermostat tames: 10 km/s and more.
    broken = re.sub(r'(<Velocities>\s*<Velocity [^>]*x=")[^"]*', r"\g<1>100000", text)
    assert broken != text
    state.write_text(broken)
    forget_digests(begun)
    with pytest.raises(BlewUpError, match="step 3[0-9]{3}"):
        run_task("simulate", begun.layout.root, order(begun, 0, 1))
    assert not begun.layout.segment(0, 1).folder.exists()


@pytest.mark.parametrize("frame", [0, 7, 14])
def test_of_a_long_trajectory_only_what_is_used_is_read_and_it_is_never_damaged(begun, monkeypatch, frame):
    # Blocks as small as these stand for a trajectory of many MiB.
    monkeypatch.setattr(integrity, "_BLOCK_BYTES", 256)
    monkeypatch.setattr(trajectory, "_HEADER_BYTES", 276)
    paths, ref = begun.layout.segment(0, 0), FrameRef(simulation=0, segment=0, frame=frame)
    whole, record = paths.trajectory.read_bytes(), read_record(SegmentRecord, paths.record)
    files = record.files | {paths.trajectory.name: digest_file(paths.trajectory)}
    write_record(paths.record, record.model_copy(update={"files": files}))
    expected = trajectory.read_frame(begun.layout, ref).positions
    frame_bytes = (len(whole) - 276) // 15
    begin = 276 + frame * frame_bytes
    used = {byte // 256 for byte in [*range(276), *range(begin, begin + frame_bytes)]}
    found = set()
    for place in (*range(0, len(whole), 101), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        paths.trajectory.write_bytes(bytes(damaged))
        try:
            np.testing.assert_array_equal(trajectory.read_frame(begun.layout, ref).positions, expected)
        except DamagedError:
            found.add(place // 256)
    assert found == used
    # What was not used is found by whoever reads all of it.
    paths.trajectory.write_bytes(bytes(damaged))
    assert "trajectory.dcd is altered" in str(integrity.find_damage(paths))
    paths.trajectory.write_bytes(whole[:-1])
    with pytest.raises(DamagedError, match="bytes, it was published with"):
        trajectory.read_frame(begun.layout, ref)


def test_without_digests_of_blocks_the_whole_trajectory_is_held_against_its_own(begun, monkeypatch):
    read, check = [], integrity.check_file
    monkeypatch.setattr(integrity, "check_file", lambda path, files: (read.append(path.name), check(path, files)))
    assert read_record(SegmentRecord, begun.layout.segment(0, 0).record).files["trajectory.dcd"].blocks == ()
    trajectory.read_frame(begun.layout, FrameRef(simulation=0, segment=0, frame=3))
    assert set(read) == {"trajectory.dcd"}


def forget_digests(campaign):
    """As a campaign before there were any."""
    path = campaign.layout.segment(0, 0).record
    write_record(path, read_record(SegmentRecord, path).model_copy(update={"files": {}}))


@pytest.mark.parametrize("name", ["state.xml", "trajectory.dcd"])
def test_what_is_damaged_is_not_read_as_data(begun, name):
    path = begun.layout.segment(0, 0).folder / name
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))
    task = order(begun, 0, 1) if name == "state.xml" else order(begun, 1, 0, FrameRef(simulation=0, segment=0, frame=3))
    with pytest.raises(DamagedError, match=f"{name} is altered") as caught:
        run_task("simulate", begun.layout.root, task)
    assert caught.value.result == path.parent
