"""Decisions as tables: history in, decision out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import tiny_settings

from entk_app import steering
from entk_app.records import (
    AnalysisRecord,
    Finding,
    FrameRef,
    ModelRef,
    Outlier,
    SegmentRecord,
)
from entk_app.steering import History, SimulationHistory, Slots

SLOTS = Slots(total=2, simulate=2, learn=2)


def segment(simulation, number, n_frames, rmsd=9.0):
    return SegmentRecord(
        simulation=simulation, segment=number, iteration=1, decision=0, origin=None, seed=1, n_frames=n_frames,
        steps=n_frames * 100, first_step=0, time_ps=n_frames * 50.0, start_time_ps=0.0, min_rmsd_angstrom=rmsd,
        min_rmsd_frame=0, last_rmsd_angstrom=rmsd, platform="CPU", device=None, cores=1, friction_per_ps=91.0,
        temperature_k=300.0, ended_by="length", seconds_setup=0.1, seconds_md=1.0, ns_per_day=1.0, unix_start=0.0,
        unix_end=1.0,
    )  # fmt: skip


def simulation(number, *lengths, rmsd=9.0, **kwargs):
    segments = tuple(segment(number, place, n, rmsd) for place, n in enumerate(lengths))
    return SimulationHistory(number, segments=segments, **kwargs)


def outlier(number, segment_number, frame, rmsd=5.0, distance=1.0, score=None, problems=()):
    return Outlier(
        frame=FrameRef(simulation=number, segment=segment_number, frame=frame),
        rmsd_angstrom=rmsd,
        score=score,
        problems=problems,
        found_by=(Finding(latent_dim=3, eps=0.5, distance=distance),),
    )


def analysis(*outliers):
    return AnalysisRecord(
        iteration=1, best_model=ModelRef(iteration=1, latent_dim=3), models=(), outliers=outliers, n_frames=100,
        min_rmsd_angstrom=5.0, seconds_encode=0.0, seconds_outliers=0.0, unix_start=0.0, unix_end=0.0,
    )  # fmt: skip


def settings(*assignments):
    return tiny_settings("steering.min_frames=100", "steering.window=50", "steering.min_restarts=0", *assignments)


def kinds(decision):
    return {action.simulation: action.kind for action in decision.actions}


@pytest.mark.parametrize(
    ("lengths", "last_outlier", "purged"),
    [
        ((99,), None, False),  # younger than min_frames
        ((100,), None, True),  # never gave an outlier
        ((60, 40), None, True),  # likewise over two segments
        ((100,), 50, False),  # the window holds frames 50 to 99
        ((100,), 49, True),
        ((100,), 99, False),
        ((500,), 449, True),
        ((500,), 450, False),
    ],
)
def test_purge_rule(lengths, last_outlier, purged):
    reason = steering.explain_purge(simulation(0, *lengths), last_outlier, settings())
    assert (reason is not None) == purged


def test_last_outlier_counts_over_segments_of_different_length():
    history = simulation(7, 30, 55, 20)
    found = analysis(outlier(7, 0, 29), outlier(7, 1, 54), outlier(8, 2, 19))
    assert steering.find_last_outlier(history, found) == 84
    assert steering.find_last_outlier(history, analysis(outlier(8, 0, 1))) is None


def test_a_purged_simulation_gives_its_slot_to_the_outlier_of_lowest_rmsd():
    history = History(iteration=1, simulations=(simulation(0, 120), simulation(1, 120)), n_decisions=2)
    found = analysis(outlier(1, 0, 110, rmsd=4.0), outlier(1, 0, 30, rmsd=3.0), outlier(1, 0, 115, rmsd=6.0))
    decision = steering.decide_after_analysis(history, found, settings(), SLOTS)
    assert decision.next == "simulate"
    assert decision.iteration == 2
    assert kinds(decision) == {0: "purge", 1: "continue", 2: "restart"}
    restart = next(action for action in decision.actions if action.kind == "restart")
    assert restart.origin == FrameRef(simulation=1, segment=0, frame=30)
    assert restart.rmsd_angstrom == 3.0
    assert all(action.reason for action in decision.actions)


def test_no_outlier_left_means_going_on():
    history = History(iteration=1, simulations=(simulation(0, 120), simulation(1, 120)))
    decision = steering.decide_after_analysis(history, analysis(), settings(), SLOTS)
    assert kinds(decision) == {0: "continue", 1: "continue"}
    assert "no outlier is left" in decision.actions[0].reason


def test_as_many_are_purged_as_there_are_outliers_to_start_from():
    history = History(iteration=1, simulations=(simulation(0, 120), simulation(1, 300)))
    decision = steering.decide_after_analysis(history, analysis(outlier(0, 0, 5)), settings(), SLOTS)
    # Simulation 1 is 300 frames past any outlier, simulation 0 only 115.
    assert kinds(decision) == {0: "continue", 1: "purge", 2: "restart"}


def test_an_empty_slot_without_an_outlier_starts_from_the_initial_structure():
    history = History(iteration=1, simulations=(simulation(0, 10), simulation(1, 10, failures=2)))
    decision = steering.decide_after_analysis(history, analysis(), settings(), SLOTS)
    assert kinds(decision) == {1: "end", 0: "continue", 2: "start"}


def test_no_frame_twice_and_never_the_first():
    used = frozenset({(0, 0, 7)})
    history = History(iteration=1, simulations=(simulation(0, 120),), used=used)
    found = [outlier(0, 0, 0, 1.0), outlier(0, 0, 7, 2.0), outlier(0, 1, 0, 3.0), outlier(0, 0, 8, 4.0)]
    ranked = steering.rank_restarts(found, history, settings())
    assert [o.frame.key for o in ranked] == [(0, 1, 0), (0, 0, 8)]


def test_ranking_by_novelty_takes_the_most_isolated_first():
    found = [outlier(0, 0, 1, 1.0, 0.6), outlier(0, 0, 2, 9.0, 3.0), outlier(0, 0, 3, 5.0, 2.0)]
    history = History(iteration=1, simulations=(simulation(0, 10),))
    ranked = steering.rank_restarts(found, history, settings("steering.ranking=novelty"))
    assert [o.frame.frame for o in ranked] == [2, 3, 1]


def test_without_a_native_structure_novelty_ranks():
    found = [
        o.model_copy(update={"rmsd_angstrom": None})
        for o in (outlier(0, 0, 1, distance=0.6), outlier(0, 0, 2, distance=3.0))
    ]
    history = History(iteration=1, simulations=(simulation(0, 10),))
    assert [o.frame.frame for o in steering.rank_restarts(found, history, settings())] == [2, 1]


def test_the_mix_takes_two_lowest_one_at_random_and_the_highest():
    found = [outlier(0, 0, place + 1, float(place)) for place in range(12)]
    history = History(iteration=3, simulations=(simulation(0, 20),))
    ranked = steering.rank_restarts(found, history, settings("steering.ranking=mix"))
    values = [o.rmsd_angstrom for o in ranked]
    assert values[:2] == [0.0, 1.0]
    assert values[3] == max(set(range(12)) - {values[2]})
    assert sorted(values) == [float(v) for v in range(12)]
    assert ranked == steering.rank_restarts(found, history, settings("steering.ranking=mix"))
    orders = {
        tuple(
            o.frame.frame for o in steering.rank_restarts(found, history, settings("steering.ranking=mix", f"seed={s}"))
        )
        for s in range(8)
    }
    assert len(orders) > 1


def test_min_restarts_replaces_the_simulation_whose_last_outlier_is_longest_ago():
    history = History(iteration=1, simulations=(simulation(0, 120), simulation(1, 120)))
    found = analysis(outlier(0, 0, 80), outlier(1, 0, 118))
    assert kinds(steering.decide_after_analysis(history, found, settings(), SLOTS)) == {0: "continue", 1: "continue"}
    decision = steering.decide_after_analysis(history, found, settings("steering.min_restarts=1"), SLOTS)
    assert kinds(decision) == {0: "purge", 1: "continue", 2: "restart"}


def test_min_restarts_spares_simulations_younger_than_min_frames():
    history = History(iteration=1, simulations=(simulation(0, 40), simulation(1, 40)))
    decision = steering.decide_after_analysis(
        history, analysis(outlier(0, 0, 30)), settings("steering.min_restarts=1"), SLOTS
    )
    assert kinds(decision) == {0: "continue", 1: "continue"}


def test_all_slots_simulate_until_the_initial_frames_exist_then_fewer_do():
    slots, wanted = Slots(total=4, simulate=3, learn=4), settings("steering.initial_frames=200")
    start = steering.decide_start(wanted, slots)
    assert kinds(start) == {0: "start", 1: "start", 2: "start", 3: "start"}
    few = History(iteration=1, simulations=tuple(simulation(n, 30) for n in range(4)))
    again = steering.decide_after_simulate(few, wanted, slots)
    assert (again.next, set(kinds(again).values())) == ("simulate", {"continue"})
    enough = History(iteration=1, simulations=tuple(simulation(n, 50) for n in range(4)))
    assert steering.decide_after_simulate(enough, wanted, slots).next == "learn"
    found = analysis(outlier(0, 0, 45), outlier(1, 0, 46), outlier(2, 0, 47))
    decision = steering.decide_after_analysis(enough, found, wanted, slots)
    assert kinds(decision) == {0: "continue", 1: "continue", 2: "continue", 3: "end"}


@pytest.mark.parametrize(
    ("assignments", "history", "stop_reason"),
    [
        (["stop.target_rmsd_angstrom=9.0"], {}, "target_rmsd"),
        (["stop.target_rmsd_angstrom=8.99"], {}, None),
        (["steering.score=native_contacts", "stop.target_score=0.8"], {}, None),  # older segments have no score
        (["stop.max_time_us=0.002"], {}, "max_time"),
        (["stop.max_time_us=0.0021"], {}, None),
        ([], {"seconds_left": 10.0, "seconds_needed": 11.0}, "walltime"),
        ([], {"seconds_left": 11.0, "seconds_needed": 10.0}, None),
    ],
)
def test_stop_rules(assignments, history, stop_reason):
    past = History(iteration=1, simulations=(simulation(0, 20), simulation(1, 20)), **history)
    decision = steering.decide_after_simulate(past, settings(*assignments), SLOTS)
    assert decision.stop_reason == stop_reason
    assert (decision.next == "stop") == (stop_reason is not None)


def test_the_budget_ends_a_campaign_under_its_own_name():
    past = History(iteration=1, simulations=(simulation(0, 20),), seconds_left=1.0, seconds_needed=2.0, limit="budget")
    decision = steering.decide_after_simulate(past, settings(), SLOTS)
    assert (decision.stop_reason, "of budget left" in decision.reason) == ("budget", True)
    over = History(iteration=1, simulations=(simulation(0, 20),), seconds_left=-3.0, limit="budget")
    assert steering.find_stop(over, settings()).reason.startswith("the budget is used up")


SPLIT = Slots(total=4, simulate=3, learn=1)


def test_all_slots_simulate_at_first_also_where_some_learn_later():
    assert len(steering.decide_start(settings(), SPLIT).actions) == 4


def test_in_a_split_learning_takes_its_slots_and_simulations_go_on_beside_it():
    past = History(iteration=1, simulations=tuple(simulation(n, 20, rmsd=5.0 + n) for n in range(4)))
    decision = steering.decide_after_simulate(past, settings(), SPLIT)
    assert (decision.next, decision.iteration) == ("simulate+learn", 2)
    # The farthest from the native structure gives way: nothing is known of outliers yet.
    assert kinds(decision) == {0: "continue", 1: "continue", 2: "continue", 3: "end"}


def test_in_a_split_a_failed_simulations_slot_starts_anew():
    past = History(iteration=1, simulations=(simulation(0, 20), simulation(1, 20), simulation(2, failures=2)))
    decision = steering.decide_after_simulate(past, settings(), SPLIT)
    assert kinds(decision) == {0: "continue", 1: "continue", 2: "end", 3: "start"}


def test_in_a_split_the_decision_after_an_analysis_simulates_and_learns():
    past = History(iteration=2, simulations=tuple(simulation(n, 200) for n in range(3)))
    decision = steering.decide_after_analysis(past, analysis(outlier(0, 0, 10)), settings(), SPLIT)
    assert (decision.next, decision.iteration) == ("simulate+learn", 3)
    assert sorted(kinds(decision).values()) == ["continue", "continue", "purge", "restart"]


@pytest.mark.parametrize(("slots", "split"), [(SPLIT, True), (SLOTS, False), (Slots(16, 12, 4), True)])
def test_slots_are_split_where_both_kinds_fit(slots, split):
    assert slots.is_split is split


def test_max_iterations_ends_after_the_last_analysis():
    past = History(iteration=3, simulations=(simulation(0, 20),))
    assert steering.decide_after_simulate(past, settings("stop.max_iterations=3"), SLOTS).next == "learn"
    decision = steering.decide_after_analysis(past, analysis(), settings("stop.max_iterations=3"), SLOTS)
    assert (decision.next, decision.stop_reason, decision.n_outliers) == ("stop", "max_iterations", 0)


def test_a_simulation_that_failed_once_is_tried_again_and_twice_is_ended():
    once = History(iteration=1, simulations=(simulation(0, 20), simulation(1, failures=1)))
    assert steering.decide_after_simulate(once, settings(), SLOTS).actions == ()
    twice = History(iteration=1, simulations=(simulation(0, 20), simulation(1, failures=2)))
    assert kinds(steering.decide_after_simulate(twice, settings(), SLOTS)) == {1: "end"}
    every = History(iteration=1, simulations=(simulation(0, failures=2), simulation(1, failures=2)))
    assert steering.decide_after_simulate(every, settings(), SLOTS).stop_reason == "failed"


def test_a_failed_analysis_lets_simulations_go_on():
    past = History(iteration=1, simulations=(simulation(0, 500), simulation(1, 500)))
    assert kinds(steering.decide_after_analysis(past, None, settings(), SLOTS)) == {0: "continue", 1: "continue"}


def scored(goal, *assignments):
    return settings("steering.score=mine:f", f"steering.score_goal={goal}", *assignments)


@pytest.mark.parametrize(("goal", "frames"), [("minimise", [2, 1, 4, 3]), ("maximise", [4, 3, 1, 2])])
def test_the_best_score_comes_first_whatever_the_rmsd(goal, frames):
    found = [
        outlier(0, 0, 1, 9.0, score=-1.0), outlier(0, 0, 2, 8.0, score=-2.0), outlier(0, 0, 3, 1.0, 1.0, score=3.0),
        # Of equals the most isolated.
        outlier(0, 0, 4, 2.0, 2.0, score=3.0),
    ]  # fmt: skip
    history = History(iteration=1, simulations=(simulation(0, 10),))
    ranked = steering.rank_restarts(found, history, scored(goal, "steering.ranking=score"))
    assert [o.frame.frame for o in ranked] == frames
    by_rmsd = steering.rank_restarts(found, history, scored(goal, "steering.ranking=rmsd"))
    assert [o.frame.frame for o in by_rmsd] == [3, 4, 2, 1]


def test_the_mix_takes_best_and_worst_by_the_score():
    # The RMSD says the contrary.
    found = [outlier(0, 0, place + 1, 20.0 - place, score=float(place)) for place in range(12)]
    history = History(iteration=3, simulations=(simulation(0, 20),))
    lowest = [o.score for o in steering.rank_restarts(found, history, scored("minimise", "steering.ranking=mix"))]
    highest = [o.score for o in steering.rank_restarts(found, history, scored("maximise", "steering.ranking=mix"))]
    assert (lowest[:2], highest[:2]) == ([0.0, 1.0], [11.0, 10.0])
    assert lowest[3] == max(set(range(12)) - {lowest[2]})
    assert highest[3] == min(set(range(12)) - {highest[2]})


def test_the_score_of_a_campaign_without_one_is_the_rmsd():
    found = [outlier(0, 0, 1, 9.0), outlier(0, 0, 2, 8.0), outlier(0, 0, 3, 10.0)]
    history = History(iteration=1, simulations=(simulation(0, 10),))
    ranked = steering.rank_restarts(found, history, settings("steering.ranking=score"))
    assert [o.frame.frame for o in ranked] == [2, 1, 3]


def test_a_score_ranks_without_a_native_structure_and_novelty_where_one_is_missing():
    found = [outlier(0, 0, 1, None, 5.0, score=2.0), outlier(0, 0, 2, None, 3.0, score=1.0)]
    history = History(iteration=1, simulations=(simulation(0, 10),))
    wanted = scored("minimise", "steering.ranking=score")
    assert [o.frame.frame for o in steering.rank_restarts(found, history, wanted)] == [2, 1]
    found.append(outlier(0, 0, 3, None, 9.0))
    assert [o.frame.frame for o in steering.rank_restarts(found, history, wanted)] == [3, 1, 2]


def test_a_restart_tells_its_score():
    history = History(iteration=1, simulations=(simulation(0, 120), simulation(1, 120)), n_decisions=2)
    found = analysis(outlier(1, 0, 110, rmsd=4.0, score=7.25), outlier(1, 0, 30, rmsd=3.0, score=9.5))
    decision = steering.decide_after_analysis(history, found, scored("minimise", "steering.ranking=score"), SLOTS)
    restart = next(action for action in decision.actions if action.kind == "restart")
    assert (restart.score, restart.rmsd_angstrom) == (7.25, 4.0)
    assert "RMSD 4.00 Å, score 7.25" in restart.reason


def test_broken_structures_are_left_out_and_told_of():
    torn = ("1 bond broken, the worst A to B: 9.00 Å, 3.80 Å at rest",)
    found = analysis(
        outlier(1, 0, 30, rmsd=1.0, problems=torn), outlier(1, 0, 110, rmsd=4.0), outlier(1, 0, 31, 2.0, problems=torn)
    )
    history = History(iteration=1, simulations=(simulation(0, 120), simulation(1, 120)))
    assert [o.frame.frame for o in steering.rank_restarts(found.outliers, history, settings())] == [110]
    decision = steering.decide_after_analysis(history, found, settings(), SLOTS)
    assert kinds(decision) == {0: "purge", 1: "continue", 2: "restart"}
    assert decision.reason.endswith(
        f"; 2 outliers left out as broken structures, such as simulation 1 segment 0 frame 30: {torn[0]}"
    )
    # Where nothing else is left, nothing is purged for it.
    only = analysis(outlier(1, 0, 110, problems=torn))
    assert kinds(steering.decide_after_analysis(history, only, settings(), SLOTS)) == {0: "continue", 1: "continue"}
    refill = steering.decide_refill(history, found, settings(), 3, "simulate")
    assert [action.origin.frame for action in refill.actions] == [110]
    assert "2 outliers left out" in refill.reason


def with_scores(*scores):
    """A simulation with a segment for each of these best scores."""
    segments = tuple(
        segment(0, place, 10).model_copy(update={"best_score": score, "best_score_frame": place + 3})
        for place, score in enumerate(scores)
    )
    return History(iteration=1, simulations=(SimulationHistory(0, segments=segments),))


@pytest.mark.parametrize(
    ("goal", "target", "stops"),
    [("minimise", 4.0, True), ("minimise", 3.99, False), ("maximise", 6.0, True), ("maximise", 6.01, False)],
)
def test_a_frame_that_reaches_the_target_score_ends_the_campaign(goal, target, stops):
    wanted = scored(goal, "steering.ranking=score", f"stop.target_score={target}")
    decision = steering.find_stop(with_scores(5.0, 4.0, 6.0), wanted)
    assert (decision is not None) == stops
    if decision is not None:
        frame = "segment 1 frame 4" if goal == "minimise" else "segment 2 frame 5"
        assert decision.stop_reason == "target_score"
        assert decision.reason.startswith(f"simulation 0 {frame} has the f {target:g}, the target is {target:g}")


def test_without_a_target_no_score_ends_a_campaign():
    assert steering.find_stop(with_scores(-1e6), scored("minimise")) is None


def in_region(number, region, rmsd):
    return outlier(0, 0, number, rmsd).model_copy(update={"region": region})


def test_restarts_come_from_different_regions_before_one_gives_another():
    history = History(iteration=3, simulations=(simulation(0, 90),))
    # By RMSD: three beside one another, then one of another region, then one that is in none.
    beside = [in_region(number, 7, 1.0 + 0.1 * number) for number in (1, 2, 3)]
    found = [*beside, in_region(4, 2, 3.0), outlier(0, 0, 5, 4.0)]
    frames = [o.frame.frame for o in steering.rank_restarts(found, history, settings())]
    assert frames == [1, 2, 3, 4, 5]
    apart = settings("steering.one_per_region=true")
    assert [o.frame.frame for o in steering.rank_restarts(found, history, apart)] == [1, 4, 5, 2, 3]
    # A region that has been used is behind those that have not.
    used = replace(history, used=frozenset({(0, 0, 1)}))
    assert [o.frame.frame for o in steering.rank_restarts(found, used, apart)] == [4, 5, 2, 3]


def test_a_control_goes_on_with_all_simulations_whatever_they_find():
    control, slots = settings("steering.method=none", "stop.max_iterations=7"), Slots(3, 3, 3)
    past = History(iteration=2, simulations=tuple(simulation(n, 20_000) for n in range(3)))
    decision = steering.decide_after_simulate(past, control, slots)
    assert (decision.next, decision.iteration, set(kinds(decision).values())) == ("simulate", 3, {"continue"})
    failing = replace(past, simulations=(*past.simulations[:2], simulation(2, 40, failures=2)))
    assert kinds(steering.decide_after_simulate(failing, control, slots)) == {
        0: "continue", 1: "continue", 2: "end", 3: "start"
    }  # fmt: skip
    last = steering.decide_after_simulate(replace(past, iteration=7), control, slots)
    assert (last.next, last.stop_reason) == ("stop", "max_iterations")


def test_restarts_at_random_are_in_an_order_of_the_seed():
    history = History(iteration=3, simulations=(simulation(0, 90),))
    found = [outlier(0, 0, number, float(number)) for number in range(1, 9)]
    orders = {
        seed: [o.frame.frame for o in steering.rank_restarts(found, history, settings("steering.method=random", seed))]
        for seed in ("seed=1", "seed=2", "seed=1")
    }
    assert orders["seed=1"] != orders["seed=2"]
    assert all(sorted(order) == list(range(1, 9)) and order != sorted(order) for order in orders.values())


@pytest.mark.parametrize(("training", "words"), [("because", "models train: because"), (None, "go on serving")])
def test_a_decision_to_learn_says_whether_models_train_and_why(training, words):
    past = History(iteration=2, simulations=tuple(simulation(n, 200) for n in range(3)), training=training)
    for decision in (
        steering.decide_after_simulate(past, settings(), SLOTS),
        steering.decide_after_simulate(past, settings(), SPLIT),
        steering.decide_after_analysis(past, analysis(outlier(0, 0, 10)), settings(), SPLIT),
    ):
        assert (decision.train, words in decision.reason) == (training is not None, True)
    without = steering.decide_after_simulate(past, settings("steering.method=random"), SLOTS)
    assert "models" not in without.reason


def test_the_mix_goes_on_from_one_decision_to_the_next():
    """With one restart a decision the first of four would always be the best, and nothing would be explored."""
    mixed, found = settings("steering.ranking=mix"), [outlier(0, 0, place + 1, float(place)) for place in range(12)]
    firsts = []
    for n_used in range(4):
        used = frozenset((9, 9, n) for n in range(n_used))
        history = History(iteration=3, simulations=(simulation(0, 20),), used=used)
        firsts.append(steering.rank_restarts(found, history, mixed)[0].rmsd_angstrom)
    assert (firsts[0], firsts[1], firsts[3]) == (0.0, 0.0, 11.0)


def test_the_best_frame_of_each_segment_is_chosen_best_first():
    def scored(number, place, rmsd, score):
        return segment(number, place, 10, rmsd).model_copy(
            update={"min_rmsd_frame": 3, "best_score": score, "best_score_frame": 7}
        )

    segments = [scored(0, 0, 5.0, 0.2), scored(0, 1, 3.0, 0.9), scored(1, 0, 4.0, 0.5), segment(2, 0, 5, None)]
    assert steering.select_best_frames(segments, settings()) == ()
    by_rmsd = steering.select_best_frames(segments, settings("analyse.best_frames=2"))
    assert [ref.key for ref in by_rmsd] == [(0, 1, 3), (1, 0, 3)]
    by_score = steering.select_best_frames(
        segments, settings("analyse.best_frames=3", "steering.score=native_contacts")
    )
    assert [ref.key for ref in by_score] == [(0, 1, 7), (1, 0, 7), (0, 0, 7)]
    only = settings("steering.method=rmsd-only", "analyse.max_outliers=9", "steering.score=native_contacts")
    assert [ref.key for ref in steering.select_best_frames(segments, only)] == [(0, 1, 3), (1, 0, 3), (0, 0, 3)]
