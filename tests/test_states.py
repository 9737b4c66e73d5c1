"""States: planted clusters are found, and what is counted is what was seen first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from entk_app.errors import DataError
from entk_app.states import choose_frames, find_discoveries, fit_states

N_RESIDUES = 12
N_PAIRS = 66


def make_maps(n_each: int, n_kinds: int, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Packed contact maps around ``n_kinds`` random ones, and which each is of."""
    generator = np.random.default_rng(5)
    kinds = generator.random((n_kinds, N_PAIRS)) < 0.4
    truth = generator.permutation(np.repeat(np.arange(n_kinds), n_each))
    bits = kinds[truth] ^ (generator.random((len(truth), N_PAIRS)) < noise)
    return np.packbits(bits, axis=1), truth


def test_planted_states_are_found_again():
    packed, truth = make_maps(n_each=1500, n_kinds=4)
    states = fit_states(packed, N_RESIDUES, 4, seed=1)
    labels = states.assign(packed)
    assert states.n_states == 4 and set(labels) == set(range(4))
    assert adjusted_rand_score(truth, labels) > 0.99
    # A frame's state does not depend on the frames that it is asked for with.
    np.testing.assert_array_equal(states.assign(packed[7:12]), labels[7:12])
    assert states.assign(packed[:0]).shape == (0,)
    np.testing.assert_array_equal(fit_states(packed, N_RESIDUES, 4, seed=1).assign(packed), labels)


def test_components_hold_as_much_of_the_variance_as_exact_ones():
    packed, _ = make_maps(n_each=1500, n_kinds=4)
    exact = PCA(10).fit(np.unpackbits(packed, axis=1, count=N_PAIRS))
    found = fit_states(packed, N_RESIDUES, 4, seed=1)
    # The noise beside the planted directions has no direction of its own: batches choose others in it.
    assert found.explained == pytest.approx(exact.explained_variance_ratio_.sum(), rel=0.01)


def test_there_are_no_more_states_than_distinct_maps():
    packed = np.repeat(make_maps(n_each=1, n_kinds=3, noise=0.0)[0], 20, axis=0)
    states = fit_states(packed, N_RESIDUES, 100, seed=1)
    assert states.n_states == 3 == len(set(states.assign(packed)))


def test_one_map_is_no_choice_of_states():
    with pytest.raises(DataError, match="all 8 frames have one contact map"):
        fit_states(np.zeros((8, 9), np.uint8), N_RESIDUES, 5, seed=1)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(1, 400))
def test_as_many_frames_of_each_run_are_fitted_on(lengths, max_frames):
    chosen = choose_frames(lengths, max_frames)
    assert len({len(rows) for rows in chosen}) == 1
    assert sum(map(len, chosen)) <= max(max_frames, len(lengths))
    for rows, length in zip(chosen, lengths, strict=True):
        assert rows.min() >= 0 and rows.max() < length and len(set(rows)) == len(rows)
        # Evenly: no gap is twice another, but for rounding.
        assert len(rows) < 3 or np.ptp(np.diff(rows)) <= 1


@given(st.lists(st.integers(0, 9), max_size=60))
def test_discoveries_are_where_a_state_is_seen_first(labels):
    seen: set[int] = set()
    expected = []
    for n, label in enumerate(labels, 1):
        if label not in seen:
            seen.add(label)
            expected.append(n)
    assert find_discoveries(np.array(labels, dtype=np.int32)).tolist() == expected
