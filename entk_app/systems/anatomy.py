"""What a structure of a system has to keep: read off its OpenMM system and its start structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import HarmonicBondForce, unit

from entk_app.geometry import NATIVE_SEPARATION
from entk_app.sanity import CLASH_ANGSTROM, OVERLAP_ANGSTROM, Anatomy, compute_handedness
from entk_app.systems.build import LoadedSystem


def describe_anatomy(loaded: LoadedSystem) -> Anatomy:
    """Bonds with the force field's lengths, what keeps a distance, and the start structure's hand of every CA."""
    atoms = list(loaded.topology.atoms())
    bonds, lengths = _find_bonds(loaded.system)
    centres = _find_centres(loaded.topology)
    is_calpha = loaded.record.model == "calpha"
    heavy = [atom.index for atom in atoms if atom.element is None or atom.element.symbol not in ("H", "D")]
    if loaded.record.is_periodic:
        # Ions and the water around them may be as near as that.
        chains = loaded.record.chains
        heavy = [index for index in heavy if any(first <= index < end for first, end in chains)]
    return Anatomy(
        labels=[f"{atom.residue.name} {atom.residue.id} {atom.name}" for atom in atoms],
        bonds=bonds,
        bond_lengths=lengths,
        bulky=np.array(heavy, dtype=np.int64),
        min_distance_angstrom=OVERLAP_ANGSTROM if is_calpha else CLASH_ANGSTROM,
        n_bonds_apart=NATIVE_SEPARATION if is_calpha else 2,
        centres=centres,
        # L as a rule; a chain with a D residue starts with it, and keeps it.
        handedness=np.sign(compute_handedness(loaded.start, centres)),
    )


def _find_bonds(system: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of atoms and their distances at rest, ångström: harmonic bonds, and those that are constrained."""
    found: list[tuple[int, int, Any]] = []
    for force in system.getForces():
        if isinstance(force, HarmonicBondForce):
            found += [tuple(force.getBondParameters(place)[:3]) for place in range(force.getNumBonds())]
    found += [tuple(system.getConstraintParameters(place)) for place in range(system.getNumConstraints())]
    # A constraint may stand beside the bond that it replaces.
    lengths = {(min(a, b), max(a, b)): length.value_in_unit(unit.angstrom) for a, b, length in found}
    bonds = np.array(list(lengths), dtype=np.int64).reshape(-1, 2)
    return bonds, np.array(list(lengths.values()), dtype=np.float64)


def _find_centres(topology: Any) -> NDArray[np.int64]:
    """CA, N, C and CB of every residue that has them: glycine has no CB, a bead has nothing but CA."""
    centres = []
    for residue in topology.residues():
        index = {atom.name: atom.index for atom in residue.atoms()}
        if {"CA", "N", "C", "CB"} <= index.keys():
            centres.append([index[name] for name in ("CA", "N", "C", "CB")])
    return np.array(centres, dtype=np.int64).reshape(-1, 4)
