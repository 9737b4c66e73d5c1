"""Explicit solvent: how the box is built, that its frames are whole, and that a campaign in it goes as any other."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from types import SimpleNamespace

import MDAnalysis
import numpy as np
import openmm
import pytest
from check_run import check_run
from conftest import prepare, tiny_settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from MDAnalysis.analysis import rms
from MDAnalysis.lib import mdamath
from openmm import app, unit
from written_prmtop import write_amber

from entk_app import geometry, md
from entk_app.cli import main
from entk_app.errors import SettingsError, StructureError
from entk_app.frames import read_columns, read_start_positions
from entk_app.inprocess import run_campaign
from entk_app.layout import RunLayout
from entk_app.preflight import compute_frame_bytes, compute_trajectory_bytes, note_friction
from entk_app.records import FrameRef, SegmentRecord, SimulateTask, SystemRecord, read_record, write_record
from entk_app.report.write import write_report
from entk_app.sanity import find_problems
from entk_app.settings import build_settings
from entk_app.systems import build_system, explicit
from entk_app.systems.anatomy import describe_anatomy
from entk_app.systems.build import load_system
from entk_app.systems.pdb_text import read_pdb_text
from entk_app.systems.sequences import parse_sequence
from entk_app.systems.structures import ALPHA_HELIX, Structure, build_chain
from entk_app.tasks import run_task, simulate
from entk_app.trajectory import compute_box
from entk_app.verify import verify_run

REFERENCE = openmm.Platform.getPlatformByName("Reference")
FIELD = ("amber14-all.xml", "amber14/tip3pfb.xml")
#: A small box, and segments of 12 frames of 20 steps.
SMALL = (
    "system.name=mine", "system.model=all-atom", "system.solvent=explicit", "system.padding_angstrom=4",
    "simulate.cutoff_angstrom=6", "simulate.time_step_fs=2", "simulate.hydrogen_mass_amu=null",
    "simulate.friction_per_ps=1", "simulate.report_interval_ps=0.04", "simulate.segment_ns=0.00048",
    "stop.max_iterations=2", "stop.target_rmsd_angstrom=null", "train.latent_dims=[3]", "steering.min_restarts=1",
    "steering.min_frames=10",
    "steering.window=5",
)  # fmt: skip


def explicit_settings(*assignments):
    return tiny_settings(*SMALL, *assignments, preset="fs-peptide-quick")


def build(tmp_path, *assignments):
    return build_system(explicit_settings(*assignments), cache=tmp_path)


@pytest.fixture(scope="module")
def helix(tmp_path_factory):
    """A dry peptide of eight residues, without hydrogens, as a PDB file."""
    chain = build_chain(parse_sequence("ACE-AAAAAAAA-NME"), ALPHA_HELIX)
    path = tmp_path_factory.mktemp("helix") / "helix.pdb"
    with path.open("w") as stream:
        app.PDBFile.writeFile(chain.topology, chain.positions * unit.angstrom, stream)
    return path


@pytest.fixture(scope="module")
def campaign(helix, tmp_path_factory):
    """A finished campaign of the peptide in water: two simulations, two iterations."""
    settings = explicit_settings(f"system.pdb={helix}", f"system.reference={helix}")
    begun = prepare(tmp_path_factory.mktemp("explicit") / "run", settings, cores=2)
    summary = run_campaign(begun)
    assert (summary.stop_reason, summary.n_failed_tasks, summary.n_frames) == ("max_iterations", 0, 48)
    return begun


@pytest.fixture(scope="module")
def loaded(campaign):
    return load_system(campaign.layout)


def read_universe(layout, simulation=0, segment=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MDAnalysis.Universe(str(layout.topology), str(layout.segment(simulation, segment).trajectory))


def compute_energies(system, positions_angstrom, box=None):
    """Potential energies by the forces' names, kJ/mol."""
    for number, force in enumerate(system.getForces()):
        force.setForceGroup(number)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    if box is not None:
        context.setPeriodicBoxVectors(*(np.asarray(box) * 0.1))
    context.setPositions(np.asarray(positions_angstrom) * 0.1)
    return {
        force.getName(): context.getState(energy=True, groups={number}).getPotentialEnergy()._value
        for number, force in enumerate(system.getForces())
        if not isinstance(force, (openmm.CMMotionRemover, openmm.MonteCarloBarostat))
    }


# What is built.


