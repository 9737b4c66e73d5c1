"""Frames: identity never mixed up, files readable after a kill, embeddings kept per segment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entk_app import geometry
from entk_app.errors import DataError
from entk_app.frames import (
    FrameWriter,
    find_altered_embeddings,
    read_columns,
    read_contact_maps,
    read_embeddings,
    read_frames,
    read_start_positions,
    write_embeddings,
)
from entk_app.integrity import DamagedError, digest_files
from entk_app.layout import RunLayout
from entk_app.records import SegmentKey, SegmentRecord, write_record

N_RESIDUES = 12


def chain(seed):
    return np.cumsum(np.random.default_rng(seed).normal(size=(N_RESIDUES, 3)) * 2.5, axis=0)


def write_segment(layout, simulation, segment, n_frames, native=None, flush_frames=7):
    path = layout.segment(simulation, segment).frames
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = FrameWriter(path, N_RESIDUES, native, 8.0, chain(0), flush_frames=flush_frames)
    for frame in range(n_frames):
        writer.add(100 * (frame + 1), 0.2 * (frame + 1), chain(frame_seed(simulation, segment, frame)))
    writer.flush()
    write_record(
        layout.segment(simulation, segment).record,
        SegmentRecord(
            simulation=simulation, segment=segment, iteration=1, decision=0, origin=None, seed=1, n_frames=n_frames,
            steps=100, first_step=0, time_ps=1.0, start_time_ps=0.0, min_rmsd_angstrom=None, min_rmsd_frame=None,
            last_rmsd_angstrom=None, platform="CPU", device=None, cores=1, friction_per_ps=1.0, temperature_k=300.0,
            ended_by="length", seconds_setup=0.1, seconds_md=1.0, ns_per_day=1.0, unix_start=0.0, unix_end=1.0,
            files=digest_files([path]),
        ),
    )  # fmt: skip
    return SegmentKey(simulation=simulation, segment=segment, n_frames=n_frames)


def frame_seed(simulation, segment, frame):
    return simulation * 1_000_000 + segment * 1_000 + frame


def test_a_segment_reads_back_what_was_computed_from_its_positions(tmp_path):
    layout, native = RunLayout(tmp_path), chain(99)
    write_segment(layout, 0, 0, 23, native)
    path = layout.segment(0, 0).frames
    positions = np.array([chain(frame_seed(0, 0, frame)) for frame in range(23)])
    columns = read_columns(path)
    np.testing.assert_array_equal(columns["step"], 100 * np.arange(1, 24))
    np.testing.assert_allclose(columns["rmsd_angstrom"], geometry.compute_rmsd(positions, native))
    np.testing.assert_allclose(columns["radius_of_gyration_angstrom"], geometry.compute_radius_of_gyration(positions))
    maps = read_contact_maps(path)
    first, second = np.triu_indices(N_RESIDUES, 1)
    np.testing.assert_array_equal(maps[:, first, second], geometry.compute_contacts(positions))
    np.testing.assert_array_equal(read_start_positions(path), chain(0))


def test_the_file_says_how_its_maps_are_stored_and_plain_numpy_reads_them(tmp_path):
    layout = RunLayout(tmp_path)
    write_segment(layout, 0, 0, 5)
    with h5py.File(layout.segment(0, 0).frames) as file:
        assert "upper triangle" in file.attrs["contacts_layout"]
        n = int(file.attrs["n_residues"])
        bits = np.unpackbits(file["contacts"][:], axis=1)[:, : n * (n - 1) // 2]
    positions = np.array([chain(frame_seed(0, 0, frame)) for frame in range(5)])
    np.testing.assert_array_equal(bits, geometry.compute_contacts(positions))


def test_without_a_native_structure_there_is_no_rmsd(tmp_path):
    layout = RunLayout(tmp_path)
    key = write_segment(layout, 0, 0, 4)
    assert set(read_columns(layout.segment(0, 0).frames)) == {"step", "time_ps", "radius_of_gyration_angstrom"}
    assert read_frames(layout, [key]).rmsd_angstrom is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    purged=st.sets(st.integers(0, 3)),
)
def test_every_row_is_the_frame_that_its_identity_says(tmp_path_factory, lengths, order, purged):
    """Simulations of different lengths, some purged, read in any order."""
    layout = RunLayout(tmp_path_factory.mktemp("identity"))
    keys = [
        write_segment(layout, simulation, segment, n_frames)
        for simulation, segments in enumerate(lengths)
        for segment, n_frames in enumerate(segments)
    ]
    chosen = [key for key in keys if key.simulation not in purged] or keys
    order.shuffle(chosen)
    frames = read_frames(layout, chosen)
    assert len(frames) == sum(key.n_frames for key in chosen)
    refs = [frames.ref(row) for row in range(len(frames))]
    assert len(set(refs)) == len(refs)
    for row, ref in enumerate(refs):
        expected = geometry.compute_contacts(chain(frame_seed(*ref.key)))
        np.testing.assert_array_equal(frames.packed[row], geometry.pack_contacts(expected))


def test_a_segment_of_another_length_than_its_record_is_refused(tmp_path):
    layout = RunLayout(tmp_path)
    key = write_segment(layout, 0, 0, 5)
    with pytest.raises(DataError, match="holds 5 frames, its record says 6"):
        read_frames(layout, [key.model_copy(update={"n_frames": 6})])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "no record"])
def test_a_damaged_segment_is_never_read(tmp_path, damage):
    layout = RunLayout(tmp_path)
    keys = [write_segment(layout, 0, segment, 50) for segment in range(2)]
    paths = layout.segment(0, 1)
    content = bytearray(paths.frames.read_bytes())
    content[len(content) // 2] ^= 0x10
    if damage == "flipped":
        paths.frames.write_bytes(content)
    elif damage == "truncated":
        os.truncate(paths.frames, 3000)
    else:
        (paths.frames if damage == "missing" else paths.record).unlink()
    with pytest.raises(DamagedError) as caught:
        read_frames(layout, keys)
    assert caught.value.result == paths.folder
    assert len(read_frames(layout, keys[:1])) == 50


def test_no_frames_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no frames"):
        read_frames(RunLayout(tmp_path), [])


def test_a_killed_writer_leaves_a_file_that_can_be_read(tmp_path):
    """HDF5 files open for writing when a process is killed are unreadable for ever: this one is not open."""
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        import numpy as np
        from entk_app.frames import FrameWriter
        writer = FrameWriter(Path(sys.argv[1]), 12, None, 8.0, np.zeros((12, 3)), flush_frames=10)
        for frame in range(25):
            writer.add(frame, frame * 1.0, np.arange(36.0).reshape(12, 3) + frame)
        print("written", flush=True)
        time.sleep(60)
        """
    )
    path = tmp_path / "frames.h5"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "written"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(read_columns(path)["step"]) == 20
    assert len(read_contact_maps(path)) == 20


