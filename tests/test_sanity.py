"""Broken structures: known geometries are told apart, and no frame of a healthy trajectory is refused."""

from __future__ import annotations

from dataclasses import replace

import MDAnalysis
import numpy as np
import pytest
from conftest import prepare, tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from MDAnalysis.lib.distances import calc_bonds

from entk_app import sanity
from entk_app.errors import BrokenStructureError
from entk_app.integrity import DamagedError, digest_file
from entk_app.layout import RunLayout
from entk_app.records import (
    AnalysisRecord,
    Finding,
    FrameRef,
    Outlier,
    SegmentRecord,
    SimulateTask,
    read_record,
    write_record,
)
from entk_app.sanity import find_problems
from entk_app.systems import build_system, write_system
from entk_app.systems.anatomy import describe_anatomy
from entk_app.systems.build import load_system
from entk_app.tasks import run_task
from entk_app.tasks.analyse import judge_outliers
from entk_app.trajectory import read_positions

#: Every amino acid once; one of the twenty is glycine.
TWENTY = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def peptide(tmp_path_factory):
    """An extended chain of all amino acids, all atoms: as it was built, and what it has to keep."""
    layout = RunLayout(tmp_path_factory.mktemp("peptide"))
    wanted = tiny_settings("system.name=twenty", "system.model=all-atom", f"system.sequence={TWENTY}")
    layout.settings.write_text("")
    write_system(build_system(wanted, layout.root), layout)
    loaded = load_system(layout)
    return loaded.start, describe_anatomy(loaded), layout


@pytest.fixture(scope="module")
def bead_chain(tiny_campaign):
    loaded = load_system(tiny_campaign.layout)
    return loaded.start, describe_anatomy(loaded)


def place_of(anatomy, label):
    return list(anatomy.labels).index(label)


def test_a_chain_as_it_was_built_is_sound(peptide, bead_chain):
    assert find_problems(*peptide[:2]) == ()
    assert find_problems(*bead_chain) == ()


def test_all_amino_acids_but_glycine_have_a_hand_and_it_is_l(peptide):
    start, anatomy, _ = peptide
    assert len(anatomy.centres) == 19
    hands = sanity.compute_handedness(start, anatomy.centres)
    # CORN: seen from the hydrogen CO, R, N go clockwise; 4 sqrt(3)/9 of three tetrahedral arms of 1.5 Å is 2.6 Å³.
    assert (hands > 2.0).all()
    assert (hands < 3.2).all()
    ca, hydrogen = place_of(anatomy, "ALA 1 CA"), place_of(anatomy, "ALA 1 HA")
    towards = start[ca] - start[hydrogen]
    corn = [start[place_of(anatomy, f"ALA 1 {name}")] - start[ca] for name in ("C", "CB", "N")]
    turn = np.cross(corn[0], corn[1]) + np.cross(corn[1], corn[2]) + np.cross(corn[2], corn[0])
    # Clockwise for who looks from the hydrogen, along `towards`: the turn points the same way.
    assert turn @ towards > 0


def test_the_mirror_image_has_every_centre_inverted_and_nothing_else(peptide):
    start, anatomy, _ = peptide
    assert find_problems(start * [-1, 1, 1], anatomy) == ("19 chiral centres inverted, the first ALA 1 CA",)
    # Turned by half a turn about an axis it is the same molecule.
    assert find_problems(start * [-1, -1, 1], anatomy) == ()


def test_a_single_inverted_centre_is_named(peptide):
    start, anatomy, _ = peptide
    positions = start.copy()
    n, c, ca = (place_of(anatomy, f"SER 16 {name}") for name in ("N", "C", "CA"))
    # Through the plane of its three neighbours: CB stays, CA is reflected at the plane of N, C, CB.
    cb = place_of(anatomy, "SER 16 CB")
    normal = np.cross(start[c] - start[n], start[cb] - start[n])
    normal /= np.linalg.norm(normal)
    positions[ca] -= 2.0 * ((start[ca] - start[n]) @ normal) * normal
    assert any("1 chiral centre inverted, the first SER 16 CA" in text for text in find_problems(positions, anatomy))