def test_a_dry_protein_is_put_into_water(campaign, loaded):
    record = loaded.record
    assert (record.solvent, record.is_periodic, record.sequence, record.n_residues) == ("explicit", True, "A" * 8, 8)
    universe = MDAnalysis.Universe(str(campaign.layout.topology))
    waters = universe.select_atoms("resname HOH and name O")
    assert len(waters) > 300
    # ACE, eight Ala and NME; all of it before the water.
    assert record.chains == ((0, 6 + 8 * 10 + 6),)
    assert universe.atoms[: record.chains[0][1]] == universe.select_atoms("protein or resname ACE NME")
    # 55.5 mol/l of water, 0.15 of salt.
    ions = universe.select_atoms("resname NA CL")
    assert len(ions) == 2 * round(0.15 / 55.4 * len(waters))
    assert np.diag(loaded_box(loaded)).min() > 2 * (4 + 6)


def loaded_box(loaded):
    vectors = loaded.system.getDefaultPeriodicBoxVectors()
    return np.array([vector.value_in_unit(unit.angstrom) for vector in vectors])


def test_the_forces_are_those_of_the_force_field_with_pme(loaded):
    direct = app.ForceField(*FIELD).createSystem(
        loaded.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.6, constraints=app.HBonds, rigidWater=True
    )
    ours, theirs = (compute_energies(s, loaded.start, loaded_box(loaded)) for s in (loaded.system, direct))
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert set(ours) == {"HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce"}
    nonbonded = next(force for force in loaded.system.getForces() if isinstance(force, openmm.NonbondedForce))
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.PME
    assert nonbonded.getCutoffDistance().value_in_unit(unit.angstrom) == pytest.approx(6.0)


def test_water_is_rigid_and_bonds_to_hydrogen_are_constrained(loaded):
    waters = [residue for residue in loaded.topology.residues() if residue.name == "HOH"]
    hydrogens = sum(a.element.symbol == "H" for a in loaded.topology.atoms() if a.residue.name != "HOH")
    assert loaded.system.getNumConstraints() == 3 * len(waters) + hydrogens


def test_the_barostat_has_the_pressure_the_temperature_and_seeds_of_its_own(loaded):
    (barostat,) = (force for force in loaded.system.getForces() if isinstance(force, openmm.MonteCarloBarostat))
    assert barostat.getDefaultPressure() == 1.0 * unit.bar
    assert barostat.getDefaultTemperature() == 300.0 * unit.kelvin
    seeds = []
    for seed in (5, 6, 5):
        md.create_context(loaded.topology, loaded.system, explicit_settings().simulate, seed, 1)
        seeds.append(barostat.getRandomNumberSeed())
    assert seeds[0] == seeds[2] != seeds[1]
    assert 0 not in seeds


def test_the_same_seed_gives_the_same_box_and_leaves_python_s_generator_alone(helix, tmp_path):
    assignments = (f"system.pdb={helix}", "system.ionic_strength_molar=0.5")
    before = random.getstate()
    one, same = (build(tmp_path, *assignments) for _ in range(2))
    other = build(tmp_path, *assignments, "seed=2")
    assert random.getstate() == before
    np.testing.assert_array_equal(one.start.positions, same.start.positions)
    ions = [[a.index for a in b.start.topology.atoms() if a.residue.name in ("NA", "CL")] for b in (one, other)]
    positions = [built.start.positions[index] for built, index in zip((one, other), ions, strict=True)]
    assert np.abs(positions[0] - positions[1]).max() > 1.0


def test_salt_makes_a_charged_protein_neutral(tmp_path):
    built = build(tmp_path, "system.sequence=ACE-ARRA-NME", "system.ionic_strength_molar=0")
    names = [residue.name for residue in built.start.topology.residues()]
    assert (names.count("CL"), names.count("NA")) == (2, 0)


# What it is as a trajectory.


def test_frames_hold_all_atoms_and_the_box_which_the_barostat_changes(campaign, loaded):
    universe = read_universe(campaign.layout)
    assert len(universe.atoms) == loaded.record.n_atoms
    boxes = np.array([ts.dimensions for ts in universe.trajectory])
    assert len(np.unique(boxes[:, 0])) > 3
    np.testing.assert_array_equal(boxes[:, 3:], 90.0)
    state = openmm.XmlSerializer.deserialize(campaign.layout.segment(0, 0).state.read_text())
    last = [vector.value_in_unit(unit.angstrom) for vector in state.getPeriodicBoxVectors()]
    np.testing.assert_allclose(boxes[-1, :3], np.diag(last), rtol=1e-6)
    mass = sum(loaded.system.getParticleMass(n)._value for n in range(loaded.record.n_atoms))
    density = mass * 1.66053907 / np.prod(boxes[-1, :3])
    assert 0.85 < density < 1.15


