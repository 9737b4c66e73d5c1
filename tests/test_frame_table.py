"""Which frames are chosen, and that the table of them is what the raw files hold."""

from __future__ import annotations

import json
import shutil
import time

import h5py
import numpy as np
import pytest
from conftest import prepare, tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from entk_app import frame_table
from entk_app.errors import ExportError
from entk_app.frame_table import FrameTable, Selection
from entk_app.layout import RunLayout
from entk_app.records import FrameRef, ModelRef
from entk_app.run_reader import RunReader
from entk_app.tasks import run_task


def open_table(layout, selection=None, model=None):
    run = RunReader(layout).read(time.time())
    return FrameTable(layout, run, run.system, selection or Selection(), model)


def read_rows(table):
    return [row for piece in table.read() for row in piece.to_pylist()]


def raw_frames(root):
    """Every frame by (simulation, segment, frame), with h5py alone."""
    frames = {}
    for path in sorted(root.glob("simulations/*/segment-????/frames.h5")):
        place = (int(path.parts[-3]), int(path.parts[-2][-4:]))
        with h5py.File(path) as file:
            columns = {name: file[name][:] for name in ("time_ps", "rmsd_angstrom", "native_contacts")}
            columns["radius_of_gyration_angstrom"] = file["radius_of_gyration_angstrom"][:]
        for frame in range(len(columns["time_ps"])):
            frames[(*place, frame)] = {name: values[frame] for name, values in columns.items()}
    return frames


def raw_outliers(root, iterations):
    found = set()
    for iteration in iterations:
        record = json.loads((root / f"analysis/iteration-{iteration:04d}.json").read_text())
        found |= {tuple(o["frame"][key] for key in ("simulation", "segment", "frame")) for o in record["outliers"]}
    return found


@pytest.mark.staged("it counts frames, or names iterations")
def test_the_table_is_what_the_raw_files_hold(tiny_campaign):
    layout = tiny_campaign.layout
    best = json.loads(layout.analysis(3).read_text())["best_model"]
    rows = read_rows(open_table(layout, model=ModelRef(**best)))
    raw = raw_frames(layout.root)
    assert [(row["simulation"], row["segment"], row["frame"]) for row in rows] == sorted(raw)
    last, ever = raw_outliers(layout.root, [3]), raw_outliers(layout.root, [1, 2, 3])
    assert last < ever
    path = layout.root / f"models/iteration-{best['iteration']:04d}/latent-{best['latent_dim']}/embeddings.h5"
    with h5py.File(path) as file:
        latents = file["latent"][:]
        first = {(simulation, segment): start for simulation, segment, start, _ in file["segments"][:].tolist()}
        for row in rows:
            key = (row["simulation"], row["segment"], row["frame"])
            for name, value in raw[key].items():
                assert row[name] == value, (key, name)
            assert (row["outlier"], row["outlier_ever"]) == (key in last, key in ever)
            latent = latents[first[key[:2]] + key[2]]
            assert [row[f"latent_{n + 1}"] for n in range(best["latent_dim"])] == latent.tolist()


@pytest.mark.staged("it counts frames, or names iterations")
def test_what_a_model_has_not_encoded_is_null(tiny_campaign, tmp_path):
    # The model of the first iteration has not seen the segments after it.
    rows = read_rows(open_table(tiny_campaign.layout, model=ModelRef(iteration=1, latent_dim=3)))
    encoded = [row["latent_1"] is not None for row in rows]
    first = [json.loads((tiny_campaign.layout.segment(r["simulation"], r["segment"]).record).read_text()) for r in rows]
    assert encoded == [record["iteration"] == 1 for record in first]
    assert 0 < sum(encoded) < len(rows)


def test_pieces_are_bounded_and_add_up(tiny_campaign, monkeypatch):
    whole = read_rows(open_table(tiny_campaign.layout))
    monkeypatch.setattr(frame_table, "_PIECE_FRAMES", 20)
    pieces = list(open_table(tiny_campaign.layout).read())
    assert len(pieces) > 3
    # Not more than a piece and a segment.
    assert max(piece.num_rows for piece in pieces) < 20 + 15
    assert [row for piece in pieces for row in piece.to_pylist()] == whole