@pytest.mark.parametrize(("distance", "clash"), [(0.3, True), (1.99, True), (2.01, False), (3.5, False)])
def test_two_heavy_atoms_nearer_than_the_bound_clash(peptide, distance, clash):
    start, anatomy, _ = peptide
    # One atom of the far end beside one of the near end: no neighbours by bonds, nothing else is near.
    a, b = place_of(anatomy, "ALA 1 CB"), place_of(anatomy, "TYR 20 OH")
    far = replace(anatomy, bonds=np.empty((0, 2), int), bond_lengths=np.empty(0), bulky=np.array([a, b]))
    positions = start.copy()
    positions[b] = positions[a] + [distance, 0, 0]
    found = find_problems(positions, replace(far, centres=anatomy.centres[:0], handedness=anatomy.handedness[:0]))
    expected = (f"1 clash nearer than 2 Å, the worst ALA 1 CB and TYR 20 OH: {distance:.2f} Å",)
    assert found == (expected if clash else ())


def test_two_parts_of_a_chain_that_lie_in_one_another_clash(peptide):
    start, anatomy, _ = peptide
    positions = start.copy()
    last = [place for place, label in enumerate(anatomy.labels) if label.startswith("TYR 20 ")]
    positions[last] += positions[place_of(anatomy, "CYS 2 CA")] - positions[last[1]] + 0.1
    found = "; ".join(find_problems(positions, anatomy))
    assert "clashes nearer than 2 Å" in found
    assert "bond broken" in found  # of TYR 20 to TRP 19


@pytest.mark.parametrize(("factor", "broken"), [(1.35, False), (1.45, True), (0.65, False), (0.55, True), (0.0, True)])
def test_a_bond_far_from_its_length_at_rest_is_broken(bead_chain, factor, broken):
    start, anatomy = bead_chain
    at_rest = anatomy.bond_lengths[-1]
    positions = start.copy()
    step = positions[-1] - positions[-2]
    positions[-1] = positions[-2] + factor * at_rest * step / np.linalg.norm(step)
    found = find_problems(positions, anatomy)
    assert bool(found) == broken
    if broken:
        first, last = (anatomy.labels[place] for place in anatomy.bonds[-1])
        assert found[0].startswith(f"1 bond broken, the worst {first} to {last}: {factor * at_rest:.2f} Å, ")


@pytest.mark.parametrize(("distance", "overlaps"), [(2.4, True), (2.6, False)])
def test_beads_overlap_nearer_than_the_models_repulsion_allows(bead_chain, distance, overlaps):
    start, anatomy = bead_chain
    beads = replace(anatomy, bonds=anatomy.bonds[:-1], bond_lengths=anatomy.bond_lengths[:-1])
    positions = start.copy()
    side = np.cross(positions[1] - positions[0], positions[2] - positions[1])
    positions[-1] = positions[0] - distance * side / np.linalg.norm(side)
    found = find_problems(positions, beads)
    assert bool(found) == overlaps
    assert all("nearer than 2.5 Å" in text for text in found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coordinates_that_are_no_numbers_are_told_alone(peptide, value):
    start, anatomy, _ = peptide
    positions = start.copy()
    positions[7, 1] = value
    assert find_problems(positions, anatomy) == (
        f"1 atom without finite coordinates, the first {anatomy.labels[7]}",
    )


def test_all_atoms_in_one_place_are_broken_in_every_way(peptide):
    start, anatomy, _ = peptide
    problems = find_problems(np.zeros_like(start), anatomy)
    assert len(problems) == 3
    assert problems[0].startswith(f"{len(anatomy.bonds)} bonds broken")
    assert problems[2].startswith("19 chiral centres inverted")


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(*[st.floats(-3.2, 3.2)] * 3), st.tuples(*[st.floats(-1000, 1000)] * 3), st.integers(0, 2**32 - 1)
)
def test_a_molecule_that_is_moved_and_shaken_a_little_stays_sound(peptide, angles, shift, seed):
    start, anatomy, _ = peptide
    x, y, z = angles
    turn = np.eye(3)
    for a, b, angle in ((0, 1, x), (1, 2, y), (0, 2, z)):
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, start.shape)
    assert find_problems((start + noise) @ turn.T + shift, anatomy) == ()