def test_at_constant_volume_the_box_stays(helix, tmp_path):
    settings = explicit_settings(f"system.pdb={helix}", "simulate.pressure_bar=null")
    begun = prepare(tmp_path / "run", settings, cores=1)
    run_task("simulate", begun.layout.root, begun.start().tasks[0].order)
    boxes = np.array([ts.dimensions for ts in read_universe(begun.layout).trajectory])
    assert len(np.unique(boxes, axis=0)) == 1


def test_molecules_are_whole_in_every_frame(campaign):
    universe = read_universe(campaign.layout)
    bonds = np.array([(one.index, other.index) for one, other in load_system(campaign.layout).topology.bonds()])
    for step in universe.trajectory:
        assert np.linalg.norm(step.positions[bonds[:, 0]] - step.positions[bonds[:, 1]], axis=1).max() < 2.0


def test_rmsd_equals_mdanalysis_after_unwrapping(campaign, helix):
    universe = read_universe(campaign.layout, 1)
    universe.add_bonds([(a.index, b.index) for a, b in load_system(campaign.layout).topology.bonds()])
    protein = universe.select_atoms("protein")
    native = MDAnalysis.Universe(str(helix)).select_atoms("name CA").positions
    columns = read_columns(campaign.layout.segment(1, 0).frames)
    for frame, step in enumerate(universe.trajectory):
        # Put the box's edge through the protein and wrap atom by atom: what MDAnalysis then unwraps is as ours.
        universe.atoms.positions = step.positions - protein.center_of_geometry()
        universe.atoms.wrap(compound="atoms")
        assert np.ptp(protein.positions, axis=0).max() > 0.7 * step.dimensions[0]
        protein.unwrap()
        ca = protein.select_atoms("name CA")
        found = rms.rmsd(ca.positions, native, center=True, superposition=True)
        assert columns["rmsd_angstrom"][frame] == pytest.approx(found, abs=1e-3)
        assert columns["radius_of_gyration_angstrom"][frame] == pytest.approx(
            np.sqrt(((ca.positions - ca.positions.mean(axis=0)) ** 2).sum(axis=1).mean()), abs=1e-3
        )


def test_the_reporter_makes_whole_what_the_box_has_cut(campaign, loaded):
    added = []
    writer = SimpleNamespace(add=lambda *frame: added.append(frame))
    reporter = md.FrameReporter(writer, loaded.record.ca_indices, 20, chains=loaded.record.chains)
    box, ca = loaded_box(loaded), list(loaded.record.ca_indices)
    centred = loaded.start - loaded.start[ca].mean(axis=0)
    wrapped = centred % np.diag(box)
    for positions in (centred, wrapped):
        state = SimpleNamespace(
            getKineticEnergy=lambda: 0.0 * unit.kilojoules_per_mole, getTime=lambda: 1.0 * unit.picosecond,
            getPositions=lambda asNumpy, positions=positions: positions * 0.1 * unit.nanometer,
            getPeriodicBoxVectors=lambda asNumpy: box * 0.1 * unit.nanometer,
        )  # fmt: skip
        reporter.report(SimpleNamespace(currentStep=20), state)
    assert np.ptp(wrapped[ca], axis=0).max() > 15.0
    distances = [geometry.compute_distances(frame[2]) for frame in added]
    np.testing.assert_allclose(distances[1], distances[0], atol=1e-4)


def test_a_segment_goes_on_in_the_box_and_at_the_state_of_the_one_before(campaign, loaded):
    layout = campaign.layout
    before = read_record(SegmentRecord, layout.segment(0, 0).record)
    after = read_record(SegmentRecord, layout.segment(0, 1).record)
    assert after.first_step == before.steps == 240
    left = openmm.XmlSerializer.deserialize(layout.segment(0, 0).state.read_text())
    np.testing.assert_array_equal(
        read_start_positions(layout.segment(0, 1).frames),
        left.getPositions(asNumpy=True).value_in_unit(unit.angstrom),
    )
    simulation, _ = md.create_context(loaded.topology, loaded.system, campaign.settings.simulate, 1, 1)
    text = layout.segment(0, 0).state.read_text()
    md.begin(simulation, md.Start(state_xml=text), campaign.settings.simulate, 1)
    now = simulation.context.getState(positions=True, velocities=True)
    for values in ("getPositions", "getVelocities", "getPeriodicBoxVectors"):
        one, other = (np.asarray(getattr(state, values)(asNumpy=True)._value) for state in (now, left))
        np.testing.assert_array_equal(one, other)


