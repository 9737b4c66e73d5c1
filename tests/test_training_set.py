"""Blocks to train on and to hold out: whole, bounded, and held out for good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entk_app.errors import DataError
from entk_app.records import FrameRef, SegmentKey
from entk_app.settings import TrainSettings
from entk_app.training_set import average_blocks, choose_training_set


def settings(**values):
    return TrainSettings(**{"block_frames": 10, **values})


def key(simulation, segment, n_frames):
    return SegmentKey(simulation=simulation, segment=segment, n_frames=n_frames)


def keys(*lengths):
    return [key(number, 0, length) for number, length in enumerate(lengths)]


def choose(segments, *, seed=1, draws=0, block_frames=None, known=(), rare=(), **values):
    return choose_training_set(
        segments, settings(**values), seed, np.random.default_rng(draws), block_frames=block_frames, known=known,
        rare=rare,
    )  # fmt: skip


def name_rows(segments, rows):
    """(simulation, segment, frame) of rows."""
    every = [(k.simulation, k.segment, frame) for k in segments for frame in range(k.n_frames)]
    return {every[row] for row in rows}


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) >= 2), st.integers(0))
def test_blocks_are_whole_and_within_one_segment(lengths, seed):
    segments = keys(*lengths)
    chosen = choose(segments, seed=seed % 2**31)
    assert sorted([*chosen.train, *chosen.held_out]) == list(range(sum(lengths)))
    assert len(chosen.train) and len(chosen.held_out)
    held = name_rows(segments, chosen.held_out)
    blocks = {}
    for simulation, segment, frame in name_rows(segments, range(sum(lengths))):
        block = blocks.setdefault((simulation, segment, frame // chosen.block_frames), set())
        block.add((simulation, segment, frame))
    assert all(block <= held or not block & held for block in blocks.values())
    assert len(set(chosen.held_out_block)) == sum(block <= held for block in blocks.values())


def test_about_as_many_are_held_out_as_asked_for():
    chosen = choose(keys(*[100] * 400), held_out_fraction=0.2)
    # 4000 blocks: 5 standard deviations are 0.03.
    assert len(chosen.held_out) / 40_000 == pytest.approx(0.2, abs=0.03)


@given(st.integers(0, 2**31 - 1), st.lists(st.integers(10, 60), min_size=5, max_size=30))
def test_what_was_trained_on_is_never_held_out_later(seed, lengths):
    """Or a model that goes on from earlier weights would be judged by what it knows."""
    segments = keys(*lengths)
    before = choose(segments[: len(segments) // 2 + 3], seed=seed)
    after = choose(segments, seed=seed, draws=7, block_frames=before.block_frames)
    trained = name_rows(segments, before.train)
    later_out = name_rows(segments, after.held_out)
    n_blocks = len(set(before.held_out_block))
    if n_blocks > 1:  # else it may be a block that had to be, for want of any other
        assert not trained & later_out


def test_another_seed_holds_out_other_blocks():
    segments = keys(*[100] * 20)
    assert set(choose(segments, seed=1).held_out) != set(choose(segments, seed=2).held_out)
    assert set(choose(segments, seed=1).held_out) == set(choose(segments, seed=1, draws=5).held_out)


def test_a_bounded_set_has_new_rare_and_old_frames_in_thirds():
    segments = [*(key(n, 0, 1000) for n in range(40)), *(key(n, 1, 1000) for n in range(40))]
    known = {(n, 0) for n in range(40)}
    rare = [FrameRef(simulation=3, segment=0, frame=10 * n) for n in range(100)]
    chosen = choose(segments, max_frames=3000, known=known, rare=rare)
    rows = name_rows(segments, [*chosen.train, *chosen.held_out])
    assert len(rows) == 3000
    around = [row for row in rows if row[:2] == (3, 0)]
    new = [row for row in rows if row[1] == 1]
    assert (len(around), len(new)) == (1000, 1000)
    assert len({row[0] for row in rows if row[1] == 0}) > 20
    assert choose(segments, max_frames=3000, known=known, rare=rare).train.tolist() == chosen.train.tolist()
    other = choose(segments, max_frames=3000, known=known, rare=rare, draws=1)
    assert other.train.tolist() != chosen.train.tolist()


@given(
    st.lists(st.integers(1, 200), min_size=2, max_size=40),
    st.integers(10, 500),
    st.integers(1, 200),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 199)), max_size=20),
)
def test_a_bounded_set_stays_within_its_bound(lengths, max_frames, block_frames, n_known, rare):
    segments = keys(*lengths)
    refs = [FrameRef(simulation=n, segment=0, frame=frame) for n, frame in rare]
    known = {(n, 0) for n in range(n_known)}
    chosen = choose(segments, max_frames=max_frames, block_frames=block_frames, known=known, rare=refs)
    rows = [*chosen.train, *chosen.held_out]
    # Two blocks there are in any case: one to train on, one to hold out.
    assert len(set(rows)) == len(rows) <= max(max_frames, 2 * chosen.block_frames)
    assert len(chosen.train) and len(chosen.held_out)


def test_without_outliers_or_new_segments_the_bound_is_filled_all_the_same():
    segments = keys(*[500] * 10)
    for known in ({(n, 0) for n in range(10)}, set(), {(0, 0)}):
        chosen = choose(segments, max_frames=1000, known=known)
        assert len(chosen.train) + len(chosen.held_out) == 1000


def test_one_frame_is_too_few():
    with pytest.raises(DataError, match="1 frames are too few"):
        choose(keys(1))


def test_two_frames_are_one_each():
    chosen = choose(keys(2))
    assert (len(chosen.train), len(chosen.held_out)) == (1, 1)


def test_the_standard_error_of_blocks_is_that_of_their_means():
    generator = np.random.default_rng(3)
    block = np.repeat(np.arange(25), 40)
    values = np.repeat(generator.normal(5.0, 2.0, 25), 40) + generator.normal(0.0, 0.1, 1000)
    means = values.reshape(25, 40).mean(axis=1)
    found = average_blocks(values, block)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(means.std(ddof=1) / 5.0)
    # Correlated frames: a hundred times fewer independent ones than their number says.
    assert found.standard_error > 5 * values.std() / np.sqrt(1000)
    assert average_blocks(values[:40], block[:40]).standard_error is None