def test_embeddings_are_kept_per_segment_and_only_whole_ones_are_given(tmp_path):
    path = tmp_path / "embeddings.h5"
    one, two = (SegmentKey(simulation=0, segment=n, n_frames=4) for n in range(2))
    assert read_embeddings(path, [one]) == {}
    write_embeddings(path, {one: np.ones((4, 3))})
    write_embeddings(path, {two: np.full((4, 3), 2.0)})
    found = read_embeddings(path, [one, two])
    assert {key.segment: float(values[0, 0]) for key, values in found.items()} == {0: 1.0, 1: 2.0}
    assert read_embeddings(path, [one.model_copy(update={"n_frames": 5})]) == {}


def test_coordinates_that_are_said_to_be_of_another_segment_are_not_given(tmp_path):
    path = tmp_path / "embeddings.h5"
    one, two = (SegmentKey(simulation=0, segment=n, n_frames=4) for n in range(2))
    write_embeddings(path, {one: np.ones((4, 3)), two: np.full((4, 3), 2.0)})
    with h5py.File(path, "r+") as file:
        file["segments"][:, 1] = [1, 0]
    assert read_embeddings(path) == {}
    assert len(find_altered_embeddings(path)) == 2


def test_damaged_embeddings_are_made_anew(tmp_path):
    path = tmp_path / "embeddings.h5"
    keys = [SegmentKey(simulation=0, segment=n, n_frames=400) for n in range(2)]
    write_embeddings(path, {key: np.full((400, 3), 1.0 + key.segment) for key in keys})
    content = bytearray(path.read_bytes())
    place = content.index(np.full(20, 2.0, "<f4").tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    assert list(read_embeddings(path, keys)) == keys[:1]
    write_embeddings(path, {keys[1]: np.full((400, 3), 2.0)})
    assert list(read_embeddings(path, keys)) == keys
    # As a killed task leaves it.
    os.truncate(path, 1000)
    assert read_embeddings(path, keys) == {}
    write_embeddings(path, {keys[0]: np.ones((400, 3))})
    assert list(read_embeddings(path, keys)) == keys[:1]