def test_a_restart_has_the_positions_and_the_box_of_its_frame(campaign, loaded):
    layout, ref = campaign.layout, FrameRef(simulation=0, segment=0, frame=7)
    task = SimulateTask(
        simulation=9, segment=0, iteration=2, decision=0, seed=5, origin=ref, previous=None, n_frames=2, minutes=None,
        cores=1, gpus=0,
    )  # fmt: skip
    write_record(layout.segment(9, 0).task, task)
    start = simulate.find_start(layout, task, loaded)
    step = read_universe(layout).trajectory[7]
    np.testing.assert_array_equal(start.positions, step.positions)
    np.testing.assert_allclose(start.box, mdamath.triclinic_vectors(step.dimensions), rtol=1e-6)
    run_task("simulate", layout.root, layout.segment(9, 0).task)
    np.testing.assert_allclose(read_start_positions(layout.segment(9, 0).frames), step.positions, atol=1e-4)
    written = MDAnalysis.Universe(str(layout.start_structure(9)))
    np.testing.assert_allclose(written.atoms.positions, step.positions, atol=1.1e-3)
    np.testing.assert_allclose(written.dimensions, step.dimensions, atol=1.1e-3)
    # The box it starts in is not the system's own.
    assert abs(step.dimensions[0] - loaded_box(loaded)[0, 0]) > 5e-3
    simulation, _ = md.create_context(loaded.topology, loaded.system, campaign.settings.simulate, 1, 1)
    md.begin(simulation, start, campaign.settings.simulate, 1)
    np.testing.assert_allclose(md.get_box(simulation), start.box, rtol=1e-12)
    # The campaign is left as its own tasks made it.
    shutil.rmtree(layout.segment(9, 0).folder.parent)


def test_frames_in_water_are_sound_and_only_the_protein_has_to_keep_a_distance(campaign, loaded):
    anatomy, step = describe_anatomy(loaded), read_universe(campaign.layout).trajectory[5]
    assert find_problems(step.positions.astype(float), anatomy) == ()
    assert anatomy.bulky.max() < loaded.record.chains[0][1]
    # A water on an ion, as near as it is to magnesium.
    names = [residue.name for residue in loaded.topology.residues()]
    atoms = [next(residue.atoms()).index for residue in loaded.topology.residues()]
    near = step.positions.astype(float)
    ion, water = atoms[names.index("NA")], atoms[names.index("HOH")]
    near[water : water + 3] += near[ion] + [1.9, 0.0, 0.0] - near[water]
    assert find_problems(near, anatomy) == ()


# A campaign.


def test_a_campaign_in_water_passes_the_independent_check(campaign):
    counts = check_run(campaign.layout.root, every=3)
    assert counts["segments"] == 4
    assert verify_run(campaign.layout).problems == []


def test_its_files_have_the_sizes_computed(campaign):
    record = read_record(SystemRecord, campaign.layout.system_record)
    size = campaign.layout.segment(0, 0).trajectory.stat().st_size
    assert size == compute_trajectory_bytes(record.n_atoms, 12, is_periodic=True)
    implicit = record.model_copy(update={"solvent": "implicit"})
    assert compute_frame_bytes(record) == compute_frame_bytes(implicit) + 56