selections = st.builds(
    Selection,
    above_angstrom=st.none() | st.floats(5, 12),
    up_to_angstrom=st.none() | st.floats(5, 14),
    outliers=st.none()
    | st.frozensets(
        st.builds(FrameRef, simulation=st.integers(0, 5), segment=st.integers(0, 2), frame=st.integers(0, 14)),
        max_size=40,
    ),
    simulations=st.none() | st.frozensets(st.integers(0, 5), max_size=3),
    segments=st.none() | st.frozensets(st.integers(0, 2), max_size=2),
    every=st.integers(1, 20),
    best=st.none() | st.integers(1, 60),
)


@settings(deadline=None)
@given(selections)
def test_a_frame_is_chosen_where_every_condition_holds(tiny_campaign, selection):
    raw = raw_frames_once(tiny_campaign)
    place = {}
    for key in sorted(raw):
        place[key] = sum(other[0] == key[0] and other < key for other in place)
    expected = [
        key
        for key in sorted(raw)
        if (selection.above_angstrom is None or raw[key] > selection.above_angstrom)
        and (selection.up_to_angstrom is None or raw[key] <= selection.up_to_angstrom)
        and (selection.outliers is None or key in {ref.key for ref in selection.outliers})
        and (selection.simulations is None or key[0] in selection.simulations)
        and (selection.segments is None or key[1] in selection.segments)
        and place[key] % selection.every == 0
    ]
    if selection.best is not None:
        expected = sorted(expected, key=lambda key: (raw[key], key))[: selection.best]
    rows = read_rows(open_table(tiny_campaign.layout, selection))
    assert [(row["simulation"], row["segment"], row["frame"]) for row in rows] == expected


_RAW = {}


def raw_frames_once(campaign):
    if not _RAW:
        _RAW.update({key: float(row["rmsd_angstrom"]) for key, row in raw_frames(campaign.layout.root).items()})
    return _RAW


@pytest.mark.parametrize("best", [1, 7, 1000])
def test_the_best_are_the_lowest_whatever_the_pieces(tiny_campaign, monkeypatch, best):
    monkeypatch.setattr(frame_table, "_PIECE_FRAMES", 20)
    rows = read_rows(open_table(tiny_campaign.layout, Selection(best=best)))
    expected = np.sort(list(raw_frames_once(tiny_campaign).values()))[:best]
    assert [row["rmsd_angstrom"] for row in rows] == expected.tolist()


def test_a_segment_that_lost_frames_is_named(tiny_campaign, tmp_path):
    shutil.copytree(tiny_campaign.layout.root, tmp_path / "run")
    layout = RunLayout(tmp_path / "run")
    with h5py.File(layout.segment(0, 0).frames, "r+") as file:
        file["time_ps"].resize(9, axis=0)
    with pytest.raises(ExportError, match="does not hold the 15 frames that its record says"):
        read_rows(open_table(layout))


@pytest.mark.staged("it counts frames, or names iterations")
def test_a_file_that_is_being_written_is_tried_again(tiny_campaign, monkeypatch):
    real, tries = frame_table.read_columns, []

    def read(path):
        tries.append(path)
        if len(tries) < 3:
            raise OSError("unable to lock file")
        return real(path)

    monkeypatch.setattr(frame_table, "read_columns", read)
    monkeypatch.setattr(frame_table, "_TRY_AGAIN_S", 0.0)
    assert len(read_rows(open_table(tiny_campaign.layout))) == 135
    monkeypatch.setattr(frame_table, "read_columns", lambda path: (_ for _ in ()).throw(OSError("truncated file")))
    with pytest.raises(ExportError, match=r"frames.h5 cannot be read \(truncated file\)"):
        read_rows(open_table(tiny_campaign.layout))


def test_a_campaign_that_runs_is_read_to_its_last_whole_segment(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    stage = campaign.start()
    run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    paths = campaign.layout.segment(1, 0)
    shutil.copytree(campaign.layout.segment(0, 0).folder, paths.work)
    rows = read_rows(open_table(campaign.layout))
    assert {(row["simulation"], row["segment"]) for row in rows} == {(0, 0)}
    # Before the first analysis nobody knows an outlier or a best model.
    assert not {"outlier", "latent_1"} & set(rows[0])
