"""Geometry against MDAnalysis, and the properties of packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MDAnalysis.analysis import rms
from MDAnalysis.lib.distances import distance_array
from scipy.spatial.transform import Rotation

from entk_app import geometry
from entk_app.errors import DataError


def random_chain(n_residues: int, seed: int, n_frames: int | None = None) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = (n_residues, 3) if n_frames is None else (n_frames, n_residues, 3)
    return np.cumsum(generator.normal(size=shape) * 2.2, axis=-2)


@pytest.mark.parametrize("n_residues", [4, 21, 28, 35])
def test_rmsd_equals_mdanalysis(n_residues):
    frames, reference = random_chain(n_residues, 1, 20), random_chain(n_residues, 2)
    expected = [rms.rmsd(frame, reference, center=True, superposition=True) for frame in frames]
    np.testing.assert_allclose(geometry.compute_rmsd(frames, reference), expected, atol=1e-6)


def test_rmsd_of_a_moved_copy_is_zero_and_of_a_mirror_image_is_not():
    chain = random_chain(20, 3)
    moved = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).apply(chain) + np.array([5.0, -7.0, 1.0])
    assert geometry.compute_rmsd(moved, chain) == pytest.approx(0.0, abs=1e-6)
    assert geometry.compute_rmsd(chain * [1.0, 1.0, -1.0], chain) > 1.0


def test_rmsd_of_one_displaced_atom():
    # Two atoms 2 apart against two atoms 4 apart: after superposition each is off by 1.
    two, four = np.array([[-1.0, 0, 0], [1.0, 0, 0]]), np.array([[-2.0, 0, 0], [2.0, 0, 0]])
    assert geometry.compute_rmsd(two, four) == pytest.approx(1.0)


def test_rmsd_refuses_another_number_of_atoms():
    with pytest.raises(DataError, match="20 atoms cannot be superposed on 21"):
        geometry.compute_rmsd(random_chain(20, 1), random_chain(21, 1))


def test_contacts_equal_mdanalysis_distances():
    frame = random_chain(30, 4)
    expected = distance_array(frame, frame)[np.triu_indices(30, 1)] < 8.0
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(geometry.compute_contacts(frame, 8.0), expected)


def test_a_pair_at_exactly_the_cutoff_is_not_in_contact():
    pair = np.array([[0.0, 0, 0], [8.0, 0, 0], [0.0, 7.999999, 0]])
    assert geometry.compute_contacts(pair, 8.0).tolist() == [False, True, False]


def test_an_fs_peptide_map_takes_27_bytes():
    assert geometry.count_bytes(21) == 27


@settings(deadline=None, max_examples=60)
@given(n_residues=st.integers(2, 40), n_frames=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_unpacking_gives_back_what_was_packed(n_residues, n_frames, seed):
    contacts = np.random.default_rng(seed).random((n_frames, geometry.count_pairs(n_residues))) < 0.4
    maps = geometry.unpack_contacts(geometry.pack_contacts(contacts), n_residues)
    assert maps.shape == (n_frames, n_residues, n_residues)
    first, second = np.triu_indices(n_residues, 1)
    np.testing.assert_array_equal(maps[:, first, second], contacts)
    np.testing.assert_array_equal(maps, maps.transpose(0, 2, 1))
    assert (np.diagonal(maps, axis1=1, axis2=2) == 1).all()


def test_unpacking_refuses_maps_of_another_size():
    with pytest.raises(DataError, match="27"):
        geometry.unpack_contacts(np.zeros((3, 26), np.uint8), 21)


def test_radius_of_gyration_equals_mdanalysis():
    import MDAnalysis

    chain = random_chain(15, 5)
    universe = MDAnalysis.Universe.empty(15, trajectory=True)
    universe.add_TopologyAttr("masses", np.ones(15))
    universe.atoms.positions = chain
    assert geometry.compute_radius_of_gyration(chain) == pytest.approx(universe.atoms.radius_of_gyration(), abs=1e-4)


def test_native_contacts_equal_mdanalysis_hard_cut():
    from MDAnalysis.analysis.contacts import hard_cut_q

    native, frame = random_chain(25, 6), random_chain(25, 7)
    pairs = geometry.find_native_pairs(native, 8.0)
    distances = geometry.compute_distances(frame)[pairs]
    assert pairs.sum() > 5
    # MDAnalysis counts r <= cutoff; no distance here is exactly the cutoff.
    expected = hard_cut_q(distances, np.full(len(distances), 8.0))
    assert geometry.compute_native_fraction(geometry.compute_contacts(frame), pairs) == pytest.approx(expected)
    assert geometry.compute_native_fraction(geometry.compute_contacts(native), pairs) == 1.0


def test_native_contacts_leave_near_neighbours_out():
    helix_like = np.array([[1.5 * i, 0.0, 0.0] for i in range(8)])
    pairs = geometry.find_native_pairs(helix_like, 8.0)
    first, second = np.triu_indices(8, 1)
    assert (second - first)[pairs].min() == 4


def test_without_native_contacts_the_fraction_is_not_a_number():
    none = np.zeros(3, dtype=bool)
    assert np.isnan(geometry.compute_native_fraction(np.ones((2, 3), bool), none)).all()