def test_exported_structures_are_the_protein_unless_its_solvent_is_asked_for(campaign, tmp_path, capsys):
    record, root = read_record(SystemRecord, campaign.layout.system_record), str(campaign.layout.root)
    n_protein = record.chains[0][1]
    assert main(["export", root, "-o", str(tmp_path / "best.pdb"), "--best", "3"]) == 0
    best = MDAnalysis.Universe(str(tmp_path / "best.pdb"))
    assert (len(best.atoms), len(best.trajectory)) == (n_protein, 3)
    native = MDAnalysis.Universe(str(campaign.layout.native)).select_atoms("name CA").positions
    listed = [float(line.split(",")[5]) for line in (tmp_path / "best.csv").read_text().splitlines()[1:]]
    for step, expected in zip(best.trajectory, listed, strict=True):
        ca = step.positions[best.select_atoms("name CA").indices]
        assert rms.rmsd(ca, native) == pytest.approx(expected, abs=2e-3)
    every = ["export", root, "-o", str(tmp_path / "all.xtc"), "--as-simulated", "--solvent", "--simulation", "0"]
    assert main(every) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = MDAnalysis.Universe(str(tmp_path / "all.topology.pdb"), str(tmp_path / "all.xtc"))
    ours = read_universe(campaign.layout)
    assert len(written.atoms) == record.n_atoms
    for frame in (0, 11):
        np.testing.assert_allclose(written.trajectory[frame].dimensions, ours.trajectory[frame].dimensions, atol=0.02)
        np.testing.assert_allclose(written.trajectory[frame].positions, ours.trajectory[frame].positions, atol=0.02)
    assert main(["export", root, "-o", str(tmp_path / "dry.xtc")]) == 0
    assert len(MDAnalysis.Universe(str(tmp_path / "dry.topology.pdb"), str(tmp_path / "dry.xtc")).atoms) == n_protein
    capsys.readouterr()


def test_its_report_shows_the_protein(campaign):
    files = write_report(campaign.layout)
    record = read_record(SystemRecord, campaign.layout.system_record)
    structure = MDAnalysis.Universe(str(campaign.layout.report / "figures" / "structure-lowest.pdb"))
    assert len(structure.atoms) == record.chains[0][1]
    assert "all-atom in explicit solvent" in files.page.read_text()


def test_check_says_what_it_is_and_that_friction_is_not_waters(helix, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("entk_app.check._measure", lambda *args: (None, None, None))
    values = [f"--set={text}" for text in (*SMALL, f"system.pdb={helix}", "simulate.friction_per_ps=91")]
    assert main(["check", "--preset", "fs-peptide-quick", "--run-dir", str(tmp_path / "run"), *values]) == 0
    told = capsys.readouterr().out
    assert "mine, all-atom in explicit solvent, 8 residues" in told
    assert "simulate.friction_per_ps = 91 stands for water" in told
    assert note_friction(explicit_settings()) == []


# Structures that bring their water.


@pytest.fixture(scope="module")
def solvated(campaign, tmp_path_factory):
    """The last frame of a simulation as a PDB file of its own, its atoms wrapped into the box one by one."""
    universe = read_universe(campaign.layout)
    universe.trajectory[-1]
    protein = universe.atoms[: load_system(campaign.layout).record.chains[0][1]]
    universe.atoms.positions = universe.atoms.positions - protein.center_of_geometry()
    universe.atoms.wrap(compound="atoms")
    path = tmp_path_factory.mktemp("solvated") / "solvated.pdb"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe.atoms.write(str(path))
    return path


def test_a_solvated_structure_is_taken_as_it_is_and_made_whole(solvated, campaign, tmp_path):
    built = build(tmp_path, f"system.pdb={solvated}")
    record = read_record(SystemRecord, campaign.layout.system_record)
    assert (built.record.n_atoms, built.record.chains) == (record.n_atoms, record.chains)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torn = MDAnalysis.Universe(str(solvated))
    bonds = np.array([(one.index, other.index) for one, other in built.start.topology.bonds()])
    both = (torn.atoms.positions, built.start.positions)
    lengths = [np.linalg.norm(p[bonds[:, 0]] - p[bonds[:, 1]], axis=1).max() for p in both]
    assert lengths[0] > 10.0
    assert lengths[1] < 2.0
    # Each atom is where it was, or in another image of the box.
    np.testing.assert_allclose(np.diag(built.start.box()), torn.dimensions[:3], atol=1e-3)
    moved = (built.start.positions - torn.atoms.positions) / np.diag(built.start.box())
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-3)
    # The energies are those of the frame; torn, what is bonded would be taken for what is not.
    step = read_universe(campaign.layout).trajectory[-1]
    frame = compute_energies(load_system(campaign.layout).system, step.positions, np.diag(step.dimensions[:3]))
    whole, broken = (compute_energies(built.system, positions) for positions in (built.start.positions, both[0]))
    assert whole == pytest.approx(frame, rel=5e-3, abs=2.0)
    assert abs(broken["NonbondedForce"] - whole["NonbondedForce"]) > 1000.0


