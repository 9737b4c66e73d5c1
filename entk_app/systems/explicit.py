"""Proteins in explicit solvent: a periodic box of water and ions, PME, and a barostat.

Three ways lead there: a structure that has its water and box, a topology of AMBER, and a dry protein that is put into
a box of water here (decision 0018).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import Vec3, app, unit

from entk_app.errors import StructureError
from entk_app.settings import Settings, SimulateSettings
from entk_app.systems.allatom import add_hydrogens, check_complete, drawing_from, explain
from entk_app.systems.sequences import CAPS, WATERS, to_one_letter
from entk_app.systems.structures import Structure, check_protein, is_solvent, make_whole

#: AMBER ff14SB with TIP3P-FB water and its ions.
FORCE_FIELD = ("amber14-all.xml", "amber14/tip3pfb.xml")

#: g/mL. A box of water and protein, equilibrated or fresh from a builder, lies between them; a crystal's cell, of which
#: a file holds a part, or a box that is not that of its atoms, does not.
_DENSITY_LIMITS = (0.6, 1.5)

#: A box shrinks by some per cent while its pressure settles.
_ROOM = 1.05

_GRAM_PER_ML = 1.66053907
_ATOMS_PER_CUBIC_ANGSTROM = 0.1
_MAX_ATOMS = 500_000


def build(structure: Structure, settings: Settings) -> tuple[Structure, Any]:
    """The system of a protein that has its water and box, or gets them here.

    Parameters
    ----------
    structure : Structure
        With water, ions and box; or without water: a cube of it is then put around the protein.
    settings : Settings

    Returns
    -------
    (Structure, openmm.System)

    Raises
    ------
    StructureError
        A residue matches no template of the force field, or the box cannot be simulated.
    """
    check_complete(structure)
    has_water = any(residue.name in WATERS for residue in structure.topology.residues())
    field = app.ForceField(*FORCE_FIELD)
    modeller = app.Modeller(structure.topology, structure.positions * 0.1 * unit.nanometer)
    try:
        if field.getUnmatchedResidues(modeller.topology):
            add_hydrogens(modeller, field)
        if not has_water:
            _add_water(modeller, field, settings)
        topology = modeller.topology
        positions = np.asarray(modeller.positions.value_in_unit(unit.angstrom), dtype=np.float64)
        solvated = Structure(topology, positions, structure.source)
        _check_box(solvated, settings.simulate.cutoff_angstrom)
        system = field.createSystem(topology, **_describe_forces(settings.simulate))
    except StructureError:
        raise
    except Exception as error:
        # Whatever OpenMM's modelling meets in a structure: the structure is what can be changed.
        raise StructureError(explain(error, structure, FORCE_FIELD[0])) from error
    _check_density(solvated, system)
    _add_barostat(system, settings.simulate)
    return solvated, system


def read_amber(prmtop: Path, inpcrd: Path) -> tuple[Structure, Any]:
    """The structure of a topology and coordinates of AMBER, and the topology with its parameters.

    Returns
    -------
    (Structure, openmm.app.AmberPrmtopFile)

    Raises
    ------
    StructureError
        A file cannot be read, they do not belong together, have no box or no protein.
    """
    coordinates = _read(app.AmberInpcrdFile, inpcrd, "system.inpcrd")
    box = coordinates.boxVectors
    if box is None:
        raise StructureError(f"system.inpcrd: {inpcrd} has no periodic box: solvate the system in tleap (solvateBox)")
    topology_file = _read(partial(app.AmberPrmtopFile, periodicBoxVectors=box), prmtop, "system.prmtop")
    positions = np.asarray(coordinates.positions.value_in_unit(unit.angstrom), dtype=np.float64)
    topology = split_chains(topology_file.topology)
    if len(positions) != topology.getNumAtoms():
        raise StructureError(
            f"system.inpcrd: {inpcrd} has {len(positions)} atoms, {prmtop} has {topology.getNumAtoms()}: they are not "
            "of the same system"
        )
    topology.setPeriodicBoxVectors(box)
    structure = make_whole(Structure(topology, positions, str(prmtop)))
    if not structure.ca_indices():
        raise StructureError(f"system.prmtop: {prmtop} holds no protein residue")
    check_protein(structure, "system.prmtop")
    return structure, topology_file


def build_amber(structure: Structure, topology_file: Any, settings: SimulateSettings) -> Any:
    """The OpenMM system of a topology of AMBER.

    Parameters
    ----------
    structure : Structure
    topology_file : openmm.app.AmberPrmtopFile
        Both from :func:`read_amber`.
    settings : SimulateSettings

    Raises
    ------
    StructureError
        OpenMM cannot take its terms, or the box cannot be simulated.
    """
    _check_box(structure, settings.cutoff_angstrom)
    try:
        system = topology_file.createSystem(**_describe_forces(settings))
    except Exception as error:
        raise StructureError(f"system.prmtop: {structure.source} cannot be simulated: {error}") from error
    _check_density(structure, system)
    _add_barostat(system, settings)
    return system


def find_chains(structure: Structure) -> tuple[tuple[int, int], ...]:
    """The first atom of each chain of the protein, caps included, and the one after its last."""
    chains = []
    for chain in structure.topology.chains():
        atoms = [
            atom.index
            for residue in chain.residues()
            if residue.name in CAPS or to_one_letter(residue.name) is not None
            for atom in residue.atoms()
        ]
        if atoms:
            chains.append((atoms[0], atoms[-1] + 1))
    return tuple(chains)


def _describe_forces(settings: SimulateSettings) -> dict[str, Any]:
    """How OpenMM makes the system, whatever the parameters come from."""
    return {
        "nonbondedMethod": app.PME,
        "nonbondedCutoff": settings.cutoff_angstrom * unit.angstrom,
        "constraints": app.HBonds,
        "rigidWater": True,
        "hydrogenMass": None if settings.hydrogen_mass_amu is None else settings.hydrogen_mass_amu * unit.dalton,
    }


def _add_water(modeller: Any, field: Any, settings: Settings) -> None:
    """A cube of water around the protein, wide enough for it in any orientation, and ions in it."""
    positions = np.asarray(modeller.positions.value_in_unit(unit.angstrom), dtype=np.float64)
    centre = (positions.min(axis=0) + positions.max(axis=0)) / 2.0
    radius = float(np.linalg.norm(positions - centre, axis=1).max())
    width = 2.0 * (radius + settings.system.padding_angstrom)
    n_atoms = round(_ATOMS_PER_CUBIC_ANGSTROM * width**3)
    if n_atoms > _MAX_ATOMS:
        raise StructureError(
            f"a box of {width:.0f} Å around the protein takes about {n_atoms:,} atoms, the limit is {_MAX_ATOMS:,}: "
            "give a compact start structure with system.pdb, or a smaller system.padding_angstrom"
        )
    # The waters that give way to ions are drawn.
    with drawing_from(settings.seed):
        modeller.addSolvent(
            field,
            model="tip3p",
            boxSize=0.1 * width * Vec3(1, 1, 1),
            ionicStrength=settings.system.ionic_strength_molar * unit.molar,
        )


def _add_barostat(system: Any, settings: SimulateSettings) -> None:
    if settings.pressure_bar is not None:
        system.addForce(
            openmm.MonteCarloBarostat(settings.pressure_bar * unit.bar, settings.temperature_k * unit.kelvin)
        )


def _check_box(structure: Structure, cutoff_angstrom: float) -> None:
    box = structure.box()
    assert box is not None
    least = float(np.diag(box).min())
    if least < 2.0 * cutoff_angstrom * _ROOM:
        raise StructureError(
            f"{structure.source}: the periodic box is {least:.1f} Å wide, too little for "
            f"simulate.cutoff_angstrom = {cutoff_angstrom:g}: it must be more than twice the cutoff and some per cent "
            "that it may shrink; lower the cutoff, or add water (system.padding_angstrom)"
        )


def _check_density(structure: Structure, system: Any) -> None:
    box = structure.box()
    assert box is not None
    mass = sum(system.getParticleMass(n).value_in_unit(unit.dalton) for n in range(system.getNumParticles()))
    density = mass * _GRAM_PER_ML / float(np.linalg.det(box))
    low, high = _DENSITY_LIMITS
    if not low <= density <= high:
        sizes = " x ".join(f"{length:.1f}" for length in np.linalg.norm(box, axis=1))
        n_waters = sum(is_solvent(residue) for residue in structure.topology.residues())
        raise StructureError(
            f"{structure.source}: {n_waters} waters and ions in its box of {sizes} Å make {density:.2f} g/mL, which is "
            "no liquid: correct the box (CRYST1), or take the water out to have the protein solvated"
        )


def _read(kind: Callable[[str], Any], path: Path, what: str) -> Any:
    if not path.is_file():
        raise StructureError(f"{what}: there is no file {path}")
    try:
        return kind(str(path))
    except Exception as error:
        # OpenMM's readers raise whatever their parsing meets: to the user all of it is one thing, a bad file.
        raise StructureError(
            f"{what}: {path} is not a file of AMBER that can be read ({type(error).__name__}: {error})"
        ) from None


def split_chains(topology: Any) -> Any:
    """OpenMM reads a topology of AMBER as one chain: a new one begins where residues are not bonded."""
    bonded = {tuple(sorted((one.residue.index, other.residue.index))) for one, other in topology.bonds()}
    new, copies, chain, in_solvent = app.Topology(), {}, None, False
    for residue in topology.residues():
        follows = (residue.index - 1, residue.index) in bonded
        if chain is None or not (follows or (in_solvent and is_solvent(residue))):
            chain = new.addChain()
        in_solvent = is_solvent(residue)
        copied = new.addResidue(residue.name, chain)
        for atom in residue.atoms():
            copies[atom] = new.addAtom(atom.name, atom.element, copied)
    for one, other in topology.bonds():
        new.addBond(copies[one], copies[other])
    return new
