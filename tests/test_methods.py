"""What restarts come from, if anything: the control and the arms without learning; and models that serve on."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pytest
from check_invariants import check_invariants
from check_run import check_run
from conftest import prepare, tiny_settings

from entk_app.errors import StructureError
from entk_app.inprocess import run_campaign
from entk_app.machine import divide_machine
from entk_app.records import AnalyseTask, AnalysisRecord, Decision, ModelRecord, TrainTask, read_lines, read_record
from entk_app.steering import Slots
from entk_app.verify import verify_run

CONCURRENT = ("coupling=concurrent", "resource.md_slots=2", "resource.ml_slots=1")


def run(root, method, *assignments, cores=3):
    campaign = prepare(root, tiny_settings(f"steering.method={method}", *assignments), cores=cores)
    summary = run_campaign(campaign)
    assert summary.n_failed_tasks == 0
    counts = check_invariants(root)
    assert not verify_run(campaign.layout).problems
    assert check_run(root, every=5)["segments"] == counts["segments"]
    return campaign, counts


def read_decisions(campaign):
    return list(read_lines(Decision, campaign.layout.decisions))


@pytest.fixture(scope="module")
def without_learning(tmp_path_factory):
    """A campaign of each method, with the slots that the coupling gives it."""
    root = tmp_path_factory.mktemp("methods")
    return {method: run(root / method, method, "stop.max_iterations=4") for method in ("none", "random", "rmsd-only")}


def test_without_learning_there_is_no_model_and_the_rest_is_as_ever(without_learning):
    for method, (campaign, counts) in without_learning.items():
        assert list(campaign.layout.models.glob("*")) == []
        summary = campaign.summarise()
        assert (summary.stop_reason, summary.n_iterations) == ("max_iterations", 4)
        assert counts["segments"] == 4 * 3
        assert (counts["restarts"] > 0) == (method != "none")


def test_the_control_is_independent_simulations(without_learning, tiny_campaign):
    campaign, _ = without_learning["none"]
    assert not list(campaign.layout.analyses.glob("*"))
    kinds = [[action.kind for action in decision.actions] for decision in read_decisions(campaign)]
    assert kinds == [["start"] * 3, *[["continue"] * 3] * 3, []]
    # With the same seed they are those that a steered campaign begins with.
    for simulation in range(3):
        rmsd = []
        for layout in (campaign.layout, tiny_campaign.layout):
            with h5py.File(layout.segment(simulation, 0).frames) as file:
                rmsd.append(file["rmsd_angstrom"][:])
        np.testing.assert_array_equal(*rmsd)


def test_the_lowest_frame_of_each_segment_stands_for_an_outlier(without_learning):
    campaign, _ = without_learning["rmsd-only"]
    record = read_record(AnalysisRecord, campaign.layout.analysis(3))
    order = {}
    for folder in campaign.layout.simulations.glob("*/segment-????"):
        if int(folder.parent.name) <= max(o.frame.simulation for o in record.outliers):
            with h5py.File(folder / "frames.h5") as file:
                rmsd = file["rmsd_angstrom"][:]
            order[int(folder.parent.name), int(folder.name[-4:]), int(rmsd.argmin())] = float(rmsd.min())
    found = [(o.frame.key, o.rmsd_angstrom) for o in record.outliers]
    assert found == sorted(found, key=lambda pair: pair[1]) and len(found) == 8  # analyse.max_outliers
    assert all(order[key] == pytest.approx(rmsd) for key, rmsd in found)
    assert len({key[:2] for key, _ in found}) == len(found)
    for decision in read_decisions(campaign):
        values = [a.rmsd_angstrom for a in decision.actions if a.kind == "restart"]
        assert values == sorted(values)


def test_frames_at_random_stand_for_outliers(without_learning):
    campaign, _ = without_learning["random"]
    records = [read_record(AnalysisRecord, campaign.layout.analysis(iteration)) for iteration in (1, 2, 3, 4)]
    assert [len(record.outliers) for record in records] == [8] * 4
    assert len({tuple(o.frame.key for o in record.outliers) for record in records}) == 4
    assert all(record.best_model is None and not record.models for record in records)


@pytest.mark.parametrize("method", ["none", "random", "rmsd-only"])
def test_every_method_has_the_concurrent_coupling_too(tmp_path, method):
    campaign, counts = run(tmp_path / "run", method, *CONCURRENT)
    summary = campaign.summarise()
    assert (summary.stop_reason, summary.n_iterations) == ("max_iterations", 3)
    assert (counts["restarts"] > 0) == (method != "none")
    if method != "none":
        # An analysis waits until each slot has had the time for a segment.
        seen = [read_record(AnalysisRecord, campaign.layout.analysis(i)).n_frames for i in (2, 3, 4)]
        assert np.diff(seen).min() >= 2 * 15


def test_a_control_that_waits_for_nobody_ends_by_its_iterations_also_when_taken_up_again(tmp_path, kill_after):
    """An iteration is a segment of each simulation; the end of a pilot is none."""
    from entk_app.concurrent import make_campaign

    campaign = prepare(tmp_path / "run", tiny_settings("steering.method=none", "coupling=concurrent"), cores=3)
    kill_after(4)
    with pytest.raises(BaseException, match="^$"):
        run_campaign(campaign)
    campaign.end("walltime", "the pilot's time is over")
    kill_after(1000)
    resumed = make_campaign(campaign.layout, campaign.settings, campaign.machine)
    summary = run_campaign(resumed)
    assert (summary.stop_reason, summary.n_iterations) == ("max_iterations", 3)
    assert 3 * 3 <= check_invariants(campaign.layout.root)["segments"] <= 3 * 3 + 3


@pytest.mark.parametrize(
    ("method", "assignments", "slots"),
    [
        ("none", (), Slots(16, 16, 16)),
        ("none", ("resource.md_slots=12", "resource.ml_slots=4"), Slots(12, 12, 12)),
        ("random", (), Slots(16, 16, 16)),
        ("rmsd-only", ("resource.md_slots=12",), Slots(16, 12, 16)),
        ("random", ("coupling=concurrent",), Slots(16, 15, 1)),
        ("random", ("resource.md_slots=8", "resource.sims_per_gpu=2"), Slots(32, 16, 32)),
        ("none", ("resource.md_slots=8", "resource.sims_per_gpu=2"), Slots(16, 16, 16)),
    ],
)
def test_no_slot_is_kept_for_models_that_nobody_trains(method, assignments, slots):
    settings = tiny_settings(f"steering.method={method}", *assignments)
    divided = divide_machine(settings, 96, 16, allow_cpu=True).slots
    assert (divided, divided.is_split) == (slots, settings.coupling == "concurrent")


def test_a_campaign_keeps_its_method(tmp_path):
    from entk_app.errors import SettingsError
    from entk_app.run_folder import change_settings

    campaign = prepare(tmp_path / "run", tiny_settings())
    with pytest.raises(SettingsError, match=r"steering.method = 'none': .* begun with 'cvae'.* one method"):
        change_settings(campaign.layout, tiny_settings("steering.method=none"))


def test_outliers_that_are_set_aside_are_no_starts_any_more(ten_iterations, tmp_path):
    """Also of the newest analysis, which slots that fall free are filled from."""
    import shutil

    from entk_app.concurrent import make_campaign
    from entk_app.layout import RunLayout

    layout = RunLayout(tmp_path / "run")
    shutil.copytree(ten_iterations.layout.root, layout.root)
    campaign = make_campaign(layout, ten_iterations.settings, ten_iterations.machine)
    campaign._reread()
    before = [o.frame for o in campaign.results.newest.outliers]
    lost = before[0].key[:2]
    campaign.results.set_aside(layout.segment(*lost).folder, "damaged")
    left = [o.frame for o in campaign.results.newest.outliers]
    assert left == [frame for frame in before if frame.key[:2] != lost] != before


def test_restarts_by_rmsd_need_a_native_structure(tmp_path):
    with pytest.raises(StructureError, match="'rmsd-only' .* --reference"):
        prepare(
            tmp_path / "run",
            tiny_settings(
                "steering.method=rmsd-only", "system.name=mine", "system.sequence=ACE-AAAAAA-NME",
                "system.model=all-atom", "simulate.time_step_fs=2", "stop.target_rmsd_angstrom=null",
            ),
        )  # fmt: skip


@pytest.fixture(scope="module")
def ten_iterations(tmp_path_factory):
    root = tmp_path_factory.mktemp("ten") / "run"
    return run(root, "cvae", "stop.max_iterations=10", "train.latent_dims=[3]")[0]


def test_the_best_frames_join_the_outliers(tmp_path):
    campaign, counts = run(
        tmp_path / "run", "cvae", "analyse.best_frames=4", "steering.ranking=mix", "train.latent_dims=[3]"
    )
    assert counts["restarts"] >= 1
    for iteration in (1, 2, 3):
        order = read_record(AnalyseTask, campaign.layout.analysis_task(iteration))
        record = read_record(AnalysisRecord, campaign.layout.analysis(iteration))
        lowest = []
        for key in order.segments:
            with h5py.File(campaign.layout.segment(key.simulation, key.segment).frames) as file:
                rmsd = file["rmsd_angstrom"][:]
            lowest.append((float(rmsd.min()), (key.simulation, key.segment, int(rmsd.argmin()))))
        wanted = [frame for _, frame in sorted(lowest)[:4]]
        assert [ref.key for ref in order.best] == wanted
        found = {o.frame.key: o for o in record.outliers}
        assert len(found) == len(record.outliers) and set(wanted) <= set(found)
        # An outlier that is the best of its segment too keeps what was found of it.
        assert sum(bool(o.found_by) for o in record.outliers) == sum(m.n_outliers for m in record.models)
        assert all(o.found_by or o.frame.key in wanted for o in record.outliers)


def test_models_are_retrained_by_the_rule_and_serve_in_between(ten_iterations):
    decisions = read_decisions(ten_iterations)
    trained = [d.iteration for d in decisions if d.next == "learn" and d.train]
    served = [d.iteration for d in decisions if d.next == "learn" and not d.train]
    assert trained[0] == 1 and len(trained) >= 2 and len(served) >= 3
    assert sorted([*trained, *served]) == list(range(1, 11))
    layout = ten_iterations.layout
    assert sorted(int(p.parent.parent.name[-4:]) for p in layout.models.glob("*/*/model.json")) == trained
    for before, iteration in pairwise(trained):
        record = read_record(ModelRecord, layout.model(iteration, 3).record)
        known = read_record(ModelRecord, layout.model(before, 3).record).n_frames
        reason = next(d.reason for d in decisions if d.iteration == iteration and d.next == "learn")
        assert record.n_frames >= 1.5 * known or "worse than held-out" in reason
        assert record.warm_start.iteration == before
        order = read_record(TrainTask, layout.model(iteration, 3).task)
        assert order.previous.iteration == order.newest.iteration == before
        assert record.block_frames == read_record(ModelRecord, layout.model(trained[0], 3).record).block_frames
        outliers = read_record(AnalysisRecord, layout.analysis(iteration - 1)).outliers
        assert order.rare == tuple(o.frame for o in outliers)


def test_every_analysis_uses_the_newest_models_and_tells_how_they_take_new_frames(ten_iterations):
    newest = 0
    for iteration in range(1, 11):
        record = read_record(AnalysisRecord, ten_iterations.layout.analysis(iteration))
        if ten_iterations.layout.model(iteration, 3).record.exists():
            newest = iteration
        assert [found.model.iteration for found in record.models] == [newest]
        new = record.models[0].new_frames
        # Of an iteration that trained, all frames were known.
        assert (new is None) == (newest == iteration)
        if new is not None:
            assert new.n_frames == 45 and new.n_blocks >= 2 and new.reconstruction > 0


def test_a_frozen_campaign_is_resumed_with_the_same_decisions(tmp_path, ten_iterations, kill_after):
    """Cut off while its models serve: what was decided from drift and growth is decided again."""
    from entk_app.concurrent import make_campaign

    served = [d.index for d in read_decisions(ten_iterations) if d.next == "learn" and not d.train]
    settings = tiny_settings("stop.max_iterations=10", "train.latent_dims=[3]")
    campaign = prepare(tmp_path / "run", settings, cores=3)
    # Tasks before the first iteration that does not train: three simulations, a training, an analysis each.
    kill_after(5 * (served[0] // 2) + 3)
    with pytest.raises(BaseException, match="^$"):
        run_campaign(campaign)
    kill_after(10_000)
    resumed = make_campaign(campaign.layout, settings, campaign.machine)
    run_campaign(resumed)
    assert [(d.iteration, d.next, d.train, d.reason) for d in read_decisions(resumed)] == [
        (d.iteration, d.next, d.train, d.reason) for d in read_decisions(ten_iterations)
    ]