def test_a_solvated_structure_runs(solvated, tmp_path):
    begun = prepare(tmp_path / "run", explicit_settings(f"system.pdb={solvated}"), cores=1)
    run_task("simulate", begun.layout.root, begun.start().tasks[0].order)
    record = read_record(SegmentRecord, begun.layout.segment(0, 0).record)
    assert (record.n_frames, record.min_rmsd_angstrom) == (12, None)


@pytest.fixture(scope="module")
def whole(solvated, tmp_path_factory):
    """The same as a PDB file in which molecules are whole."""
    folder = tmp_path_factory.mktemp("whole")
    built = build(folder, f"system.pdb={solvated}")
    with (folder / "whole.pdb").open("w") as stream:
        app.PDBFile.writeFile(built.start.topology, built.start.positions * unit.angstrom, stream)
    return folder / "whole.pdb"


def change(path, folder, edit):
    changed = folder / "changed.pdb"
    lines = [edit(line) for line in path.read_text().splitlines()]
    changed.write_text("\n".join(line for line in lines if line is not None) + "\n")
    return changed


def test_in_implicit_solvent_the_same_file_is_dry(whole, tmp_path):
    built = build(tmp_path, f"system.pdb={whole}", "system.solvent=implicit")
    assert (built.record.n_atoms, built.record.chains, built.start.box()) == (92, (), None)
    assert not built.system.usesPeriodicBoundaryConditions()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda line: None if line.startswith("CRYST1") else line, "has water but no periodic box"),
        # A crystal's cell with few of its waters.
        (lambda line: None if line[17:20] == "HOH" and line[22:26].strip()[-1:] != "0" else line, "which is no liquid"),
        (lambda line: line.replace(line[6:33], "   12.000   12.000   12.000") if line.startswith("CRYST1") else line,
         "box is 12.0 Å wide, too little for simulate.cutoff_angstrom = 6"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be_simulated(whole, tmp_path, edit, words):
    with pytest.raises(StructureError, match=words):
        build(tmp_path, f"system.pdb={change(whole, tmp_path, edit)}")


def test_an_unknown_molecule_is_refused_by_name(whole, tmp_path):
    water = next(line for line in whole.read_text().splitlines() if line[17:20] == "HOH")[17:27]
    path = change(whole, tmp_path, lambda line: line.replace(water, water.replace("HOH", "LIG")))
    with pytest.raises(StructureError, match="residue LIG"):
        build(tmp_path, f"system.pdb={path}")


def test_waters_whose_numbers_start_anew_are_no_doubled_atoms(tmp_path):
    water = "HETATM{:5d}  O   HOH W{:4d}    {:8.3f}   0.000   0.000  1.00  0.00           O"
    path = tmp_path / "many.pdb"
    path.write_text("\n".join(water.format(n, n % 10000, 0.3 * n) for n in range(3000, 13000, 1000)) + "\n")
    text = path.read_text()
    path.write_text(text + text.replace("   0.000   0.000  1.00", "   9.000   0.000  1.00"))
    assert read_pdb_text(path, "system.pdb", keep_solvent=True).count("HOH") == 20
    with pytest.raises(StructureError, match="holds no protein"):
        read_pdb_text(path, "system.pdb")


# Topologies of AMBER.

#: A line of six numbers of a file of coordinates.
ROW = "  30.0000000" * 6 + "\n"


@pytest.fixture(scope="module")
def amber(campaign, loaded, tmp_path_factory):
    return write_amber(tmp_path_factory.mktemp("amber"), loaded.topology, loaded.start, app.ForceField(*FIELD))


def test_a_topology_of_amber_has_the_energies_it_was_written_from(amber, loaded, tmp_path):
    prmtop, inpcrd = amber
    built = build(tmp_path, f"system.prmtop={prmtop}", f"system.inpcrd={inpcrd}")
    record = loaded.record
    assert (built.record.n_atoms, built.record.sequence) == (record.n_atoms, record.sequence)
    assert (built.record.chains, built.record.ca_indices) == (record.chains, record.ca_indices)
    assert built.system.getNumConstraints() == loaded.system.getNumConstraints()
    box = loaded_box(loaded)
    ours, theirs = (compute_energies(s, loaded.start, box) for s in (built.system, loaded.system))
    assert ours == pytest.approx(theirs, rel=2e-5)
    assert any(isinstance(force, openmm.MonteCarloBarostat) for force in built.system.getForces())
    np.testing.assert_allclose(built.start.positions, loaded.start, atol=1e-6)


def test_a_topology_of_amber_runs(amber, helix, tmp_path):
    prmtop, inpcrd = amber
    settings = explicit_settings(f"system.prmtop={prmtop}", f"system.inpcrd={inpcrd}", f"system.reference={helix}")
    begun = prepare(tmp_path / "run", settings, cores=1)
    run_task("simulate", begun.layout.root, begun.start().tasks[0].order)
    assert read_record(SegmentRecord, begun.layout.segment(0, 0).record).min_rmsd_angstrom < 3.0
    assert json.loads(begun.layout.system_record.read_text())["force_field"] == "topology of AMBER (system.prmtop)"


def test_chains_of_a_topology_of_amber_are_told_apart_by_their_bonds():
    # As OpenMM reads it: two chains of two residues, a water and two ions, all in one.
    topology = app.Topology()
    one = topology.addChain()
    residues = [topology.addResidue(name, one) for name in ("ALA", "ALA", "GLY", "ALA", "HOH", "NA", "CL")]
    atoms = [topology.addAtom("CA", app.element.carbon, residue) for residue in residues]
    for first, second in ((0, 1), (2, 3)):
        topology.addBond(atoms[first], atoms[second])
    split = explicit.split_chains(topology)
    found = [[residue.name for residue in chain.residues()] for chain in split.chains()]
    assert found == [["ALA", "ALA"], ["GLY", "ALA"], ["HOH", "NA", "CL"]]
    assert [(a.index, b.index) for a, b in split.bonds()] == [(0, 1), (2, 3)]
    structure = Structure(split, np.zeros((7, 3)), "")
    assert explicit.find_chains(structure) == ((0, 2), (2, 4))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda prmtop, inpcrd: prmtop.write_text("no topology\n"), "system.prmtop: .* not a file of AMBER"),
        (lambda prmtop, inpcrd: prmtop.unlink(), "system.prmtop: there is no file"),
        (lambda prmtop, inpcrd: inpcrd.write_text("x\n"), "system.inpcrd: .* not a file of AMBER"),
        (lambda prmtop, inpcrd: inpcrd.write_text("\n".join(inpcrd.read_text().splitlines()[:-1]) + "\n"),
         "has no periodic box"),
        (lambda prmtop, inpcrd: inpcrd.write_text("three\n    3\n" + ROW + ROW[:36] + "\n" + ROW),
         "has 3 atoms, .* are not of the same system"),
    ],
)  # fmt: skip
def test_files_of_amber_that_are_refused(amber, tmp_path, damage, words):
    copies = [tmp_path / path.name for path in amber]
    for path, copy in zip(amber, copies, strict=True):
        copy.write_text(path.read_text())
    damage(*copies)
    with pytest.raises(StructureError, match=words):
        build(tmp_path, f"system.prmtop={copies[0]}", f"system.inpcrd={copies[1]}")


