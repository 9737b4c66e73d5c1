"""The paper's all-atom protocol: AMBER ff99SB-ILDN in OBC implicit solvent (Ma et al. 2019, section 2.1)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from entk_app.errors import StructureError
from entk_app.settings import SimulateSettings
from entk_app.systems.structures import Structure

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
    if structure.topology.getNumAtoms() == len(structure.ca_indices()):
        raise StructureError(
            f"{structure.source} holds CA atoms only: all-atom needs whole residues (or use system.model = 'calpha')"
        )
    field = app.ForceField(*FORCE_FIELD)
    modeller = app.Modeller(structure.topology, structure.positions * 0.1 * unit.nanometer)
    try:
        # Placing hydrogens minimises them in a context: not on a GPU of the node that launches.
        modeller.addHydrogens(field, pH=7.0, platform=openmm.Platform.getPlatformByName("Reference"))
        system = field.createSystem(
            modeller.topology,
            nonbondedMethod=app.CutoffNonPeriodic,
            nonbondedCutoff=settings.cutoff_angstrom * unit.angstrom,
            constraints=app.HBonds,
            hydrogenMass=None if settings.hydrogen_mass_amu is None else settings.hydrogen_mass_amu * unit.dalton,
        )
    except (ValueError, KeyError) as error:
        raise StructureError(_explain(error, structure)) from None
    positions = np.asarray(modeller.positions.value_in_unit(unit.angstrom), dtype=np.float64)
    return Structure(modeller.topology, positions, structure.source), system


def _explain(error: Exception, structure: Structure) -> str:
    """OpenMM counts residues from 0: name them as the file does."""
    residues = list(structure.topology.residues())

    def name(match: re.Match[str]) -> str:
        number = int(match.group(1))
        if number >= len(residues):
            return match.group(0)
        residue = residues[number]
        return f"residue {residue.name} {residue.id} of chain {residue.chain.id}"

    reason = re.sub(r"residue (\d+) \(\w+\)", name, str(error))
    return f"{structure.source}: the force field {FORCE_FIELD[0]} refuses it: {reason}"
