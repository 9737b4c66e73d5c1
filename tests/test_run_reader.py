"""A run folder is read as it stands: whole records only, whatever is torn, moved or gone at the moment."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import pytest
from conftest import learned, prepare, tiny_settings

from entk_app import run_reader
from entk_app.errors import RunFolderError
from entk_app.layout import RunLayout
from entk_app.records import SegmentProgress, write_record
from entk_app.run_reader import RunReader
from entk_app.status import describe_run
from entk_app.tasks import run_task


@pytest.fixture
def copy(tiny_campaign, tmp_path):
    shutil.copytree(tiny_campaign.layout.root, tmp_path / "run")
    return RunLayout(tmp_path / "run")


def look(layout):
    return RunReader(layout).read(time.time())


def test_it_finds_what_is_on_disk(tiny_campaign):
    root = tiny_campaign.layout.root
    run = look(tiny_campaign.layout)
    raw = [json.loads(path.read_text()) for path in root.glob("simulations/*/segment-????/segment.json")]
    assert {(s.simulation, s.segment, s.n_frames) for s in run.segments} == {
        (s["simulation"], s["segment"], s["n_frames"]) for s in raw
    }
    assert len(run.decisions) == len((root / "decisions.jsonl").read_text().splitlines())
    first, second, last = (learned(number) for number in (1, 2, 3))
    assert sorted(run.models) == [3, 4] and {model.iteration for model in run.models.values()} == {last}
    assert run.trained == run.to_train == {first: {3, 4}, second: {3, 4}, last: {3, 4}}
    assert run.analysed == run.to_analyse == {first, second, last}
    assert run.analysis.iteration == last
    purged = {
        a["simulation"] for d in run.decisions for a in d.model_dump()["actions"] if a["kind"] in ("purge", "end")
    }
    assert {number for number, s in run.simulations.items() if not s.alive} == purged


def test_a_folder_without_a_campaign_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no campaign"):
        look(RunLayout(tmp_path))
    with pytest.raises(RunFolderError, match="holds no campaign"):
        look(RunLayout(tmp_path / "nowhere"))


def test_a_campaign_whose_system_is_being_built_can_be_looked_at(copy):
    shutil.rmtree(copy.system)
    copy.decisions.unlink()
    run = look(copy)
    assert run.system is None and run.decisions == () and run.segments == []


def test_a_decision_that_is_being_written_is_not_there_yet(copy):
    lines = copy.decisions.read_bytes().splitlines(keepends=True)
    for cut in (1, 17, len(lines[-1]) - 1):
        copy.decisions.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        run = look(copy)
        assert (len(run.decisions), run.notes) == (len(lines) - 1, ())


def test_a_damaged_decision_is_noted_and_what_follows_left_out(copy):
    lines = copy.decisions.read_bytes().splitlines(keepends=True)
    copy.decisions.write_bytes(lines[0] + b"\xff\xfe\n" + b"".join(lines[2:]))
    run = look(copy)
    assert len(run.decisions) == 1
    assert run.notes == ("decisions.jsonl line 2 is damaged: it and what follows is left out",)


@pytest.mark.parametrize("what", ["torn", "empty", "gone", "folder", "partial"])
def test_a_segment_that_is_not_whole_is_not_there(copy, what):
    before = look(copy)
    gone = before.segments[-1]
    paths = copy.segment(gone.simulation, gone.segment)
    if what == "partial":
        paths.folder.rename(paths.work)
    else:
        text = paths.record.read_text()
        paths.record.unlink()
        if what == "folder":
            paths.record.mkdir()
        elif what != "gone":
            paths.record.write_text(text[: len(text) // 2] if what == "torn" else "")
    assert look(copy).segments == before.segments[:-1]


def test_an_older_model_and_analysis_serve_while_the_newest_is_torn(copy):
    before, last = learned(2), learned(3)
    copy.analysis(last).write_text("{")
    copy.model(last, 4).record.write_text("{")
    run = look(copy)
    assert run.analysis.iteration == before
    assert {dim: model.iteration for dim, model in run.models.items()} == {3: last, 4: before}


def test_what_did_not_change_is_not_read_again(copy, monkeypatch):
    reader, read = RunReader(copy), []
    real_record, real_segment = run_reader.read_record, run_reader._read_segment
    monkeypatch.setattr(run_reader, "read_record", lambda kind, path: read.append(path) or real_record(kind, path))
    monkeypatch.setattr(run_reader, "_read_segment", lambda path: read.append(path) or real_segment(path))
    first = reader.read(time.time())
    n_read = len(read)
    assert n_read > len(first.segments)
    assert reader.read(time.time()).segments == first.segments
    assert len(read) == n_read
    changed = copy.segment(0, 0).record
    write_record(changed, first.segments[0].model_copy(update={"n_frames": 7}))
    assert reader.read(time.time()).segments[0].n_frames == 7
    assert read[n_read:] == [changed]


def test_progress_that_an_earlier_try_left_is_none(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    campaign.start()
    paths = campaign.layout.segment(0, 0)
    write_record(
        paths.in_work().progress,
        SegmentProgress(simulation=0, segment=0, n_frames=9, min_rmsd_angstrom=7.0, ns_per_day=1.0),
    )
    assert look(campaign.layout).progress[0].n_frames == 9
    ordered = paths.task.stat().st_mtime
    os.utime(paths.in_work().progress, (ordered - 1, ordered - 1))
    assert look(campaign.layout).progress == {}


def test_a_look_never_fails_while_others_write(tiny_campaign, tmp_path):
    """The whole history of a campaign is written again, torn and renamed, while it is looked at."""
    source, target = tiny_campaign.layout, RunLayout(tmp_path / "run")
    target.root.mkdir()
    shutil.copy(source.settings, target.settings)
    over, failures = threading.Event(), []

    def write():
        try:
            replay(source, target)
        except BaseException as error:
            failures.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=write)
    thread.start()
    reader, frames = RunReader(target), []
    while not over.is_set():
        report = describe_run(reader.read(time.time()), target)
        assert report.notes == ()
        frames.append(report.n_frames)
    thread.join()
    assert not failures
    assert len(frames) > 20 and frames == sorted(frames)
    assert describe_run(reader.read(0.0), target).n_frames == sum(s.n_frames for s in look(source).segments)


def replay(source, target):
    """Write what a campaign wrote in the order in which it did, every file torn for a moment."""
    shutil.copytree(source.system, target.system)
    target.lock.write_text('{"host": "els')
    run = look(source)
    for decision in run.decisions:
        with target.decisions.open("a") as stream:
            line = decision.model_dump_json() + "\n"
            for place in range(0, len(line), 40):
                stream.write(line[place : place + 40])
                stream.flush()
        for segment in (s for s in run.segments if s.decision == decision.index):
            paths = target.segment(segment.simulation, segment.segment)
            paths.work.mkdir(parents=True)
            paths.task.write_text("{}")
            progress = SegmentProgress(
                simulation=segment.simulation,
                segment=segment.segment,
                n_frames=3,
                min_rmsd_angstrom=9.0,
                ns_per_day=1.0,
            )
            write_record(paths.in_work().progress, progress)
            paths.in_work().progress.write_text("{")
            time.sleep(0.005)
            paths.in_work().progress.unlink()
            text = segment.model_dump_json()
            paths.in_work().record.write_text(text[:50])
            paths.in_work().record.write_text(text)
            os.replace(paths.work, paths.folder)
        learned = decision.iteration
        if decision.next == "learn":
            for folder in (source.models / f"iteration-{learned:04d}").glob("latent-?"):
                there = target.models / folder.parent.name / folder.name
                shutil.copytree(folder, there)
                shutil.rmtree(there)
                shutil.copytree(folder, there)
                time.sleep(0.005)
            target.analyses.mkdir(exist_ok=True)
            target.analysis(learned).write_text('{"iteration": ')
            shutil.copy(source.analysis(learned), target.analysis(learned))


def test_segments_of_a_simulation_come_in_their_order(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged", "steering.initial_frames=1000"), cores=1)
    stage = campaign.start()
    for _ in range(2):
        run_task("simulate", campaign.layout.root, stage.tasks[0].order)
        stage = campaign.advance()
    assert [s.segment for s in look(campaign.layout).simulations[0].segments] == [0, 1]
