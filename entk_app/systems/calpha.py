"""The structure-based CA model of Clementi, Nymeyer & Onuchic 2000 (doi:10.1006/jmbi.2000.3693).

One bead a residue; bonds, angles and dihedrals have their native values as minimum, native contacts
attract by a 12-10 potential and everything else repels. Its only energy is epsilon, which follows from the
temperature of the simulation and the reduced temperature asked for. Its time has no physical scale: what is
reported as ps is the integrator's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.errors import StructureError
from entk_app.settings import Settings

#: Boltzmann's constant times Avogadro's, kJ/(mol K).
BOLTZMANN = 8.31446261815324e-3
#: Mean mass of an amino-acid residue.
BEAD_MASS_AMU = 110.0
#: In units of epsilon: 100 a squared angstrom for bonds and 20 a squared radian for angles, times two for
#: OpenMM's k/2 convention.
BOND_PER_NM2 = 20_000.0
ANGLE_PER_RAD2 = 40.0
DIHEDRALS = ((1, 1.0), (3, 0.5))
REPULSION_NM = 0.4
REPULSION_CUTOFF_NM = 1.0


def compute_epsilon(settings: Settings) -> float:
    """Contact energy in kJ/mol: kB T over the reduced temperature."""
    return BOLTZMANN * settings.simulate.temperature_k / settings.system.reduced_temperature


def build(native_angstrom: NDArray[np.floating], epsilon: float, contact_cutoff_angstrom: float = 8.0) -> Any:
    """The OpenMM system of the model.

    Parameters
    ----------
    native_angstrom : array, shape (n_residues, 3), ångström
    epsilon : float, kJ/mol
    contact_cutoff_angstrom : float

    Returns
    -------
    openmm.System

    Raises
    ------
    StructureError
        The native structure has no native contact, or a broken chain.
    """
    native = np.asarray(native_angstrom, dtype=np.float64) * 0.1
    n_residues = len(native)
    steps = np.linalg.norm(np.diff(native, axis=0), axis=1)
    if steps.max(initial=0.0) > 0.5:
        place = int(np.argmax(steps)) + 1
        raise StructureError(
            f"the native structure is broken between residues {place} and {place + 1}: their CA atoms are "
            f"{steps[place - 1] * 10:.1f} Å apart"
        )
    first, second = np.triu_indices(n_residues, k=1)
    is_native = geometry.find_native_pairs(native * 10.0, contact_cutoff_angstrom)
    if not is_native.any():
        raise StructureError(
            f"the native structure has no contact within {contact_cutoff_angstrom:g} Å: there is nothing to fold"
        )
    system = openmm.System()
    for _ in range(n_residues):
        system.addParticle(BEAD_MASS_AMU)

    bonds, angles, dihedrals = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i in range(n_residues - 1):
        bonds.addBond(i, i + 1, float(steps[i]), BOND_PER_NM2 * epsilon)
    for i in range(n_residues - 2):
        angles.addAngle(i, i + 1, i + 2, compute_angle(native[i : i + 3]), ANGLE_PER_RAD2 * epsilon)
    for i in range(n_residues - 3):
        phi = compute_dihedral(native[i : i + 4])
        for periodicity, weight in DIHEDRALS:
            # weight (1 - cos n(x - phi)): OpenMM's form is k (1 + cos(n x - phase)).
            phase = float((periodicity * phi + np.pi) % (2 * np.pi))
            dihedrals.addTorsion(i, i + 1, i + 2, i + 3, periodicity, phase, weight * epsilon)

    contacts = openmm.CustomBondForce("epsilon*(5*(sigma/r)^12 - 6*(sigma/r)^10)")
    contacts.addGlobalParameter("epsilon", epsilon)
    contacts.addPerBondParameter("sigma")
    repulsion = openmm.CustomNonbondedForce("epsilon*(sigma/r)^12")
    repulsion.addGlobalParameter("epsilon", epsilon)
    repulsion.addGlobalParameter("sigma", REPULSION_NM)
    repulsion.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
    repulsion.setCutoffDistance(REPULSION_CUTOFF_NM)
    for _ in range(n_residues):
        repulsion.addParticle([])
    for i, j, attracts in zip(first.tolist(), second.tolist(), is_native.tolist(), strict=True):
        if attracts:
            contacts.addBond(i, j, [float(np.linalg.norm(native[j] - native[i]))])
        if attracts or j - i <= geometry.NATIVE_SEPARATION:
            repulsion.addExclusion(i, j)
    for name, force in (
        ("bonds", bonds),
        ("angles", angles),
        ("dihedrals", dihedrals),
        ("native contacts", contacts),
        ("repulsion", repulsion),
    ):
        force.setName(name)
        system.addForce(force)
    return system


def compute_angle(points: NDArray[np.floating]) -> float:
    """Angle at the middle of three points, radians."""
    one, other = points[0] - points[1], points[2] - points[1]
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)))


def compute_dihedral(points: NDArray[np.floating]) -> float:
    """Dihedral of four points, radians, IUPAC sign (trans is pi)."""
    before, axis, after = points[1] - points[0], points[2] - points[1], points[3] - points[2]
    first, second = np.cross(before, axis), np.cross(axis, after)
    return float(np.arctan2(np.linalg.norm(axis) * (before @ second), first @ second))
