"""The proteins of the paper, all-atom from their sequence: they start extended and run by the program's own path."""

from __future__ import annotations

import MDAnalysis
import numpy as np
import pytest
from conftest import BBA_REFERENCE, prepare, tiny_settings
from MDAnalysis.analysis import rms

from entk_app import geometry
from entk_app.frames import read_columns
from entk_app.inprocess import run_campaign
from entk_app.records import AnalysisRecord, ModelRecord, SegmentRecord, SystemRecord, read_record
from entk_app.systems import CATALOGUE
from entk_app.systems.sequences import parse_sequence
from entk_app.tasks import run_task

#: Fifteen frames of 100 steps.
SHORT = ("simulate.segment_ns=0.003", "simulate.report_interval_ps=0.2", "simulate.time_step_fs=2",
         "simulate.hydrogen_mass_amu=null", "simulate.friction_per_ps=91")  # fmt: skip


def simulate_once(folder, *assignments):
    campaign = prepare(folder / "run", tiny_settings(*SHORT, *assignments, preset="fs-peptide-quick"), cores=1)
    run_task("simulate", campaign.layout.root, campaign.start().tasks[0].order)
    return campaign.layout


@pytest.mark.parametrize(("name", "n_atoms"), [("villin", 582), ("bba", 504)])
def test_a_sequence_alone_starts_extended_and_runs(tmp_path, name, n_atoms):
    sequence = CATALOGUE[name].sequence
    layout = simulate_once(tmp_path, "system.name=mine", f"system.sequence={sequence}")
    record = read_record(SystemRecord, layout.system_record)
    assert (record.sequence, record.n_atoms, record.has_native) == (parse_sequence(sequence).residues, n_atoms, False)
    universe = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory))
    ca = universe.select_atoms("name CA")
    # An extended chain is some 3.4 Å long a residue; 3 ps do not change that much.
    assert np.linalg.norm(ca.positions[-1] - ca.positions[0]) > 3.0 * (len(ca) - 1)
    start, end = (universe.trajectory[frame].positions[ca.indices].astype(float) for frame in (0, -1))
    assert 0.3 < geometry.compute_rmsd(end, start) < 8.0
    segment = read_record(SegmentRecord, layout.segment(0, 0).record)
    assert (segment.n_frames, segment.steps, segment.min_rmsd_angstrom) == (15, 1500, None)


@pytest.mark.skipif(not BBA_REFERENCE.exists(), reason="no PDB 1FME beside the checkout")
def test_bba_by_name_starts_unfolded_and_knows_its_native_structure(tmp_path):
    layout = simulate_once(tmp_path, "system.name=bba", f"system.reference={BBA_REFERENCE}")
    rmsd = read_columns(layout.segment(0, 0).frames)["rmsd_angstrom"]
    # The paper: "completely unfolded"; an extended chain is farther away than its 12 Å on average.
    assert (rmsd > 12.0).all()
    universe = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory))
    native = MDAnalysis.Universe(str(BBA_REFERENCE)).select_atoms("name CA").positions
    ca = universe.select_atoms("name CA")
    theirs = [rms.rmsd(ca.positions, native, center=True, superposition=True) for _ in universe.trajectory]
    np.testing.assert_allclose(rmsd, theirs, atol=2e-3)


def test_a_campaign_of_all_atom_villin_walks_every_stage(tmp_path):
    settings = tiny_settings(
        "system.name=villin", "simulate.segment_ns=0.0012", "simulate.report_interval_ps=0.08",
        "stop.max_iterations=2", "train.latent_dims=[3]", "steering.min_restarts=1", preset="fs-peptide-quick",
    )  # fmt: skip
    campaign = prepare(tmp_path / "run", settings, cores=2)
    summary = run_campaign(campaign)
    assert (summary.stop_reason, summary.n_failed_tasks) == ("max_iterations", 0)
    assert summary.n_iterations == 2
    assert summary.n_frames == 15 * 4
    for iteration, n_frames in ((1, 30), (2, 60)):
        assert read_record(AnalysisRecord, campaign.layout.analysis(iteration)).n_frames == n_frames
        assert read_record(ModelRecord, campaign.layout.model(iteration, 3).record).n_residues == 35
    # Extended still, and measured against the folded structure inside OpenMM.
    assert 20.0 < summary.min_rmsd_angstrom < 45.0