def test_bonds_and_their_lengths_are_the_start_structures(peptide):
    start, anatomy, layout = peptide
    universe = MDAnalysis.Universe(str(layout.topology), guess_bonds=False)
    expected = calc_bonds(*(universe.atoms.positions[anatomy.bonds[:, side]] for side in (0, 1)))
    # As many as a chain has atoms, less one, and one more for each ring: P, H, F, Y, and two of W.
    assert len(anatomy.bonds) == len(universe.atoms) - 1 + 6
    assert np.abs(expected / anatomy.bond_lengths - 1.0).max() < 0.1
    np.testing.assert_allclose(start, universe.atoms.positions, atol=1e-3)


def test_no_outlier_of_a_healthy_calpha_campaign_is_refused(tiny_campaign):
    layout, n_outliers = tiny_campaign.layout, 0
    for iteration in (1, 2, 3):
        analysis = read_record(AnalysisRecord, layout.analysis(iteration))
        assert [outlier.problems for outlier in analysis.outliers] == [()] * len(analysis.outliers)
        n_outliers += len(analysis.outliers)
    assert n_outliers >= 20


def test_no_frame_of_an_all_atom_simulation_is_refused(tmp_path):
    wanted = tiny_settings(
        "simulate.segment_ns=0.008", "simulate.report_interval_ps=0.2", preset="fs-peptide-quick"
    )
    campaign = prepare(tmp_path / "run", wanted, cores=1)
    layout = campaign.layout
    run_task("simulate", layout.root, campaign.start().tasks[0].order)
    anatomy = describe_anatomy(load_system(layout))
    refs = [FrameRef(simulation=0, segment=0, frame=frame) for frame in range(40)]
    assert [find_problems(positions, anatomy) for _, positions in read_positions(layout, refs)] == [()] * 40


@pytest.fixture
def broken(tmp_path):
    """A segment with a whole trajectory whose frame 5 is torn apart."""
    campaign = prepare(tmp_path / "run", tiny_settings(), cores=1)
    layout = campaign.layout
    run_task("simulate", layout.root, campaign.start().tasks[0].order)
    paths = layout.segment(0, 0)
    universe = MDAnalysis.Universe(str(layout.topology), str(paths.trajectory), in_memory=True)
    frames = universe.trajectory.timeseries(order="fac").copy()
    frames[5, 20:] += 30.0
    with MDAnalysis.Writer(str(paths.trajectory), universe.atoms.n_atoms) as writer:
        for positions in frames:
            universe.atoms.positions = positions
            writer.write(universe.atoms)
    record = read_record(SegmentRecord, paths.record)
    files = {**record.files, paths.trajectory.name: digest_file(paths.trajectory)}
    write_record(paths.record, record.model_copy(update={"files": files}))
    return campaign


def test_nothing_is_simulated_from_a_broken_structure(broken):
    layout = broken.layout
    order = layout.segment(1, 0).task
    task = SimulateTask(
        simulation=1, segment=0, iteration=1, decision=0, seed=5, origin=FrameRef(simulation=0, segment=0, frame=5),
        cores=1, gpus=0, previous=None, n_frames=3, minutes=None,
    )  # fmt: skip
    write_record(order, task)
    words = "nothing is simulated from simulation 0 segment 0 frame 5: 1 bond broken"
    with pytest.raises(BrokenStructureError, match=words):
        run_task("simulate", layout.root, order)
    assert not layout.segment(1, 0).folder.exists()


def found(frame):
    return Outlier(
        frame=FrameRef(simulation=0, segment=0, frame=frame),
        rmsd_angstrom=5.0,
        found_by=(Finding(latent_dim=3, eps=0.5, distance=1.0),),
    )


def test_the_analysis_says_which_outliers_are_broken(broken):
    judged = judge_outliers(broken.layout, [found(4), found(5), found(6)])
    assert [outlier.frame.frame for outlier in judged] == [4, 5, 6]
    assert [bool(outlier.problems) for outlier in judged] == [False, True, False]
    assert "1 bond broken" in judged[1].problems[0]
    assert judge_outliers(broken.layout, []) == ()


def test_many_frames_are_read_as_single_ones_are_and_a_damaged_file_is_told(broken):
    layout = broken.layout
    universe = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory))
    refs = [FrameRef(simulation=0, segment=0, frame=frame) for frame in (9, 0, 5)]
    for (ref, positions), expected in zip(read_positions(layout, refs), refs, strict=True):
        assert ref == expected
        np.testing.assert_array_equal(positions, universe.trajectory[ref.frame].positions)
    path = layout.segment(0, 0).trajectory
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="altered"):
        list(read_positions(layout, refs))
