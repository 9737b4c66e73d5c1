"""Campaigns whose simulations do not wait for learning, in process: chains take turns, a stage each."""

from __future__ import annotations

import time

import pytest
from check_invariants import check_invariants
from check_run import check_run
from conftest import Killed, prepare, tiny_settings

from entk_app import inprocess
from entk_app.concurrent import ConcurrentCampaign, make_campaign
from entk_app.errors import SettingsError
from entk_app.inprocess import run_campaign
from entk_app.records import (
    AnalyseTask,
    Deadline,
    Decision,
    ModelRecord,
    SegmentRecord,
    SimulateTask,
    read_lines,
    read_record,
)
from entk_app.steering import Slots
from entk_app.tasks import run_task
from entk_app.verify import verify_run

SPLIT = ("coupling=concurrent", "resource.md_slots=2", "resource.ml_slots=1")


def concurrent(root, *assignments, cores=3):
    return prepare(root, tiny_settings(*SPLIT, *assignments), cores=cores)


def decisions_of(campaign):
    return list(read_lines(Decision, campaign.layout.decisions))


def check_everything(campaign):
    counts = check_invariants(campaign.layout.root)
    assert not verify_run(campaign.layout).problems
    return counts


class Watched(ConcurrentCampaign):
    """It notes what runs at the same time."""

    def begin(self):
        stages = super().begin()
        self.most = [self.stages]
        return stages

    def follow(self, ended):
        following = super().follow(ended)
        self.most.append(self.stages)
        return following


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    campaign = concurrent(tmp_path_factory.mktemp("concurrent") / "run", "stop.max_iterations=4")
    campaign = Watched(campaign.layout, campaign.settings, campaign.machine)
    run_campaign(campaign)
    return campaign


def test_a_finished_campaign_passes_the_independent_checks(finished):
    counts = check_everything(finished)
    assert counts["purges"] >= 1 and counts["restarts"] >= 1
    assert check_run(finished.layout.root, every=3)["segments"] == counts["segments"]
    summary = finished.summarise()
    assert (summary.stop_reason, summary.n_iterations, summary.n_failed_tasks) == ("max_iterations", 4, 0)
    assert not finished.layout.stop_request.exists()


def test_all_slots_simulate_at_first_then_some_learn(finished):
    assert finished.machine.slots == Slots(total=3, simulate=2, learn=1)
    alive, counts = set(), []
    for decision in decisions_of(finished):
        alive |= {a.simulation for a in decision.actions if a.kind in ("start", "restart")}
        alive -= {a.simulation for a in decision.actions if a.kind in ("purge", "end")}
        counts.append((decision.next, len(alive)))
    assert counts[0] == ("simulate", 3)
    assert set(counts[1:-1]) == {("simulate+learn", 2)}


def test_no_more_runs_at_a_time_than_there_are_slots(finished):
    for stages in finished.most:
        kinds = [stage.kind for stage in stages]
        assert len(stages) <= 3
        # One learning slot: the two models train one after the other.
        assert sum(len(stage.tasks) for stage in stages if stage.kind != "simulate") <= 1
        assert len({task.order.parent for stage in stages for task in stage.tasks if task.kind == "simulate"}) == (
            kinds.count("simulate")
        )
    assert any({stage.kind for stage in stages} == {"simulate", "train"} for stages in finished.most)
    assert any({stage.kind for stage in stages} == {"simulate", "analyse"} for stages in finished.most)


def test_simulations_go_on_while_an_iteration_learns(finished):
    segments = [read_record(SegmentRecord, path) for path in finished.layout.simulations.glob("*/*/segment.json")]
    analysed = {
        (key.simulation, key.segment)
        for iteration in (2, 3, 4, 5)
        for key in read_record(AnalyseTask, finished.layout.analysis_task(iteration)).segments
    }
    # More than one segment a slot and decision; those that the last analysis did not wait for are data too.
    assert len(segments) > 3 + 2 * 4
    assert {(s.simulation, s.segment) for s in segments} > analysed
    # Segments follow the newest decision.
    assert {s.decision for s in segments} == {0, 1, 2, 3, 4}


