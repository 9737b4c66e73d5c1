"""Whole campaigns in process: lineage, identity, counts, ends, and what a failing task does."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from check_invariants import check_invariants
from check_run import check_run
from conftest import Killed, learned, prepare, tiny_settings

from entk_app import campaign as campaign_module
from entk_app.concurrent import make_campaign
from entk_app.errors import RecordError, RunFolderError
from entk_app.inprocess import run_campaign
from entk_app.integrity import read_set_aside
from entk_app.layout import RunLayout
from entk_app.records import (
    AnalysisRecord,
    Deadline,
    Decision,
    ModelRecord,
    RunInfo,
    SegmentRecord,
    Summary,
    append_record,
    read_lines,
    read_record,
    write_lines,
    write_record,
)
from entk_app.run_folder import create_run_folder
from entk_app.settings import build_settings, dump_yaml, read_config
from entk_app.steering import Slots
from entk_app.tasks import run_task
from entk_app.verify import verify_run


def test_a_finished_campaign_passes_the_independent_check(tiny_campaign):
    counts = check_run(tiny_campaign.layout.root, every=1)
    assert counts["segments"] == len(list(tiny_campaign.layout.simulations.glob("*/segment-????"))) >= 9
    assert counts["restarts"] >= 2


def test_the_summary_counts_what_is_on_disk(tiny_campaign):
    layout = tiny_campaign.layout
    summary = read_record(Summary, layout.summary)
    segments = [read_record(SegmentRecord, path) for path in layout.simulations.glob("*/segment-????/segment.json")]
    per_simulation = {}
    for segment in segments:
        per_simulation[segment.simulation] = per_simulation.get(segment.simulation, 0.0) + segment.time_ps * 1e-6
    assert summary.n_simulations == len(per_simulation)
    assert summary.longest_us == pytest.approx(max(per_simulation.values()))
    assert summary.shortest_us == pytest.approx(min(per_simulation.values()))  # all are past min_frames
    assert summary.n_frames == sum(segment.n_frames for segment in segments)
    analyses = [read_record(AnalysisRecord, layout.analysis(learned(number))) for number in (1, 2, 3)]
    assert summary.n_outliers == len({o.frame.key for analysis in analyses for o in analysis.outliers})
    assert (summary.stop_reason, summary.n_iterations) == ("max_iterations", 3)
    assert summary.friction_per_ps == 1.0


@pytest.mark.staged("frames of an iteration are known")
def test_each_analysis_covers_all_frames_and_bounds_its_outliers(tiny_campaign):
    for iteration in (1, 2, 3):
        analysis = read_record(AnalysisRecord, tiny_campaign.layout.analysis(iteration))
        assert analysis.n_frames == 45 * iteration
        assert [model.model.latent_dim for model in analysis.models] == [3, 4]
        assert all(model.n_outliers <= 8 for model in analysis.models)
        values = [outlier.rmsd_angstrom for outlier in analysis.outliers]
        assert values == sorted(values)
        assert all(f.distance > f.eps for outlier in analysis.outliers for f in outlier.found_by)


@pytest.mark.staged("frames of an iteration are known")
def test_the_best_model_is_the_one_with_the_lowest_held_out_reconstruction(tiny_campaign):
    layout = tiny_campaign.layout
    for iteration in (1, 2, 3):
        records = [read_record(ModelRecord, layout.model(iteration, dim).record) for dim in (3, 4)]
        best = min(records, key=lambda record: record.held_out_reconstruction)
        assert read_record(AnalysisRecord, layout.analysis(iteration)).best_model.latent_dim == best.latent_dim
        assert all(record.n_train_frames + record.n_held_out_frames == 45 * iteration for record in records)


@pytest.mark.staged("as many simulations go on at all times")
def test_decisions_can_be_replayed_from_their_records(tiny_campaign):
    decisions = list(read_lines(Decision, tiny_campaign.layout.decisions))
    assert [decision.index for decision in decisions] == list(range(len(decisions)))
    alive: set[int] = set()
    for decision in decisions:
        for action in decision.actions:
            assert action.reason
            if action.kind in ("start", "restart"):
                assert action.simulation not in alive
                alive.add(action.simulation)
            else:
                assert action.simulation in alive
                if action.kind in ("purge", "end"):
                    alive.remove(action.simulation)
        assert len(alive) == 3
    assert decisions[-1].next == "stop"


def test_a_run_folder_describes_itself(tiny_campaign):
    layout = tiny_campaign.layout
    assert build_settings(read_config(layout.settings)) == tiny_campaign.settings
    info = read_record(RunInfo, layout.run_info)
    assert info.seed == tiny_campaign.settings.seed
    assert info.packages["openmm"]


@pytest.mark.staged("it begins with one stage")
def test_the_same_seed_gives_the_same_first_segment(tmp_path, tiny_campaign):
    again = prepare(tmp_path / "run", tiny_settings(), cores=3)
    task = again.start().tasks[0]
    run_task(task.kind, again.layout.root, task.order)
    one, other = (c.layout.segment(0, 0).record for c in (tiny_campaign, again))
    assert read_record(SegmentRecord, one).min_rmsd_angstrom == read_record(SegmentRecord, other).min_rmsd_angstrom


def test_simulations_have_different_random_numbers(tiny_campaign):
    records = [read_record(SegmentRecord, tiny_campaign.layout.segment(number, 0).record) for number in range(3)]
    assert len({record.seed for record in records}) == 3
    assert len({record.last_rmsd_angstrom for record in records}) == 3


def test_a_campaign_ends_when_it_folds(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("stop.target_rmsd_angstrom=30"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_iterations) == ("target_rmsd", 1)
    assert not campaign.layout.models.exists()  # no learning after the end


def test_a_campaign_ends_at_its_simulated_time(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_time_us=0.0001"))
    assert run_campaign(campaign).stop_reason == "max_time"


def test_a_campaign_ends_before_its_walltime(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("simulate.segment_ns=100"))
    campaign.limit_time(Deadline(end_by_unix=time.time() + 1.0, limit="walltime"))
    summary = run_campaign(campaign)
    assert summary.stop_reason == "walltime"
    assert summary.n_frames > 0


@pytest.mark.staged("it counts frames")
def test_without_a_native_structure_a_campaign_steers_by_novelty(tmp_path):
    settings = tiny_settings(
        "system.name=mine", "system.model=all-atom", "system.sequence=ACE-AAAA-NME", "simulate.time_step_fs=2",
        "simulate.segment_ns=0.0015", "simulate.report_interval_ps=0.02", "simulate.temperature_k=600",
        "simulate.contact_cutoff_angstrom=6", "stop.max_iterations=2", "stop.target_rmsd_angstrom=null",
    )  # fmt: skip
    campaign = prepare(tmp_path / "run", settings)
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.min_rmsd_angstrom, summary.n_failed_tasks) == ("max_iterations", None, 0)
    assert summary.n_frames == 300
    assert check_run(campaign.layout.root)["segments"] == 4


@pytest.mark.staged("it is the order of the one chain")
def test_the_initial_phase_takes_all_slots_and_learning_its_share(tmp_path):
    settings = tiny_settings(
        "steering.initial_frames=70", "resource.md_slots=2", "resource.ml_slots=1", "stop.max_iterations=1"
    )
    campaign = prepare(tmp_path / "run", settings, cores=3)
    summary = run_campaign(campaign)
    following = [decision.next for decision in campaign.decisions]
    assert following == ["simulate", "simulate", "simulate+learn", "stop"]
    assert summary.n_simulations == 3
    # Two segments each, then a third of two simulations beside the training.
    assert summary.n_frames == 90 + 30


def failing(monkeypatch, fails):
    """Run tasks in process, but let those fail that ``fails`` says."""
    import entk_app.inprocess

    def run(kind, root, order):
        if fails(kind, Path(order)):
            raise RuntimeError("made to fail")
        run_task(kind, root, order)

    monkeypatch.setattr(entk_app.inprocess, "run_task", run)


def test_a_task_that_fails_once_is_tried_again_with_other_random_numbers(tmp_path, monkeypatch):
    seeds = []

    def fails(kind, order):
        if kind != "simulate" or "0001/segment-0000" not in str(order):
            return False
        seeds.append(json.loads(order.read_text())["seed"])
        return len(seeds) == 1

    failing(monkeypatch, fails)
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=2"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 1)
    assert len(set(seeds)) == 2
    check_run(campaign.layout.root)


def test_a_simulation_that_always_fails_is_ended_and_the_others_go_on(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "simulate" and "0000/segment" in str(order))
    campaign = prepare(tmp_path / "run", tiny_settings())
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 2)
    ends = [a for d in campaign.decisions for a in d.actions if a.kind == "end"]
    assert [action.simulation for action in ends] == [0]
    assert ends[0].reason == "its task failed 2 times in a row: RuntimeError: made to fail"


def test_when_every_simulation_fails_the_campaign_fails(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "simulate")
    campaign = prepare(tmp_path / "run", tiny_settings())
    assert run_campaign(campaign).stop_reason == "failed"


def test_a_failed_training_leaves_the_other_models(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "train" and "latent-3" in str(order))
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1"))
    assert run_campaign(campaign).stop_reason == "max_iterations"
    analysis = read_record(AnalysisRecord, campaign.layout.analysis(learned(1)))
    assert [model.model.latent_dim for model in analysis.models] == [4]


def test_learning_that_fails_again_and_again_ends_the_campaign(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "train")
    campaign = prepare(tmp_path / "run", tiny_settings("faults.give_up_after=2"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_iterations) == ("failed", 2)
    assert "training of latent size 3 failed 2 times in a row" in summary.message
    assert "RuntimeError: made to fail" in summary.message


def test_trainings_that_begin_to_fail_end_the_campaign_though_old_models_are_there(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "train" and f"iteration-{learned(1):04d}" not in str(order))
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=9", "faults.give_up_after=2"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_iterations) == ("failed", 3)


def test_an_analysis_that_fails_is_retried(tmp_path, monkeypatch):
    tries = []

    def fails(kind, order):
        tries.extend([order] if kind == "analyse" else [])
        return kind == "analyse" and len(tries) == 1

    failing(monkeypatch, fails)
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks, len(tries)) == ("max_iterations", 1, 2)
    assert summary.n_outliers > 0


def test_an_iteration_without_an_analysis_goes_on_without_restarts(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "analyse" and f"{learned(1):04d}" in order.name)
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=2", "steering.min_restarts=1"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 2)
    assert {action.kind for action in campaign.decisions[2].actions} == {"continue"}
    assert all("no analysis" in action.reason for action in campaign.decisions[2].actions)


def test_an_analysis_that_always_fails_ends_the_campaign_with_its_reason(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "analyse")
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=9"))
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_iterations, summary.n_failed_tasks) == ("failed", 2, 4)
    assert "the analysis failed 4 times in a row" in summary.message
    assert "made to fail" in summary.message
    assert campaign.last_failed_task == f"analyse.{learned(2):04d}.try2"


def test_a_closed_output_does_not_end_a_campaign(tmp_path):
    def closed(decision):
        raise SystemExit(1)  # what rich does on a broken pipe

    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1"))
    campaign.on_decision = closed
    assert run_campaign(campaign).stop_reason == "max_iterations"


def test_two_campaigns_cannot_take_the_same_folder(tmp_path, monkeypatch):
    layout, settings = RunLayout(tmp_path / "run"), tiny_settings()
    create_run_folder(layout, settings, [])
    # The other launcher looked before this one wrote.
    monkeypatch.setattr("entk_app.run_folder.check_new_run_folder", lambda layout: None)
    with pytest.raises(RunFolderError, match="is taken"):
        create_run_folder(layout, settings, [])


def test_a_run_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        create_run_folder(RunLayout(tmp_path), tiny_settings(), [])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("which", ["all", "best", "4"])
def test_outliers_come_from_the_models_asked_for(tmp_path, which):
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1", f"analyse.models={which}"))
    run_campaign(campaign)
    analysis = read_record(AnalysisRecord, campaign.layout.analysis(learned(1)))
    used = [model.model.latent_dim for model in analysis.models]
    assert used == {"all": [3, 4], "best": [analysis.best_model.latent_dim], "4": [4]}[which]


@pytest.mark.staged("it begins with one stage")
def test_names_are_what_entk_takes(tiny_campaign, tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings())
    stage = campaign.start()
    names = [stage.name, *(task.name for task in stage.tasks)]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.") for name in names)
    assert campaign_module.StageSpec is type(stage)


def what_was_decided(layout):
    return [
        decision.model_dump(exclude={"unix", "index"}) for decision in read_lines(Decision, layout.decisions)
    ]  # fmt: skip


@pytest.mark.staged("its decisions are the same whatever was cut off")
@pytest.mark.parametrize("cut", [0, 2, 3, 4, 5, 7, 10])
def test_a_campaign_killed_anywhere_goes_on_as_if_nothing_had_happened(tmp_path, tiny_campaign, kill_after, cut):
    # 3 simulations, 2 trainings and an analysis an iteration: the cuts lie before, within and after each.
    campaign = prepare(tmp_path / "run", tiny_settings(), cores=3)
    kill_after(cut)
    with pytest.raises(Killed):
        run_campaign(campaign)
    kill_after(1000)
    again = make_campaign(campaign.layout, campaign.settings, campaign.machine)
    summary = run_campaign(again)
    assert what_was_decided(campaign.layout) == what_was_decided(tiny_campaign.layout)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 0)
    assert check_run(campaign.layout.root, every=3)["segments"] == 9


@pytest.mark.staged("it is the order of the one chain")
def test_a_campaign_that_is_over_can_go_on_with_higher_limits(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1"))
    assert run_campaign(campaign).n_iterations == 1
    more = tiny_settings("stop.max_iterations=2")
    summary = run_campaign(make_campaign(campaign.layout, more, campaign.machine))
    assert (summary.stop_reason, summary.n_iterations, summary.n_failed_tasks) == ("max_iterations", 2, 0)
    assert [d.next for d in read_lines(Decision, campaign.layout.decisions)] == [
        "simulate", "learn", "stop", "simulate", "learn", "stop",
    ]  # fmt: skip
    assert check_run(campaign.layout.root)["segments"] == 4


@pytest.mark.staged("it is taken up stage by stage")
def test_a_campaign_that_is_over_ends_at_once_under_the_same_rule(tmp_path, tiny_campaign):
    campaign = prepare(tmp_path / "run", tiny_settings("stop.max_iterations=1"))
    run_campaign(campaign)
    again = make_campaign(campaign.layout, campaign.settings, campaign.machine)
    assert again.resume() is None
    assert again.final_decision.stop_reason == "max_iterations"


@pytest.mark.staged("it is the order of the one chain")
def test_where_slots_are_split_models_train_beside_simulations(tmp_path):
    settings = tiny_settings("train.latent_dims=[3]", "stop.max_iterations=2")
    campaign = prepare(tmp_path / "run", settings, cores=8, gpus=4)
    assert campaign.machine.slots == Slots(total=4, simulate=3, learn=1)
    summary = run_campaign(campaign)
    layout = campaign.layout
    by_iteration = {}
    for path in layout.simulations.glob("*/segment-????/segment.json"):
        record = read_record(SegmentRecord, path)
        by_iteration[record.iteration] = by_iteration.get(record.iteration, 0) + 1
    assert by_iteration == {1: 4, 2: 3, 3: 3}
    assert sorted(path.parent.name for path in layout.models.glob("*/*/model.json") for path in [path.parent]) == [
        "iteration-0002", "iteration-0003",
    ]  # fmt: skip
    # The models of an iteration know the frames from before it, its analysis all of them.
    assert read_record(ModelRecord, layout.model(2, 3).record).n_train_frames < 60
    assert read_record(AnalysisRecord, layout.analysis(2)).n_frames == 60 + 45
    assert (summary.n_iterations, summary.stop_reason) == (2, "max_iterations")
    assert check_run(layout.root)["segments"] == 10


@pytest.mark.staged("it begins with one stage")
def test_in_a_split_a_fold_beside_a_training_ends_the_campaign_without_another_analysis(tmp_path):
    settings = tiny_settings("train.latent_dims=[3]", "stop.target_rmsd_angstrom=0.1")
    campaign = prepare(tmp_path / "run", settings, cores=8, gpus=4)
    stage = campaign.start()
    while stage.kind == "simulate":
        for task in stage.tasks:
            run_task(task.kind, campaign.layout.root, task.order)
        stage = campaign.advance()
    for task in stage.tasks:
        run_task(task.kind, campaign.layout.root, task.order)
    campaign.settings = tiny_settings("train.latent_dims=[3]", "stop.target_rmsd_angstrom=30")
    assert campaign.advance() is None
    assert campaign.final_decision.stop_reason == "target_rmsd"
    assert not campaign.layout.analyses.exists()


@pytest.mark.staged("it is the order of the one chain")
def test_tasks_that_die_with_their_job_have_not_failed(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "simulate" and "segment-0001" in order.name)
    campaign = prepare(tmp_path / "run", tiny_settings("steering.min_frames=100"))
    asked = []

    def find_deadline():
        asked.append(campaign.stage.kind)
        return Deadline(end_by_unix=time.time() - 1.0, limit="walltime")

    campaign.find_deadline = find_deadline
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks, summary.n_iterations) == ("walltime", 0, 2)
    assert asked == ["simulate"]  # only when something was missing
    monkeypatch.undo()
    campaign.layout.deadline.unlink()  # as the next launcher does
    again = make_campaign(campaign.layout, campaign.settings, campaign.machine)
    assert run_campaign(again).stop_reason == "max_iterations"


def test_a_training_that_dies_with_its_job_has_not_failed(tmp_path, monkeypatch):
    failing(monkeypatch, lambda kind, order: kind == "train")
    campaign = prepare(tmp_path / "run", tiny_settings())
    campaign.find_deadline = lambda: Deadline(end_by_unix=time.time() - 1.0, limit="walltime")
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("walltime", 0)


@pytest.mark.staged("its decisions are the same whatever was cut off")
def test_a_campaign_whose_launcher_died_while_it_wrote_a_decision_goes_on(tmp_path, tiny_campaign, kill_after):
    campaign = prepare(tmp_path / "run", tiny_settings(), cores=3)
    layout = campaign.layout
    kill_after(6)
    with pytest.raises(Killed):
        run_campaign(campaign)
    kill_after(1000)
    # As if the last decision had been torn, and before that the records of what it starts had not been written.
    whole = layout.decisions.read_bytes()
    layout.decisions.write_bytes(whole[:-40])
    for path in layout.simulations.glob("*/simulation.json"):
        path.unlink()
    again = make_campaign(layout, campaign.settings, campaign.machine)
    assert run_campaign(again).stop_reason == "max_iterations"
    assert what_was_decided(layout) == what_was_decided(tiny_campaign.layout)
    assert len(list(layout.simulations.glob("*/simulation.json"))) == len(list(layout.simulations.iterdir()))


def test_in_a_split_a_resumed_iteration_trains_its_models_on_the_same_frames(tmp_path, kill_after):
    settings = tiny_settings("train.latent_dims=[3,4]", "stop.max_iterations=1")
    campaign = prepare(tmp_path / "run", settings, cores=8, gpus=8)
    assert campaign.machine.slots == Slots(total=8, simulate=6, learn=2)
    kill_after(8 + 6 + 1)  # the first of two trainings is done
    with pytest.raises(Killed):
        run_campaign(campaign)
    kill_after(1000)
    run_campaign(make_campaign(campaign.layout, campaign.settings, campaign.machine))
    models = [read_record(ModelRecord, campaign.layout.model(2, dim).record) for dim in (3, 4)]
    assert len({model.n_train_frames + model.n_held_out_frames for model in models}) == 1
    assert models[0].n_train_frames + models[0].n_held_out_frames == 8 * 15


@pytest.mark.staged("it is taken up stage by stage")
def test_an_unreadable_campaign_is_left_as_it_is(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings())
    campaign.start()
    campaign.layout.decisions.write_text("nonsense\n" + campaign.layout.decisions.read_text())
    before = campaign.layout.decisions.read_bytes()
    again = make_campaign(campaign.layout, campaign.settings, campaign.machine)
    with pytest.raises(RecordError, match="line 1"):
        again.resume()
    again.end("failed", "must not be recorded")
    assert campaign.layout.decisions.read_bytes() == before


@pytest.mark.staged("it is taken up stage by stage")
def test_a_campaign_that_goes_on_with_a_larger_pilot_fills_it_in_the_initial_phase(tmp_path):
    settings = tiny_settings("steering.initial_frames=1000")
    campaign = prepare(tmp_path / "run", settings, cores=2)
    campaign.start()
    for task in campaign.stage.tasks:
        run_task(task.kind, campaign.layout.root, task.order)
    larger = prepare(tmp_path / "other", settings, cores=5).machine
    again = make_campaign(campaign.layout, settings, larger)
    stage = again.resume()
    assert len(stage.tasks) == 5


@pytest.mark.staged("it begins with one stage")
def test_the_time_is_looked_at_after_a_training_too(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings())
    stage = campaign.start()
    while stage.kind != "train":
        for task in stage.tasks:
            run_task(task.kind, campaign.layout.root, task.order)
        stage = campaign.advance()
    for task in stage.tasks:
        run_task(task.kind, campaign.layout.root, task.order)
    campaign.limit_time(Deadline(end_by_unix=time.time() - 1, limit="budget"))
    assert campaign.advance() is None
    assert campaign.final_decision.stop_reason == "budget"


@pytest.mark.staged("it begins with one stage")
def test_no_segment_is_started_that_cannot_end_in_the_pilots_time(tmp_path):
    settings = tiny_settings("simulate.segment_minutes=0.01")
    campaign = prepare(tmp_path / "run", settings)
    stage = campaign.start()
    # Half a minute is enough for everything but a segment of a minute.
    campaign.settings = tiny_settings("simulate.segment_minutes=1")
    campaign.limit_time(Deadline(end_by_unix=time.time() + 30.0, limit="walltime"))
    campaign._durations["simulate"] = 0.0
    while stage is not None:
        for task in stage.tasks:
            run_task(task.kind, campaign.layout.root, task.order)
        campaign._durations.pop("simulate", None)
        stage = campaign.advance()
        campaign._durations.pop("simulate", None)
    assert campaign.final_decision.stop_reason == "walltime"
    assert "the next stage takes about 1.0 min" in campaign.final_decision.reason
    assert len(list(campaign.layout.analyses.glob("iteration-????.json"))) == 1


@pytest.mark.staged("it begins with one stage")
def test_waiting_in_a_queue_is_no_part_of_a_stages_time(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings())
    campaign.start()
    campaign._stage_began -= 7200
    campaign.note_pilot_active()
    campaign.limit_time(Deadline(end_by_unix=time.time() + 3600, limit="walltime"))
    for task in campaign.stage.tasks:
        run_task(task.kind, campaign.layout.root, task.order)
    campaign.advance()
    assert campaign._durations["simulate"] < 600


@pytest.mark.staged("it is taken up stage by stage")
def test_a_campaign_that_has_folded_is_known_to_without_another_task(tmp_path, kill_after):
    campaign = prepare(tmp_path / "run", tiny_settings())
    kill_after(2)
    with pytest.raises(Killed):
        run_campaign(campaign)
    nearer = tiny_settings("stop.target_rmsd_angstrom=30")
    again = make_campaign(campaign.layout, nearer, campaign.machine)
    assert again.resume() is None
    assert again.final_decision.stop_reason == "target_rmsd"
    assert not list(campaign.layout.models.glob("*/*/model.json"))


# Damage.


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = [
    (flip, "frames.h5"), (truncate, "frames.h5"), (flip, "trajectory.dcd"), (truncate, "state.xml"),
    (Path.unlink, "log.csv"), (flip, "segment.json"), (Path.unlink, "segment.json"),
]  # fmt: skip


@pytest.mark.staged("it counts frames")
@pytest.mark.parametrize(
    ("damage", "name", "place"), [(*damage, "last") for damage in DAMAGES] + [(flip, "frames.h5", "first")]
)
def test_a_damaged_segment_is_set_aside_and_the_campaign_goes_on_without_it(
    tmp_path, tiny_campaign, caplog, damage, name, place
):
    # Two iterations are there, a third is to come.
    root = tmp_path / "run"
    shutil.copytree(tiny_campaign.layout.root, root)
    layout = RunLayout(root)
    simulation = max(range(6), key=lambda number: (len(layout.segment_numbers(number)), -number))
    numbers = layout.segment_numbers(simulation)
    assert len(numbers) >= 2
    segment = numbers[-1] if place == "last" else numbers[0]
    damage(layout.segment(simulation, segment).folder / name)
    more = tiny_settings("stop.max_iterations=4")
    summary = run_campaign(make_campaign(layout, more, tiny_campaign.machine))
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 0)
    assert summary.n_frames == 3 * 15 * 4 - 15
    note = read_set_aside(layout)[0]
    assert (note.simulation, note.segment) == (simulation, segment)
    assert f"is set aside as {note.kept_as}" in caplog.text
    assert segment not in layout.segment_numbers(simulation)
    check_invariants(root)
    assert verify_run(layout).problems == []


def test_a_segment_that_is_damaged_while_a_campaign_runs_costs_no_more_than_itself(tmp_path, monkeypatch):
    # Between its publication and the trainings that read it.
    damaged = []

    def fails(kind, order):
        if kind == "train" and not damaged:
            damaged.append(campaign.layout.segment(0, 0).frames)
            flip(damaged[0])
        return False

    failing(monkeypatch, fails)
    campaign = prepare(tmp_path / "run", tiny_settings())
    summary = run_campaign(campaign)
    assert summary.stop_reason == "max_iterations"
    # Both trainings of the first iteration met it; the second iteration's did not.
    assert summary.n_failed_tasks == 2
    assert [note.segment for note in read_set_aside(campaign.layout)] == [0]
    assert "frames.h5 is altered" in read_set_aside(campaign.layout)[0].reason
    check_invariants(campaign.layout.root)
    assert verify_run(campaign.layout).problems == []


def test_a_restart_whose_origin_was_damaged_is_replaced(tmp_path, tiny_campaign):
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(tiny_campaign.layout.root, layout.root)
    # As if it had been killed just after the decision that started the newest simulation from an outlier.
    decisions = list(read_lines(Decision, layout.decisions))
    last = max(d.index for d in decisions if any(a.kind == "restart" for a in d.actions))
    write_lines(layout.decisions, decisions[: last + 1])
    for path in layout.simulations.glob("*/segment-????/segment.json"):
        if read_record(SegmentRecord, path).decision >= last:
            shutil.rmtree(path.parent)
    action = next(a for a in decisions[last].actions if a.kind == "restart")
    flip(layout.segment(action.origin.simulation, action.origin.segment).trajectory)
    campaign = make_campaign(layout, tiny_settings("stop.max_iterations=4"), tiny_campaign.machine)
    assert run_campaign(campaign).stop_reason == "max_iterations"
    ends = {a.simulation: a.reason for d in campaign.decisions[last:] for a in d.actions if a.kind == "end"}
    assert "its origin" in ends[action.simulation]
    check_invariants(layout.root)


@pytest.mark.parametrize("name", ["encoder.keras", "model.json"])
def test_a_damaged_model_is_replaced_by_the_one_before(tmp_path, tiny_campaign, name):
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(tiny_campaign.layout.root, layout.root)
    truncate(layout.model(learned(3), 4).folder / name)
    campaign = make_campaign(layout, tiny_settings("stop.max_iterations=4"), tiny_campaign.machine)
    assert run_campaign(campaign).stop_reason == "max_iterations"
    assert verify_run(layout).problems == []


@pytest.mark.staged("it is taken up stage by stage")
def test_another_system_than_the_campaigns_own_is_refused(tmp_path, tiny_campaign):
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(tiny_campaign.layout.root, layout.root)
    flip(layout.topology)
    with pytest.raises(RunFolderError, match=r"topology\.pdb is altered.*bring it back"):
        make_campaign(layout, tiny_settings("stop.max_iterations=4"), tiny_campaign.machine).resume()


# Saving on the way.


@pytest.mark.staged("it has one slot")
def test_a_task_killed_on_the_way_costs_what_came_after_its_last_save(tmp_path, monkeypatch):
    monkeypatch.setattr("entk_app.tasks.simulate.write_record", die_at_the(5, "segment.json"))
    settings = tiny_settings("faults.save_minutes=1e-9", "stop.max_iterations=1")
    campaign = prepare(tmp_path / "run", settings, cores=1)
    with pytest.raises(Killed):
        run_campaign(campaign)
    monkeypatch.undo()
    layout = campaign.layout
    assert layout.segment_numbers(0) == [0, 1, 2, 3]
    seeds = {read_record(SegmentRecord, layout.segment(0, n).record).seed for n in range(4)}
    # The rest is one more task, with one segment.
    calm = tiny_settings("stop.max_iterations=1")
    layout.settings.write_text(dump_yaml(calm))
    summary = run_campaign(make_campaign(layout, calm, campaign.machine))
    assert layout.segment_numbers(0) == [0, 1, 2, 3, 4]
    record = read_record(SegmentRecord, layout.segment(0, 4).record)
    assert (record.n_frames, record.ended_by, summary.n_frames) == (11, "length", 15)
    assert len(seeds) == 1 and record.seed not in seeds
    assert [note.path for note in read_set_aside(layout)] == ["simulations/0000/segment-0004.partial"]
    check_invariants(layout.root)
    check_run(layout.root, every=1)
    assert verify_run(layout).problems == []


def die_at_the(count, name):
    """A ``write_record`` that lets the process die instead of writing a file of this name for the n-th time."""
    left = [count]

    def write(path, record):
        left[0] -= path.name == name
        if left[0] == 0:
            raise Killed
        write_record(path, record)

    return write


@pytest.mark.staged("its decisions are the same whatever was cut off")
@pytest.mark.parametrize(
    ("what", "count"),
    [("simulation", 1), ("simulation", 4), ("task", 4), ("task", 7), ("decision", 3), ("model", 2), ("analysis", 2)],
)
def test_a_launcher_killed_at_any_of_its_writes_goes_on(tmp_path, tiny_campaign, monkeypatch, what, count):
    left = [count]

    def dying(function, matches):
        def write(path, *arguments):
            left[0] -= matches(path.name)
            if left[0] == 0:
                raise Killed
            return function(path, *arguments)

        return write

    names = {
        "simulation": "simulation.json", "task": ".task.json", "decision": "decisions.jsonl", "model": "model.json",
        "analysis": ".json",
    }  # fmt: skip
    modules = {"model": "entk_app.tasks.train", "analysis": "entk_app.tasks.analyse"}
    module = modules.get(what, "entk_app.campaign")
    function, name = (append_record, "append_record") if what == "decision" else (write_record, "write_record")
    monkeypatch.setattr(f"{module}.{name}", dying(function, lambda written: written.endswith(names[what])))
    campaign = prepare(tmp_path / "run", tiny_settings(), cores=3)
    with pytest.raises(Killed):
        run_campaign(campaign)
    monkeypatch.undo()
    summary = run_campaign(make_campaign(campaign.layout, campaign.settings, campaign.machine))
    assert what_was_decided(campaign.layout) == what_was_decided(tiny_campaign.layout)
    assert (summary.stop_reason, summary.n_frames) == ("max_iterations", 135)
    check_invariants(campaign.layout.root)
    assert verify_run(campaign.layout).problems == []
