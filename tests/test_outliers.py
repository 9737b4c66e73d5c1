"""Outliers equal scikit-learn's DBSCAN noise, at the eps returned, in every ordinary and odd case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from entk_app.errors import DataError
from entk_app.outliers import (
    bound_core_radii,
    compute_largest_radii,
    compute_noise_radii,
    find_outliers,
    select_outliers,
)


def sklearn_noise(points: np.ndarray, eps: float, min_samples: int) -> set[int]:
    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points)
    return set(np.flatnonzero(labels == -1).tolist())


def blobs(seed: int, n_points: int, n_dims: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(3, n_dims)) * 4
    points = centres[generator.integers(3, size=n_points)] + generator.normal(size=(n_points, n_dims)) * 0.5
    points[: n_points // 20] += generator.normal(size=(n_points // 20, n_dims)) * 6
    return points


@pytest.mark.parametrize("n_dims", [3, 4, 5, 6])
@pytest.mark.parametrize("max_outliers", [0, 1, 20, 50, 150])
def test_outliers_equal_sklearn_noise(n_dims, max_outliers):
    points = blobs(n_dims, 1500, n_dims)
    found = find_outliers(points, max_outliers)
    assert set(found.rows.tolist()) == sklearn_noise(points, found.eps, 10)
    assert len(found.rows) == max_outliers  # all radii differ here: the largest set has exactly so many


@pytest.mark.parametrize("quantile", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999, 1.0])
def test_radii_give_sklearn_noise_at_every_eps(quantile):
    points = blobs(11, 800, 4)
    radii = compute_noise_radii(points)
    low, high = np.sort(radii)[[0, -1]]
    eps = float(low * 0.5 + quantile * (high * 1.1 - low * 0.5)) + 1e-7
    assert set(np.flatnonzero(radii > eps).tolist()) == sklearn_noise(points, eps, 10)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    n_points=st.integers(1, 120),
    n_dims=st.integers(1, 4),
    min_samples=st.integers(2, 12),
    max_outliers=st.integers(0, 60),
    coarse=st.booleans(),
)
def test_any_points_equal_sklearn(seed, n_points, n_dims, min_samples, max_outliers, coarse):
    points = np.random.default_rng(seed).normal(size=(n_points, n_dims)) * 2
    if coarse:  # many duplicates and equal distances
        points = np.round(points)
    found = find_outliers(points, max_outliers, min_samples)
    assert len(found.rows) <= max_outliers
    if found.eps is None:
        assert n_points < min_samples
        assert len(found.rows) == 0
    else:
        assert set(found.rows.tolist()) == sklearn_noise(points, found.eps, min_samples)


def test_the_set_is_the_largest_that_is_allowed():
    points = blobs(5, 400, 3)
    radii = compute_noise_radii(points)
    found = select_outliers(radii, 25)
    larger = sorted(radii, reverse=True)[25]
    assert len(sklearn_noise(points, larger * 0.999, 10)) > 25
    assert len(found.rows) == 25


def test_points_of_equal_radius_are_outliers_together_or_not_at_all():
    found = select_outliers(np.array([5.0, 3.0, 3.0, 3.0, 1.0]), 2)
    assert found.rows.tolist() == [0]
    assert 3.0 < found.eps < 5.0


def test_most_isolated_first():
    found = find_outliers(blobs(2, 300, 3), 12)
    assert (np.diff(found.distance) <= 0).all()


def test_all_frames_alike_have_no_outlier():
    found = find_outliers(np.ones((100, 3)), 50)
    assert len(found.rows) == 0
    assert sklearn_noise(np.ones((100, 3)), found.eps, 10) == set()


def test_fewer_frames_than_min_samples_are_all_outliers_as_in_sklearn():
    points = blobs(3, 9, 3)
    found = find_outliers(points, 50, 10)
    assert set(found.rows.tolist()) == set(range(9)) == sklearn_noise(points, found.eps, 10)


def test_no_frame_and_one_frame():
    assert len(find_outliers(np.empty((0, 3)), 50).rows) == 0
    assert find_outliers(np.zeros((1, 3)), 50).rows.tolist() == [0]


def test_the_same_points_give_the_same_outliers():
    points = blobs(9, 500, 5)
    assert find_outliers(points, 30).rows.tolist() == find_outliers(points.copy(), 30, workers=2).rows.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_latent_coordinates_that_are_not_numbers_are_refused(bad):
    points = np.zeros((20, 3))
    points[7, 1] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        find_outliers(points)


@st.composite
def clouds(draw):
    """Blobs, some of them of equal points or on a grid: ties."""
    n_points, n_dims = draw(st.integers(20, 500)), draw(st.integers(1, 6))
    points = blobs(draw(st.integers(0, 10_000)), n_points, n_dims)
    grid = draw(st.sampled_from([None, 0.1, 1.0]))
    points = points if grid is None else np.round(points / grid) * grid
    points[: draw(st.integers(0, n_points))] = points[0]
    return points


@settings(max_examples=60, deadline=None)
@given(clouds(), st.integers(2, 20), st.data())
def test_the_largest_radii_are_those_of_all(points, min_samples, data):
    n_largest = data.draw(st.integers(1, len(points) + 2))
    every = compute_noise_radii(points, min_samples)
    largest = compute_largest_radii(points, n_largest, min_samples)
    known = largest > 0
    np.testing.assert_allclose(largest[known], every[known], rtol=1e-12)
    np.testing.assert_allclose(np.sort(largest)[-n_largest:], np.sort(every)[-n_largest:], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(clouds(), st.integers(2, 20), st.randoms(use_true_random=False))
def test_no_bound_is_below_the_core_radius(points, min_samples, random):
    order = np.arange(len(points))
    random.shuffle(order)
    # Itself among the neighbours, as scikit-learn counts.
    distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    core_radius = np.sort(distance, axis=1)[:, min_samples - 1]
    assert (bound_core_radii(points, order, min_samples) >= core_radius * (1 - 1e-12)).all()