def test_models_of_an_iteration_train_on_the_same_frames(finished):
    # In those between their models serve on.
    trained = sorted(int(folder.name[-4:]) for folder in finished.layout.models.glob("iteration-*"))
    assert trained[0] == 2
    for iteration in trained:
        records = [read_record(ModelRecord, finished.layout.model(iteration, dim).record) for dim in (3, 4)]
        assert len({record.n_train_frames + record.n_held_out_frames for record in records}) == 1


@pytest.mark.parametrize("cut", [0, 2, 4, 7, 9, 12])
def test_a_campaign_killed_anywhere_goes_on(tmp_path, kill_after, cut):
    campaign = concurrent(tmp_path / "run", "stop.max_iterations=2")
    kill_after(cut)
    with pytest.raises(Killed):
        run_campaign(campaign)
    kill_after(1000)
    summary = run_campaign(make_campaign(campaign.layout, campaign.settings, campaign.machine))
    assert (summary.stop_reason, summary.n_iterations, summary.n_failed_tasks) == ("max_iterations", 2, 0)
    check_everything(campaign)
    n_trained_on = [
        {read_record(ModelRecord, campaign.layout.model(i, dim).record).n_train_frames for dim in (3, 4)}
        for i in (2, 3)
    ]
    assert all(len(counts) == 1 for counts in n_trained_on)


@pytest.mark.parametrize(("first", "then"), [("staged", "concurrent"), ("concurrent", "staged")])
def test_a_campaign_goes_on_in_the_other_coupling(tmp_path, first, then):
    campaign = concurrent(tmp_path / "run", f"coupling={first}", "stop.max_iterations=1")
    run_campaign(campaign)
    settings = tiny_settings(*SPLIT, f"coupling={then}")
    other = prepare(tmp_path / "other", settings, cores=3)
    summary = run_campaign(make_campaign(campaign.layout, settings, other.machine))
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 0)
    assert check_run(campaign.layout.root)["restarts"] >= 1
    assert not verify_run(campaign.layout).problems


def fail_where(monkeypatch, condition):
    def run(kind, root, order):
        if condition(kind, order):
            raise RuntimeError("broken on purpose")
        run_task(kind, root, order)

    monkeypatch.setattr(inprocess, "run_task", run)


def test_a_simulation_that_fails_twice_is_replaced_at_once(tmp_path, monkeypatch):
    tried = []

    def condition(kind, order):
        is_it = kind == "simulate" and order.parent.name == "0000" and order.name.startswith("segment-0001")
        if is_it:
            tried.append(read_record(SimulateTask, order).seed)
        return is_it

    fail_where(monkeypatch, condition)
    campaign = concurrent(tmp_path / "run", "steering.min_frames=1000", "resource.md_slots=3", cores=4)
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", len(tried))
    assert len(set(tried)) == len(tried) == 2
    (refill,) = [d for d in decisions_of(campaign) if any("failed 2 times" in a.reason for a in d.actions)]
    assert refill.actions[0].kind == "end"
    assert refill.actions[-1].kind in ("start", "restart")
    check_everything(campaign)


def test_when_all_simulations_fail_the_campaign_ends(tmp_path, monkeypatch):
    fail_where(monkeypatch, lambda kind, order: kind == "simulate" and read_record(SimulateTask, order).decision > 0)
    campaign = concurrent(tmp_path / "run", "stop.max_iterations=50", "steering.min_frames=1000")
    summary = run_campaign(campaign)
    assert summary.stop_reason == "failed"
    assert "in a row" in summary.message and "broken on purpose" in summary.message


def test_a_training_that_fails_again_and_again_ends_the_campaign(tmp_path, monkeypatch):
    fail_where(monkeypatch, lambda kind, order: kind == "train")
    campaign = concurrent(tmp_path / "run", "stop.max_iterations=50", "faults.give_up_after=2")
    summary = run_campaign(campaign)
    assert summary.stop_reason == "failed"
    assert "faults.give_up_after" in summary.message


