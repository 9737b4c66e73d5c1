"""The paper's all-atom protocol: AMBER ff99SB-ILDN in OBC implicit solvent (Ma et al. 2019, section 2.1)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from entk_app.errors import StructureError
from entk_app.settings import SimulateSettings
from entk_app.systems.sequences import THREE_LETTER, parse_sequence, to_one_letter
from entk_app.systems.structures import EXTENDED, Structure, build_chain, is_solvent, name_residue

FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")


def build(structure: Structure, settings: SimulateSettings) -> tuple[Structure, Any]:
    """Add hydrogens and make the OpenMM system.

    Returns
    -------
    (Structure, openmm.System)
        The complete structure and its system: non-periodic cutoff, bonds to hydrogen constrained.

    Raises
    ------
    StructureError
        A residue matches no template of the force field: missing heavy atoms, unknown names.
    """
    check_complete(structure)
    field = app.ForceField(*FORCE_FIELD)
    modeller = app.Modeller(structure.topology, structure.positions * 0.1 * unit.nanometer)
    try:
        add_hydrogens(modeller, field)
        system = field.createSystem(
            modeller.topology,
            nonbondedMethod=app.CutoffNonPeriodic,
            nonbondedCutoff=settings.cutoff_angstrom * unit.angstrom,
            constraints=app.HBonds,
            hydrogenMass=None if settings.hydrogen_mass_amu is None else settings.hydrogen_mass_amu * unit.dalton,
        )
    except Exception as error:
        # Whatever OpenMM's modelling meets in a structure: the structure is what can be changed.
        raise StructureError(explain(error, structure, FORCE_FIELD[0])) from error
    positions = np.asarray(modeller.positions.value_in_unit(unit.angstrom), dtype=np.float64)
    return Structure(modeller.topology, positions, structure.source), system


def add_hydrogens(modeller: Any, field: Any) -> None:
    """Add the hydrogens that are missing, as at pH 7; the same ones get the same places."""
    # They are placed at random, then minimised in a context: not on a GPU of the node that launches.
    with drawing_from(0):
        modeller.addHydrogens(field, pH=7.0, platform=openmm.Platform.getPlatformByName("Reference"))


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """OpenMM's modelling draws from Python's own generator: seeded within, as it was before afterwards."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@cache
def _heavy_atoms() -> dict[str, frozenset[str]]:
    """Names of the heavy atoms of each amino acid inside a chain."""
    every = build_chain(parse_sequence("".join(THREE_LETTER)), EXTENDED)
    return {
        residue.name: frozenset(atom.name for atom in residue.atoms() if atom.name != "OXT")
        for residue in every.topology.residues()
    }


def check_complete(structure: Structure) -> None:
    """Name what a residue lacks or has too many; hydrogens are added later.

    Raises
    ------
    StructureError
    """
    if structure.topology.getNumAtoms() == len(structure.ca_indices()):
        raise StructureError(
            f"{structure.source} holds CA atoms only: all-atom needs whole residues (or use system.model = 'calpha')"
        )
    for chain in structure.topology.chains():
        residues = [residue for residue in chain.residues() if not is_solvent(residue)]
        for residue in residues:
            one_letter = to_one_letter(residue.name)
            if one_letter is None:
                continue
            expected = set(_heavy_atoms()[THREE_LETTER[one_letter]]) | ({"OXT"} if residue == residues[-1] else set())
            names = {a.name for a in residue.atoms() if a.element is None or a.element.symbol not in ("H", "D")}
            missing, unknown = expected - names, names - expected
            if missing:
                raise StructureError(
                    f"{structure.source}: {name_residue(residue)} lacks {', '.join(sorted(missing))}: all-atom needs "
                    "every heavy atom (PDBFixer adds them)"
                )
            if unknown:
                raise StructureError(
                    f"{structure.source}: {name_residue(residue)} has {', '.join(sorted(unknown))}, which "
                    f"{residue.name} there does not have: take them out, or rename them as the PDB does"
                )


def explain(error: Exception, structure: Structure, force_field: str) -> str:
    """OpenMM counts residues from 0: name them as the file does."""
    residues = list(structure.topology.residues())

    def name(match: re.Match[str]) -> str:
        number = int(match.group(1))
        if number >= len(residues):
            return match.group(0)
        residue = residues[number]
        return name_residue(residue)

    reason = re.sub(r"residue (\d+) \(\w+\)", name, str(error))
    return f"{structure.source}: the force field {force_field} refuses it: {reason or type(error).__name__}"