# Settings.


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ({"solvent": "explicit", "model": "calpha"}, "set system.model = 'all-atom'"),
        ({"solvent": "explicit", "model": "all-atom", "prmtop": "a.prmtop"}, "give system.inpcrd too"),
        ({"solvent": "explicit", "model": "all-atom", "inpcrd": "a.inpcrd"}, "give system.prmtop too"),
        ({"model": "all-atom", "prmtop": "a.prmtop", "inpcrd": "a.inpcrd"}, "set system.solvent = 'explicit' too"),
        ({"solvent": "explicit", "model": "all-atom", "prmtop": "a", "inpcrd": "b", "pdb": "c"}, "leave system.pdb"),
        ({"solvent": "vacuum"}, "implicit"),
    ],
)
def test_settings_that_do_not_go_together(system, words):
    with pytest.raises(SettingsError, match=words):
        build_settings({"simulate": {"segment_ns": 1}, "system": {"name": "mine", **system}})


def test_a_box_beyond_reason_is_refused_before_it_is_filled(tmp_path):
    with pytest.raises(StructureError, match="the limit is 500,000"):
        build(tmp_path, f"system.sequence={'A' * 120}")


# Geometry of a periodic box.

BOXES = (
    np.diag([30.0, 34.0, 28.0]),
    # A truncated octahedron and a rhombic dodecahedron in their reduced forms.
    30.0 * np.array([[1, 0, 0], [1 / 3, 2 * np.sqrt(2) / 3, 0], [-1 / 3, np.sqrt(2) / 3, np.sqrt(6) / 3]]),
    30.0 * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, np.sqrt(2) / 2]]),
)


