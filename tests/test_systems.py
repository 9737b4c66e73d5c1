"""Systems: what is built, the paper's protocol term by term, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import openmm
import pytest
from conftest import BBA_REFERENCE
from openmm import app, unit

from entk_app import geometry
from entk_app.errors import StructureError
from entk_app.integrity import DamagedError
from entk_app.layout import RunLayout
from entk_app.settings import build_settings
from entk_app.systems import build_system, write_system
from entk_app.systems import calpha as calpha_model
from entk_app.systems.build import load_system
from entk_app.systems.sequences import parse_sequence
from entk_app.systems.structures import ALPHA_HELIX, EXTENDED, build_chain

needs_bba = pytest.mark.skipif(not BBA_REFERENCE.exists(), reason="no PDB 1FME beside the checkout")


def build(tmp_path: Path, **system):
    settings = build_settings({"simulate": {"segment_ns": 1.0}, "system": system})
    return build_system(settings, cache=tmp_path)


@pytest.fixture(scope="module")
def fs_peptide(tmp_path_factory):
    return build(tmp_path_factory.mktemp("fs"), name="fs-peptide", model="all-atom")


@pytest.fixture(scope="module")
def villin(tmp_path_factory):
    return build(tmp_path_factory.mktemp("villin"), name="villin", model="calpha")


# What is built.


def test_fs_peptide_is_the_paper_s_molecule(fs_peptide):
    record = fs_peptide.record
    assert (record.n_atoms, record.n_residues, record.sequence) == (264, 21, "A" * 5 + "AAARA" * 3 + "A")
    names = [residue.name for residue in fs_peptide.start.topology.residues()]
    assert (names[0], names[-1], len(names)) == ("ACE", "NME", 23)


def test_villin_all_atom_builds_with_its_histidine(tmp_path):
    built = build(tmp_path, name="villin", model="all-atom")
    assert built.record.sequence == "LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF"
    assert built.record.n_residues == 35


@needs_bba
@pytest.mark.parametrize(("model", "n_atoms"), [("all-atom", 504), ("calpha", 28)])
def test_bba_has_the_paper_s_504_atoms(tmp_path, model, n_atoms):
    built = build(tmp_path, name="bba", model=model, reference=str(BBA_REFERENCE))
    assert (built.record.n_atoms, built.record.n_residues) == (n_atoms, 28)


def test_a_protein_is_built_twice_alike(fs_peptide, tmp_path):
    # OpenMM draws the places of hydrogens from this generator.
    random.random()
    again = build(tmp_path, name="fs-peptide", model="all-atom")
    np.testing.assert_array_equal(again.start.positions, fs_peptide.start.positions)


def test_the_start_is_extended_and_the_native_fs_peptide_a_helix(fs_peptide):
    start, native = fs_peptide.start.ca_positions(), fs_peptide.native.ca_positions()
    assert np.linalg.norm(start[-1] - start[0]) > 60.0
    # An alpha helix rises 1.5 Å a residue.
    assert np.linalg.norm(native[-1] - native[0]) / 20 == pytest.approx(1.5, abs=0.1)
    assert geometry.compute_rmsd(start, native) > 10.0


def test_built_chains_have_the_backbone_angles_asked_for():
    sequence = parse_sequence("ACE-AAAAAAAA-NME")
    for angles in (EXTENDED, ALPHA_HELIX):
        chain = build_chain(sequence, angles)
        places = {(a.residue.index, a.name): a.index for a in chain.topology.atoms()}
        points = [chain.positions[places[key]] for key in ((3, "C"), (4, "N"), (4, "CA"), (4, "C"), (5, "N"))]
        phi, psi = (np.degrees(calpha_model.compute_dihedral(np.array(points[k : k + 4]))) for k in (0, 1))
        assert (phi, psi) == pytest.approx(angles, abs=1.0)


def test_a_system_is_read_back_as_written(villin, tmp_path):
    layout = RunLayout(tmp_path)
    write_system(villin, layout)
    loaded = load_system(layout)
    assert loaded.record.model_copy(update={"files": {}}) == villin.record
    assert set(loaded.record.files) == {"topology.pdb", "native.pdb", "system.xml"}
    np.testing.assert_allclose(loaded.start, villin.start.positions, atol=5.1e-4)
    np.testing.assert_allclose(loaded.native_ca, villin.native.positions, atol=1e-9)
    assert openmm.XmlSerializer.serialize(loaded.system) == openmm.XmlSerializer.serialize(villin.system)


def test_a_system_that_was_changed_is_not_run(villin, tmp_path):
    layout = RunLayout(tmp_path)
    write_system(villin, layout)
    layout.system_xml.write_text(layout.system_xml.read_text().replace("110", "111", 1))
    with pytest.raises(DamagedError, match="system.xml is altered"):
        load_system(layout)


# The paper's protocol.


def forces(system):
    return {type(force).__name__: force for force in system.getForces()}


def test_all_atom_energy_equals_one_built_directly_from_the_force_field(fs_peptide):
    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    direct = field.createSystem(
        fs_peptide.start.topology, nonbondedMethod=app.CutoffNonPeriodic, nonbondedCutoff=1.0, constraints=app.HBonds
    )
    energies = []
    for system in (fs_peptide.system, direct):
        groups = {}
        for number, force in enumerate(system.getForces()):
            force.setForceGroup(number)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(fs_peptide.start.positions * 0.1)
        for number, force in enumerate(system.getForces()):
            state = context.getState(energy=True, groups={number})
            groups[type(force).__name__] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        energies.append(groups)
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)
    assert {"HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce", "GBSAOBCForce"} <= set(
        energies[0]
    )
    assert all(energies[0][name] != 0.0 for name in ("HarmonicAngleForce", "PeriodicTorsionForce", "GBSAOBCForce"))


def test_all_atom_cutoff_is_10_angstrom_without_a_periodic_box(fs_peptide):
    nonbonded = forces(fs_peptide.system)["NonbondedForce"]
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.CutoffNonPeriodic
    assert nonbonded.getCutoffDistance().value_in_unit(unit.angstrom) == pytest.approx(10.0)
    assert not fs_peptide.system.usesPeriodicBoundaryConditions()


def test_exactly_the_bonds_to_hydrogen_are_constrained(fs_peptide):
    topology = fs_peptide.start.topology
    to_hydrogen = {
        frozenset((bond[0].index, bond[1].index))
        for bond in topology.bonds()
        if "H" in (bond[0].element.symbol, bond[1].element.symbol)
    }
    system = fs_peptide.system
    constrained = {frozenset(system.getConstraintParameters(n)[:2]) for n in range(system.getNumConstraints())}
    assert constrained == to_hydrogen
    assert len(constrained) > 100


def test_hydrogen_mass_is_moved_not_made(tmp_path):
    settings = build_settings(
        {"simulate": {"segment_ns": 1.0, "hydrogen_mass_amu": 4}, "system": {"name": "fs-peptide", "model": "all-atom"}}
    )
    heavy = build_system(settings, cache=tmp_path)
    plain = build(tmp_path, name="fs-peptide", model="all-atom")

    def masses(built):
        return [
            built.system.getParticleMass(n).value_in_unit(unit.dalton) for n in range(built.system.getNumParticles())
        ]

    assert sum(masses(heavy)) == pytest.approx(sum(masses(plain)))
    hydrogens = [a.index for a in plain.start.topology.atoms() if a.element.symbol == "H"]
    assert {round(masses(heavy)[n], 3) for n in hydrogens} == {4.0}
    assert {round(masses(plain)[n], 3) for n in hydrogens} == {1.008}


# The CA model.


def test_the_native_structure_is_the_minimum_of_every_bonded_term(villin):
    system = villin.system
    for number, force in enumerate(system.getForces()):
        force.setForceGroup(number)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(villin.native.positions * 0.1)
    epsilon = 8.31446261815324e-3 * 300 / 0.6
    for number, force in enumerate(system.getForces()):
        energy = context.getState(energy=True, groups={number}).getPotentialEnergy()._value
        if force.getName() in ("bonds", "angles", "dihedrals"):
            assert energy == pytest.approx(0.0, abs=1e-4 * epsilon), force.getName()
        if force.getName() == "native contacts":
            assert energy == pytest.approx(-epsilon * force.getNumBonds(), rel=1e-5)


def test_contacts_of_the_ca_model_are_those_of_the_geometry(villin):
    contacts = next(force for force in villin.system.getForces() if force.getName() == "native contacts")
    expected = int(geometry.find_native_pairs(villin.native.positions).sum())
    assert contacts.getNumBonds() == expected > 30


def test_epsilon_follows_from_the_reduced_temperature(tmp_path):
    def energy(reduced):
        settings = build_settings({"simulate": {"segment_ns": 1}, "system": {"reduced_temperature": reduced}})
        return calpha_model.compute_epsilon(settings)

    assert energy(1.0) == pytest.approx(2.494339, rel=1e-6)  # kB 300 K in kJ/mol
    assert energy(0.5) == pytest.approx(2 * energy(1.0))


# What is refused.


def edit_pdb(tmp_path, change):
    built = build(tmp_path, name="fs-peptide", model="all-atom")
    layout = RunLayout(tmp_path / "edited")
    write_system(built, layout)
    lines = [change(line) for line in layout.topology.read_text().splitlines()]
    path = tmp_path / "edited.pdb"
    path.write_text("\n".join(line for line in lines if line is not None) + "\n")
    return path


def test_a_users_pdb_is_taken(tmp_path):
    path = edit_pdb(tmp_path, lambda line: line)
    built = build(tmp_path, name="mine", model="all-atom", pdb=str(path))
    assert (built.record.n_atoms, built.record.has_native) == (264, False)


def test_a_users_sequence_with_a_reference_is_taken_as_a_ca_model(tmp_path, villin):
    layout = RunLayout(tmp_path / "written")
    write_system(villin, layout)
    built = build(
        tmp_path,
        name="mine",
        model="calpha",
        sequence="LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF",
        reference=str(layout.native),
    )
    assert built.record.n_atoms == 35


def test_an_unknown_residue_is_named(tmp_path):
    path = edit_pdb(tmp_path, lambda line: line.replace("ARG A   9", "XYZ A   9") if " 9 " in line else line)
    text = path.read_text()
    assert "XYZ" in text or "ARG A  10" in text
    path.write_text(text.replace("ARG A  10", "XYZ A  10"))
    with pytest.raises(StructureError, match=r"residue XYZ (9|10) of chain A"):
        build(tmp_path, name="mine", model="all-atom", pdb=str(path))


def test_missing_heavy_atoms_are_named_with_their_residue(tmp_path):
    path = edit_pdb(tmp_path, lambda line: None if line[12:16] == " CB " and int(line[22:26] or 0) == 5 else line)
    with pytest.raises(StructureError, match=r"residue ALA 5 of chain A"):
        build(tmp_path, name="mine", model="all-atom", pdb=str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "PDB|protein"),
        ("HEADER nothing\nEND\n", "PDB|protein"),
        ("ATOM      1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O\nEND\n", "no protein"),
        ("ATOM      1  CA  ALA A   1       x.000   0.000   0.000  1.00  0.00           C\nEND\n", "cannot|can be read"),
    ],
)
def test_a_file_without_a_protein_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.pdb"
    path.write_text(content)
    with pytest.raises(StructureError, match=words):
        build(tmp_path, name="mine", model="all-atom", pdb=str(path))


def test_ca_atoms_alone_are_no_all_atom_structure(tmp_path, villin):
    layout = RunLayout(tmp_path / "written")
    write_system(villin, layout)
    with pytest.raises(StructureError, match="CA atoms only"):
        build(tmp_path, name="mine", model="all-atom", pdb=str(layout.native))


def test_a_missing_loop_is_refused(tmp_path):
    def cut(line):
        return None if line.startswith("ATOM") and 8 <= int(line[22:26]) <= 12 else line

    with pytest.raises(StructureError, match=r"ALA 7 and ALA 13 of chain A .* Å apart"):
        build(tmp_path, name="mine", model="all-atom", pdb=str(edit_pdb(tmp_path, cut)))


def test_coordinates_that_are_no_numbers_are_refused(tmp_path):
    path = edit_pdb(
        tmp_path, lambda line: line[:30] + "     nan     nan     nan" + line[54:] if "CA  ALA" in line else line
    )
    with pytest.raises(StructureError, match="not numbers"):
        build(tmp_path, name="mine", model="all-atom", pdb=str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StructureError, match="nowhere.pdb"):
        build(tmp_path, name="mine", model="all-atom", pdb=str(tmp_path / "nowhere.pdb"))


def test_a_reference_of_another_protein_is_refused(tmp_path, villin):
    layout = RunLayout(tmp_path / "written")
    write_system(villin, layout)
    with pytest.raises(StructureError, match="35 residues, the system has 21"):
        build(tmp_path, name="fs-peptide", model="all-atom", reference=str(layout.native))
    with pytest.raises(StructureError, match="residue 3 of .* is D, the system has A"):
        build(
            tmp_path, name="mine", model="calpha", sequence="LSAEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF",
            reference=str(layout.native),
        )  # fmt: skip


def test_a_reference_in_another_order_of_its_protonation_names_is_the_same_protein(tmp_path, villin):
    layout = RunLayout(tmp_path / "written")
    write_system(villin, layout)
    path = tmp_path / "hie.pdb"
    path.write_text(layout.native.read_text().replace("HIS", "HIE"))
    assert build(tmp_path, name="villin", model="calpha", reference=str(path)).record.has_native


def test_the_ca_model_needs_a_native_structure(tmp_path):
    with pytest.raises(StructureError, match="--reference"):
        build(tmp_path, name="mine", model="calpha", sequence="AAAAAAAA")


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ({"name": "vilin"}, "did you mean 'villin'"),
        ({"name": "villin", "sequence": "AAAA"}, "built-in"),
        ({"name": "mine", "model": "all-atom", "sequence": "AAXA"}, "'X' at residue 3"),
        ({"name": "mine", "model": "all-atom", "sequence": "AA"}, "at least 4"),
    ],
)
def test_names_and_sequences_that_cannot_be_built(tmp_path, system, words):
    with pytest.raises(StructureError, match=words):
        build(tmp_path, **system)


def test_a_structure_that_cannot_be_fetched_says_what_to_do(tmp_path, monkeypatch):
    fetch_module = pytest.importorskip("MDAnalysis.fetch", reason="MDAnalysis fetches from version 2.11 on")

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(fetch_module, "from_PDB", refuse)
    with pytest.raises(StructureError, match="--reference FILE"):
        build(tmp_path / "empty", name="bba", model="calpha")


@needs_bba
def test_a_fetched_structure_is_kept_and_read_from_the_cache(tmp_path, monkeypatch):
    fetch_module = pytest.importorskip("MDAnalysis.fetch", reason="MDAnalysis fetches from version 2.11 on")

    def fetch(identifier, cache_path, **kwargs):
        target = Path(cache_path) / "1FME.pdb"
        target.write_bytes(BBA_REFERENCE.read_bytes())
        return target

    monkeypatch.setattr(fetch_module, "from_PDB", fetch)
    assert build(tmp_path / "cache", name="bba", model="calpha").record.n_residues == 28
    monkeypatch.setattr(fetch_module, "from_PDB", None)
    assert build(tmp_path / "cache", name="bba", model="calpha").record.n_residues == 28