def test_an_analysis_that_fails_is_tried_once_more_then_the_iteration_goes_without(tmp_path, monkeypatch):
    tried = []

    def condition(kind, order):
        if kind == "analyse" and "0002" in order.name:
            tried.append(order)
            return True
        return False

    fail_where(monkeypatch, condition)
    campaign = concurrent(tmp_path / "run", "stop.max_iterations=2")
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks, len(tried)) == ("max_iterations", 2, 2)
    second = decisions_of(campaign)[2]
    assert second.n_outliers is None
    assert {action.kind for action in second.actions} == {"continue"}
    check_everything(campaign)


def test_learning_waits_for_something_new(tmp_path):
    campaign = concurrent(tmp_path / "run", "train.latent_dims=[3]", "train.retrain=always")
    stages = list(campaign.begin())
    while not any(stage.kind == "train" for stage in stages):
        stage = stages.pop(0)
        run_task("simulate", campaign.layout.root, stage.tasks[0].order)
        stages += campaign.follow(stage)
    # Learning alone goes on: training, analysis, decision; the simulations publish nothing meanwhile.
    for kind in ("train", "analyse"):
        (stage,) = [stage for stage in stages if stage.kind == kind]
        stages.remove(stage)
        run_task(kind, campaign.layout.root, stage.tasks[0].order)
        stages += campaign.follow(stage)
    assert decisions_of(campaign)[-1].iteration == 3
    assert {stage.kind for stage in stages} == {"simulate"}
    alive = {s.simulation for s in campaign.results.alive}
    stage = next(s for s in stages if read_record(SimulateTask, s.tasks[0].order).simulation in alive)
    run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    assert "train" in {following.kind for following in campaign.follow(stage)}


def test_no_segment_begins_that_cannot_end_in_the_pilots_time(tmp_path):
    campaign = concurrent(tmp_path / "run")
    stages = campaign.begin()
    campaign.limit_time(Deadline(end_by_unix=time.time() + 60.0, limit="walltime"))
    for name in campaign._since:
        campaign._since[name] -= 3600.0
    campaign._durations["train"] = 3600.0
    for stage in stages:
        run_task("simulate", campaign.layout.root, stage.tasks[0].order)
        assert campaign.follow(stage) == ()
    assert campaign.final_decision.stop_reason == "walltime"
    assert "a segment takes longer" in campaign.final_decision.reason
    assert campaign.summarise().n_frames == 45


def test_what_runs_when_the_time_is_over_ends_in_order(tmp_path):
    campaign = concurrent(tmp_path / "run")
    stages = campaign.begin()
    for stage in stages:
        run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    campaign.limit_time(Deadline(end_by_unix=time.time() - 1.0, limit="budget"))
    assert [campaign.follow(stage) for stage in stages] == [(), (), ()]
    assert (campaign.final_decision.stop_reason, campaign.summarise().n_frames) == ("budget", 45)
    assert campaign.n_failed_tasks == 0


def test_a_smaller_pilot_ends_simulations_a_larger_one_starts_more(tmp_path):
    campaign = concurrent(tmp_path / "run", "steering.min_frames=1000", "stop.max_iterations=1")
    run_campaign(campaign)
    for n_simulate, kinds in ((4, {"start", "restart"}), (1, {"end"})):
        settings = tiny_settings(
            *SPLIT, f"resource.md_slots={n_simulate}", "steering.min_frames=1000",
            f"stop.max_iterations={3 if n_simulate == 4 else 4}",
        )  # fmt: skip
        machine = prepare(tmp_path / f"other-{n_simulate}", settings, cores=n_simulate + 1).machine
        again = make_campaign(campaign.layout, settings, machine)
        stages = again.begin()
        assert sum(stage.kind == "simulate" for stage in stages) == n_simulate == len(again.results.alive)
        assert {action.kind for action in again.decisions[-1].actions} & kinds
        again.end("interrupted", "for the test")
    check_everything(campaign)


def test_a_machine_without_a_slot_for_learning_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="coupling = concurrent: learning needs a slot"):
        prepare(tmp_path / "run", tiny_settings("coupling=concurrent"), cores=1)
