"""entk-app verify: a campaign that is whole is said to be, and every kind of damage is found where it is."""

from __future__ import annotations

import json
import os
import shutil

import h5py
import pytest
from check_invariants import check_invariants
from conftest import learned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entk_app.cli import main
from entk_app.layout import RunLayout
from entk_app.records import SegmentRecord, Summary, read_record, write_record
from entk_app.verify import verify_run


@pytest.fixture
def run(tiny_campaign, tmp_path):
    """A copy of a finished campaign, to be damaged."""
    shutil.copytree(tiny_campaign.layout.root, tmp_path / "run")
    return RunLayout(tmp_path / "run")


def flip(path, place=0.5, bit=4):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.staged("it counts segments")
def test_a_whole_campaign_is_said_to_be(run, capsys):
    found = verify_run(run)
    assert (found.problems, found.notes) == ([], [])
    assert (found.n_segments, found.n_frames, found.n_models, found.n_analyses) == (9, 135, 6, 3)
    assert check_invariants(run.root)["frames"] == 135
    assert main(["verify", str(run.root)]) == 0
    assert "all of it is as it was published" in capsys.readouterr().out


DATA = [
    "simulations/0001/segment-0000/trajectory.dcd",
    "simulations/0001/segment-0000/frames.h5",
    "simulations/0002/segment-0000/state.xml",
    "simulations/0000/segment-0000/log.csv",
    "simulations/0000/segment-0000/segment.json",
    "simulations/0001/simulation.json",
    "models/iteration-0002/latent-3/encoder.keras",
    f"models/iteration-{learned(1):04d}/latent-4/decoder.keras",
    f"models/iteration-{learned(1):04d}/latent-4/history.csv",
    "models/iteration-0003/latent-4/model.json",
    "analysis/iteration-0002.json",
    "system/system.xml",
    "system/topology.pdb",
    "system/native.pdb",
    "system/system.json",
    "decisions.jsonl",
    "summary.json",
    "run.json",
]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_is_found_where_it_is(run, capsys, name, how):
    path = run.root / name
    if how == "flipped":
        flip(path)
    elif how == "truncated":
        os.truncate(path, path.stat().st_size - 30)
    else:
        path.unlink()
    if how == "missing" and name in ("summary.json", "system/system.json"):
        # No summary yet, and no campaign at all.
        assert main(["verify", str(run.root)]) == {"summary.json": 0, "system/system.json": 2}[name]
        return
    assert main(["verify", str(run.root)]) == 1
    output = capsys.readouterr().out
    assert path.name in output
    assert path.parent.name in output or path.parent == run.root


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(DATA), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tiny_campaign, tmp_path_factory, name, place, bit):
    root = tmp_path_factory.mktemp("flipped") / "run"
    # Links to the files: only the one that is damaged is copied.
    shutil.copytree(tiny_campaign.layout.root, root, copy_function=os.link)
    path = root / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    flip(path, place, bit)
    assert verify_run(RunLayout(root)).problems


def test_what_no_record_knows_is_orphaned(run):
    (run.root / "simulations" / "0007" / "segment-0000").mkdir(parents=True)
    (run.segment(0, 0).folder / "notes.txt").write_text("mine")
    (run.root / "backup.tar").write_text("mine")
    shutil.copytree(run.segment(1, 0).folder, run.segment(1, 5).folder)
    found = {path.relative_to(run.root).as_posix(): sentence for path, sentence in verify_run(run).problems}
    assert "orphaned" in found["simulations/0007"]
    assert "notes.txt" in found["simulations/0000/segment-0000"]
    assert "orphaned" in found["backup.tar"]
    assert "is the record of simulation" in found["simulations/0001/segment-0005"]


def test_a_segment_that_is_gone_is_missed(run):
    number = next(n for n in range(9) if len(run.segment_numbers(n)) > 1)
    shutil.rmtree(run.segment(number, 0).folder)
    problems = [sentence for path, sentence in verify_run(run).problems if path == run.simulation(number)]
    assert any("segments are missing" in sentence for sentence in problems)


@pytest.mark.staged("it counts frames")
def test_numbers_that_contradict_one_another_are_found(run):
    path = run.segment(0, 0).record
    record = read_record(SegmentRecord, path)
    write_record(path, record.model_copy(update={"n_frames": 14, "min_rmsd_angstrom": 0.5, "friction_per_ps": 91.0}))
    summary = read_record(Summary, run.summary)
    write_record(run.summary, summary.model_copy(update={"n_frames": 136}))
    sentences = " ".join(sentence for _, sentence in verify_run(run).problems)
    for words in ("15 frames, its record says 14", "0.5", "91/ps", "counts 136 frames, there are 134"):
        assert words in sentences


def test_altered_latent_coordinates_are_found(run):
    path = run.model(learned(1), 3).embeddings
    with h5py.File(path, "r+") as file:
        first = file["segments"][:].tolist()[0]
        file["latent"][first[2] + 2] = 7.0
    found = dict(verify_run(run).problems)
    assert f"simulation {first[0]} segment {first[1]} " in found[path]


def test_verify_changes_nothing(run):
    flip(run.segment(0, 0).frames)
    os.truncate(run.model(learned(1), 3).embeddings, 500)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    verify_run(run)
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


def test_a_record_says_itself_that_it_was_changed(run):
    path = run.segment(0, 0).record
    values = json.loads(path.read_text())
    values["n_frames"] += 1
    path.write_text(json.dumps(values))
    assert any("its checksum differs" in sentence for _, sentence in verify_run(run).problems)
    # Laid out otherwise it is still what was written.
    values["n_frames"] -= 1
    path.write_text(json.dumps(values))
    assert verify_run(run).problems == []
