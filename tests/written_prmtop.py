"""A topology of AMBER written from an OpenMM system, for tests: no package at hand brings or writes one.

The format is that of ambermd.org/FileFormats.php. The terms are taken from a system without constraints, so that a
reader of the file can be compared with it force by force.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from openmm import app, unit

KCAL = 4.184
#: AMBER's charges: e times the square root of Coulomb's constant in kcal Å.
CHARGE = 18.2223
#: Scaling of 1-4 interactions in ff14SB.
SCEE, SCNB = 1.2, 2.0


def write_amber(folder: Path, topology: app.Topology, positions_angstrom: np.ndarray, field: app.ForceField):
    """Write system.prmtop and system.inpcrd of a solvated system; returns both paths."""
    flexible = field.createSystem(topology, nonbondedMethod=app.PME, constraints=None, rigidWater=False)
    rigid = field.createSystem(topology, nonbondedMethod=app.PME, constraints=app.HBonds, rigidWater=True)
    prmtop, inpcrd = folder / "system.prmtop", folder / "system.inpcrd"
    prmtop.write_text(_render(_describe(topology, flexible, rigid)))
    box = topology.getUnitCellDimensions().value_in_unit(unit.angstrom)
    numbers = [*np.asarray(positions_angstrom).ravel(), *box, 90.0, 90.0, 90.0]
    n = 3 * topology.getNumAtoms()
    rows = [*_rows(numbers[:n], 6, "{:12.7f}"), *_rows(numbers[n:], 6, "{:12.7f}")]
    inpcrd.write_text("\n".join(["made by the tests", f"{topology.getNumAtoms():5d}", *rows]) + "\n")
    return prmtop, inpcrd


def _describe(topology, flexible, rigid):
    forces = {type(force).__name__: force for force in flexible.getForces()}
    atoms, n = list(topology.atoms()), topology.getNumAtoms()
    hydrogen = [atom.element is app.element.hydrogen for atom in atoms]
    water = [atom.residue.name == "HOH" for atom in atoms]
    residues = list(topology.residues())

    nonbonded = forces["NonbondedForce"]
    charges, lj_types, type_of = [], {}, []
    for index in range(n):
        charge, sigma, epsilon = nonbonded.getParticleParameters(index)
        pair = (round(sigma.value_in_unit(unit.angstrom), 7), round(epsilon._value / KCAL, 9))
        pair = pair if pair[1] else (0.0, 0.0)
        charges.append(charge._value * CHARGE)
        type_of.append(lj_types.setdefault(pair, len(lj_types) + 1))
    kinds = list(lj_types)
    a_coefficients, b_coefficients = [], []
    for row in range(len(kinds)):
        for column in range(row + 1):
            sigma = (kinds[row][0] + kinds[column][0]) / 2
            epsilon = np.sqrt(kinds[row][1] * kinds[column][1])
            a_coefficients.append(4 * epsilon * sigma**12)
            b_coefficients.append(4 * epsilon * sigma**6)
    index_of_pair = [
        max(i, j) * (max(i, j) + 1) // 2 + min(i, j) + 1 for i in range(len(kinds)) for j in range(len(kinds))
    ]
    excluded, one_four = [[] for _ in range(n)], set()
    for number in range(nonbonded.getNumExceptions()):
        i, j, product, _, epsilon = nonbonded.getExceptionParameters(number)
        excluded[min(i, j)].append(max(i, j) + 1)
        if product._value or epsilon._value:
            one_four.add((min(i, j), max(i, j)))

    bonds, angles, dihedrals = _Terms(), _Terms(), _Terms()
    force = forces["HarmonicBondForce"]
    for number in range(force.getNumBonds()):
        i, j, length, k = force.getBondParameters(number)
        bonds.add((i, j), (k._value / 2 / KCAL / 100, length._value * 10), hydrogen[i] or hydrogen[j])
    for number in range(rigid.getNumConstraints()):
        i, j, length = rigid.getConstraintParameters(number)
        if hydrogen[i] and hydrogen[j] and water[i]:
            # AMBER keeps a water rigid by a bond between its hydrogens.
            bonds.add((i, j), (553.0, length._value * 10), True)
    force = forces["HarmonicAngleForce"]
    for number in range(force.getNumAngles()):
        i, j, k, angle, constant = force.getAngleParameters(number)
        if not water[i]:
            angles.add((i, j, k), (constant._value / 2 / KCAL, angle._value), any(hydrogen[a] for a in (i, j, k)))
    neighbours = {frozenset((one.index, other.index)) for one, other in topology.bonds()}
    force, told = forces["PeriodicTorsionForce"], set()
    for number in range(force.getNumTorsions()):
        i, j, k, m, periodicity, phase, constant = force.getTorsionParameters(number)
        proper = all(frozenset(pair) in neighbours for pair in ((i, j), (j, k), (k, m)))
        pair = (min(i, m), max(i, m))
        counts = proper and pair in one_four and pair not in told
        told |= {pair} if counts else set()
        _add_dihedral(dihedrals, (i, j, k, m), (constant._value / KCAL, periodicity, phase._value), counts, hydrogen)
    for pair in sorted(one_four - told):
        # Torsions of no height are not among OpenMM's, yet carry their 1-4 interaction in AMBER.
        middle = _find_path(pair, neighbours)
        _add_dihedral(dihedrals, middle, (0.0, 1, 0.0), True, hydrogen)

    box = topology.getUnitCellDimensions().value_in_unit(unit.angstrom)
    first_atoms = [next(residue.atoms()).index + 1 for residue in residues]
    pointers = [0] * 31
    n_excluded = [max(1, len(items)) for items in excluded]
    for place, value in {
        0: n, 1: len(kinds), 2: bonds.count(True), 3: bonds.count(False), 4: angles.count(True), 5: angles.count(False),
        6: dihedrals.count(True), 7: dihedrals.count(False), 10: sum(n_excluded), 11: len(residues),
        12: bonds.count(False), 13: angles.count(False), 14: dihedrals.count(False), 15: len(bonds.kinds),
        16: len(angles.kinds), 17: len(dihedrals.kinds), 18: len(kinds), 27: 1,
        28: max(len(list(residue.atoms())) for residue in residues),
    }.items():  # fmt: skip
        pointers[place] = value
    names = {"HOH": "WAT"}
    return {
        "TITLE": ("20a4", ["made by the tests"]),
        "POINTERS": ("10I8", pointers),
        "ATOM_NAME": ("20a4", [atom.name for atom in atoms]),
        "CHARGE": ("5E16.8", charges),
        "ATOMIC_NUMBER": ("10I8", [atom.element.atomic_number for atom in atoms]),
        "MASS": ("5E16.8", [flexible.getParticleMass(index)._value for index in range(n)]),
        "ATOM_TYPE_INDEX": ("10I8", type_of),
        "NUMBER_EXCLUDED_ATOMS": ("10I8", n_excluded),
        "NONBONDED_PARM_INDEX": ("10I8", index_of_pair),
        "RESIDUE_LABEL": ("20a4", [names.get(residue.name, residue.name) for residue in residues]),
        "RESIDUE_POINTER": ("10I8", first_atoms),
        "BOND_FORCE_CONSTANT": ("5E16.8", [kind[0] for kind in bonds.kinds]),
        "BOND_EQUIL_VALUE": ("5E16.8", [kind[1] for kind in bonds.kinds]),
        "ANGLE_FORCE_CONSTANT": ("5E16.8", [kind[0] for kind in angles.kinds]),
        "ANGLE_EQUIL_VALUE": ("5E16.8", [kind[1] for kind in angles.kinds]),
        "DIHEDRAL_FORCE_CONSTANT": ("5E16.8", [kind[0] for kind in dihedrals.kinds]),
        "DIHEDRAL_PERIODICITY": ("5E16.8", [kind[1] for kind in dihedrals.kinds]),
        "DIHEDRAL_PHASE": ("5E16.8", [kind[2] for kind in dihedrals.kinds]),
        "SCEE_SCALE_FACTOR": ("5E16.8", [SCEE] * len(dihedrals.kinds)),
        "SCNB_SCALE_FACTOR": ("5E16.8", [SCNB] * len(dihedrals.kinds)),
        "SOLTY": ("5E16.8", [0.0] * len(kinds)),
        "LENNARD_JONES_ACOEF": ("5E16.8", a_coefficients),
        "LENNARD_JONES_BCOEF": ("5E16.8", b_coefficients),
        "BONDS_INC_HYDROGEN": ("10I8", bonds.rows[True]),
        "BONDS_WITHOUT_HYDROGEN": ("10I8", bonds.rows[False]),
        "ANGLES_INC_HYDROGEN": ("10I8", angles.rows[True]),
        "ANGLES_WITHOUT_HYDROGEN": ("10I8", angles.rows[False]),
        "DIHEDRALS_INC_HYDROGEN": ("10I8", dihedrals.rows[True]),
        "DIHEDRALS_WITHOUT_HYDROGEN": ("10I8", dihedrals.rows[False]),
        "EXCLUDED_ATOMS_LIST": ("10I8", list(itertools.chain(*(sorted(items) or [0] for items in excluded)))),
        "HBOND_ACOEF": ("5E16.8", []),
        "HBOND_BCOEF": ("5E16.8", []),
        "HBCUT": ("5E16.8", []),
        "AMBER_ATOM_TYPE": ("20a4", [atom.element.symbol for atom in atoms]),
        "BOX_DIMENSIONS": ("5E16.8", [90.0, *box]),
    }


class _Terms:
    """Bonds, angles or dihedrals: kinds of parameters, and rows of atoms with the number of their kind."""

    def __init__(self):
        self.kinds, self.rows, self._width = {}, {True: [], False: []}, 0

    def add(self, atoms, parameters, with_hydrogen, signs=(1, 1, 1, 1)):
        key = tuple(float(f"{value:.8E}") for value in parameters)
        number = self.kinds.setdefault(key, len(self.kinds) + 1)
        self._width = len(atoms) + 1
        self.rows[with_hydrogen] += [3 * atom * sign for atom, sign in zip(atoms, signs, strict=False)] + [number]

    def count(self, with_hydrogen):
        return len(self.rows[with_hydrogen]) // self._width


def _add_dihedral(dihedrals, atoms, parameters, counts_one_four, hydrogen):
    # The signs of the third and fourth atom carry meaning, and 0 has none: turned around it is first or second.
    atoms = atoms if atoms[2] and atoms[3] else atoms[::-1]
    sign = 1 if counts_one_four else -1
    dihedrals.add(atoms, parameters, any(hydrogen[atom] for atom in atoms), (1, 1, sign, 1))


def _find_path(pair, neighbours):
    """The atoms between two that are three bonds apart."""
    bonded = {}
    for one, other in map(tuple, neighbours):
        bonded.setdefault(one, set()).add(other)
        bonded.setdefault(other, set()).add(one)
    first, last = pair
    for second in sorted(bonded[first]):
        for third in sorted(bonded[second]):
            if last in bonded[third] and third != first:
                return first, second, third, last
    raise AssertionError(f"{pair} are not three bonds apart")


def _rows(values, per_line, template):
    return ["".join(template.format(v) for v in values[k : k + per_line]) for k in range(0, len(values), per_line)]


def _render(sections) -> str:
    lines = ["%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/00  00:00:00"]
    for flag, (layout, values) in sections.items():
        per_line, template = {"20a4": (20, "{:<4.4s}"), "10I8": (10, "{:8d}"), "5E16.8": (5, "{:16.8E}")}[layout]
        lines += [f"%FLAG {flag}", f"%FORMAT({layout})", *(_rows(values, per_line, template) or [""])]
    return "\n".join(lines) + "\n"