@pytest.mark.parametrize("box", BOXES)
@hypothesis_settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_protein_of_two_chains_is_whole_however_it_was_cut(box, seed):
    rng = np.random.default_rng(seed)
    chains = np.repeat([0, 1], [9, 6])
    steps = rng.normal(size=(15, 3))
    steps *= 3.8 / np.linalg.norm(steps, axis=1, keepdims=True)
    whole = np.concatenate([np.cumsum(steps[:9], axis=0), np.cumsum(steps[9:], axis=0)])
    # Centroids within a third of the box's least width: no other image is nearer.
    whole[9:] += whole[:9].mean(axis=0) - whole[9:].mean(axis=0)
    direction = rng.normal(size=3)
    whole[9:] += 0.33 * np.diag(box).min() * direction / np.linalg.norm(direction)
    cut = whole + rng.integers(-3, 4, size=(15, 3)) @ box
    joined = geometry.make_whole(cut, box, chains)
    np.testing.assert_array_equal(joined[0], cut[0])
    np.testing.assert_allclose(joined - joined[0], whole - whole[0], atol=1e-9)


def test_all_atoms_of_a_chain_go_where_its_ca_atoms_go():
    # Two chains of two residues of two atoms each, the second one box away; then a water.
    chains, ca, box = ((0, 4), (4, 8)), np.array([0, 2, 4, 6]), np.diag([30.0, 30.0, 30.0])
    whole = np.array([[1.0 * n, 0.5 * n, 0.0] for n in range(9)])
    apart = whole.copy()
    apart[4:8] += [30.0, -60.0, 0.0]
    np.testing.assert_allclose(geometry.join_chains(apart, box, ca, chains), whole)
    # A score sees them so too.
    seen = []
    writer = SimpleNamespace(add=lambda *frame: None)
    score = lambda positions: seen.append(positions) or 0.0  # noqa: E731
    reporter = md.FrameReporter(writer, tuple(ca.tolist()), 1, chains=chains, compute_score=score)
    state = SimpleNamespace(
        getKineticEnergy=lambda: 0.0 * unit.kilojoules_per_mole, getTime=lambda: 1.0 * unit.picosecond,
        getPositions=lambda asNumpy: apart * 0.1 * unit.nanometer,
        getPeriodicBoxVectors=lambda asNumpy: box * 0.1 * unit.nanometer,
    )  # fmt: skip
    reporter.report(SimpleNamespace(currentStep=1), state)
    np.testing.assert_allclose(seen[0], whole, atol=1e-5)


@pytest.mark.parametrize("box", BOXES)
def test_boxes_survive_their_trajectory(box, tmp_path):
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    topology.addAtom("O", app.element.oxygen, residue)
    topology.setPeriodicBoxVectors(box * unit.angstrom)
    with (tmp_path / "one.dcd").open("w+b") as stream:
        writer = app.DCDFile(stream, topology, 0.002)
        writer.writeModel([[0.1, 0.2, 0.3]] * unit.nanometer, periodicBoxVectors=box * unit.angstrom)
    from MDAnalysis.lib.formats.libdcd import DCDFile

    with DCDFile(str(tmp_path / "one.dcd")) as dcd:
        found = compute_box(np.asarray(dcd.read().unitcell))
    np.testing.assert_allclose(found, box, atol=1e-12 * 30)
    # OpenMM takes it.
    system = openmm.System()
    system.addParticle(1.0)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPeriodicBoxVectors(*(found * 0.1))
    written = MDAnalysis.Universe.empty(1, trajectory=True)
    written.load_new(str(tmp_path / "one.dcd"))
    np.testing.assert_allclose(mdamath.triclinic_box(*found), written.dimensions, atol=1e-4)


def test_an_old_record_of_a_system_is_of_implicit_solvent(tmp_path):
    layout = RunLayout(tmp_path)
    layout.system.mkdir()
    values = {
        "name": "x", "model": "all-atom", "sequence": "AAAA", "n_atoms": 4, "n_residues": 4, "ca_indices": [0, 1, 2, 3],
        "has_native": False, "force_field": "f",
    }  # fmt: skip
    layout.system_record.write_text(json.dumps(values))
    record = read_record(SystemRecord, layout.system_record)
    assert (record.solvent, record.is_periodic, record.chains, record.kind) == ("implicit", False, (), "all-atom")
