"""Physics of what is simulated: temperature, energy, constraints, continuity, and the CA model term by term.

Random numbers are seeded, and bounds are some five standard errors wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import MDAnalysis
import numpy as np
import openmm
import pytest
from conftest import prepare, tiny_settings
from openmm import app, unit
from scipy import stats

from entk_app import md
from entk_app.frames import FrameWriter, read_columns
from entk_app.layout import RunLayout, SegmentPaths
from entk_app.settings import build_settings
from entk_app.systems import build_system, calpha
from entk_app.tasks import run_task

#: kJ/(mol K), CODATA 2018.
BOLTZMANN = 8.314462618e-3
REFERENCE = openmm.Platform.getPlatformByName("Reference")


def read_log(paths: SegmentPaths) -> dict[str, np.ndarray]:
    """Columns of a log.csv by their names."""
    lines = paths.log.read_text().splitlines()
    names = [name.strip('"') for name in lines[0].lstrip("#").split(",")]
    values = np.array([[float(field) for field in line.split(",")] for line in lines[1:]])
    return dict(zip(names, values.T, strict=True))


def compute_error(values: np.ndarray) -> float:
    """Standard error of the mean of correlated values: their variance times the statistical inefficiency."""
    centred = values - values.mean()
    inefficiency, lag = 1.0, 1
    while lag < len(values) // 2:
        correlation = (centred[lag:] @ centred[:-lag]) / (len(values) - lag) / centred.var()
        if correlation <= 0:
            break
        inefficiency += 2.0 * correlation * (1.0 - lag / len(values))
        lag += 1
    return float(np.sqrt(centred.var() * inefficiency / len(values)))


@dataclass(frozen=True)
class Run:
    """A segment of Fs-peptide in the paper's protocol, as the simulate task published it."""

    layout: RunLayout
    system: openmm.System
    paths: SegmentPaths

    def universe(self) -> MDAnalysis.Universe:
        return MDAnalysis.Universe(str(self.layout.topology), str(self.paths.trajectory))


@pytest.fixture(scope="module")
def fs_peptide(tmp_path_factory) -> Run:
    settings = tiny_settings(
        "simulate.segment_ns=0.006", "simulate.report_interval_ps=0.04", "simulate.time_step_fs=2",
        "simulate.hydrogen_mass_amu=null", "simulate.friction_per_ps=91", preset="fs-peptide-quick",
    )  # fmt: skip
    campaign = prepare(tmp_path_factory.mktemp("fs") / "run", settings, cores=1)
    layout = campaign.layout
    run_task("simulate", layout.root, campaign.start().tasks[0].order)
    system = openmm.XmlSerializer.deserialize(layout.system_xml.read_text())
    return Run(layout, system, layout.segment(0, 0))


@pytest.fixture(scope="module")
def villin(tmp_path_factory):
    return build_system(calpha_settings(), cache=tmp_path_factory.mktemp("cache"))


def calpha_settings(reduced_temperature=0.6, **simulate):
    values = {"segment_ns": 1, "report_interval_ps": 2, "time_step_fs": 20, "friction_per_ps": 1, **simulate}
    return build_settings({"simulate": values, "system": {"reduced_temperature": reduced_temperature}})


# Temperature, constraints and energy of a segment as it was published.


def test_kinetic_temperature_is_the_thermostats_over_the_degrees_of_freedom(fs_peptide):
    system, log = fs_peptide.system, read_log(fs_peptide.paths)
    # Three a particle, without one a constraint and without the motion of the whole, which is taken out.
    freedom = 3 * system.getNumParticles() - system.getNumConstraints() - 3
    kinetic = log["Kinetic Energy (kJ/mole)"][20:]
    temperature = 2.0 * kinetic / (freedom * BOLTZMANN)
    np.testing.assert_allclose(log["Temperature (K)"][20:], temperature, rtol=1e-6)
    error = compute_error(temperature)
    # What a canonical ensemble scatters by, were all frames independent, is its least.
    assert error > 0.5 * 300.0 * np.sqrt(2.0 / freedom) / np.sqrt(len(temperature))
    assert error < 4.0
    assert temperature.mean() == pytest.approx(300.0, abs=5.0 * error)
    assert temperature.std() == pytest.approx(300.0 * np.sqrt(2.0 / freedom), rel=0.35)


def test_bonds_to_hydrogen_keep_their_length_and_no_others_do(fs_peptide):
    system, universe = fs_peptide.system, fs_peptide.universe()
    constraints = [system.getConstraintParameters(n) for n in range(system.getNumConstraints())]
    pairs = np.array([(i, j) for i, j, _ in constraints])
    lengths = np.array([length.value_in_unit(unit.angstrom) for *_, length in constraints])
    force = next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
    free = np.array([force.getBondParameters(n)[:2] for n in range(force.getNumBonds())])
    fixed = {frozenset(pair) for pair in pairs.tolist()}
    free = np.array([pair for pair in free.tolist() if frozenset(pair) not in fixed])
    # By hand: 18 Ala of 5 hydrogens, 3 Arg of 13, ACE of 3 and NME of 4; 128 heavy atoms in a chain without rings.
    assert (len(pairs), len(free)) == (136, 127)
    held, moving = [], []
    for step in universe.trajectory:
        held.append(np.linalg.norm(step.positions[pairs[:, 0]] - step.positions[pairs[:, 1]], axis=1))
        moving.append(np.linalg.norm(step.positions[free[:, 0]] - step.positions[free[:, 1]], axis=1))
    # The integrator's tolerance is 1e-5 of a length; positions are kept to about 4e-6 Å.
    np.testing.assert_allclose(held, np.broadcast_to(lengths, np.shape(held)), atol=4e-5)
    assert np.std(moving, axis=0).min() > 0.005


def test_a_logged_energy_is_that_of_its_frame_in_the_papers_force_field(fs_peptide):
    # Built here, from the files that the paper names: the frame, its energy and the force field belong together.
    topology = app.PDBFile(str(fs_peptide.layout.topology)).topology
    direct = app.ForceField("amber99sbildn.xml", "amber99_obc.xml").createSystem(
        topology, nonbondedMethod=app.CutoffNonPeriodic, nonbondedCutoff=1.0 * unit.nanometer, constraints=app.HBonds
    )
    context = openmm.Context(direct, openmm.VerletIntegrator(0.001), REFERENCE)
    log, universe = read_log(fs_peptide.paths)["Potential Energy (kJ/mole)"], fs_peptide.universe()
    for frame in (0, 50, 149):
        context.setPositions(universe.trajectory[frame].positions.astype(float) * 0.1)
        energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        # Single precision in the file and on the CPU platform.
        assert energy == pytest.approx(log[frame], abs=0.1)
    assert np.ptp(log) > 50.0


# Energy without a thermostat.


def integrate(system, state, step_ps, duration_ps):
    """Total energies, kJ/mol, of 100 moments of velocity Verlet from a state."""
    integrator = openmm.VerletIntegrator(step_ps)
    integrator.setConstraintTolerance(1e-8)
    context = openmm.Context(system, integrator, REFERENCE)
    context.setPositions(state.getPositions())
    context.setVelocities(state.getVelocities())
    energies = []
    for _ in range(100):
        integrator.step(round(duration_ps / step_ps / 100))
        now = context.getState(energy=True)
        energies.append((now.getPotentialEnergy() + now.getKineticEnergy()).value_in_unit(unit.kilojoule_per_mole))
    return np.array(energies)


def equilibrate(system, positions_angstrom, step_ps):
    integrator = openmm.LangevinMiddleIntegrator(300, 10, step_ps)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, REFERENCE)
    context.setPositions(positions_angstrom * 0.1)
    openmm.LocalEnergyMinimizer.minimize(context, 10, 100)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(300)
    return context.getState(positions=True, velocities=True, energy=True)


def check_conservation(coarse, fine, kinetic, ratio_range):
    """The fluctuation falls with the square of the step, and there is no drift beside it."""
    low, high = ratio_range
    assert low < coarse.std() / fine.std() < high
    assert fine.std() < 2e-3 * kinetic
    drift = np.polyfit(np.linspace(0, 1, len(fine)), fine, 1)[0]
    assert abs(drift) < 3e-3 * kinetic


def test_the_all_atom_force_field_conserves_energy(fs_peptide):
    settings = build_settings({"simulate": {"segment_ns": 1}, "system": {"name": "fs-peptide", "model": "all-atom"}})
    built = build_system(settings, cache=fs_peptide.layout.root)
    state = equilibrate(built.system, built.start.positions, 0.002)
    coarse, fine = (integrate(built.system, state, step, 0.4) for step in (0.002, 0.001))
    # Pairs that pass the cutoff, where nothing is switched off smoothly, add to it at any step.
    check_conservation(coarse, fine, state.getKineticEnergy()._value, (2.2, 6.0))


def test_the_ca_model_conserves_energy(villin):
    state = equilibrate(villin.system, villin.native.positions, 0.02)
    coarse, fine = (integrate(villin.system, state, step, 20.0) for step in (0.01, 0.005))
    check_conservation(coarse, fine, state.getKineticEnergy()._value, (3.0, 5.3))


# A segment goes on as if it had never ended.


def run_calpha(built, settings, folder, start, n_frames, seed):
    """A segment on the Reference platform; its paths."""
    folder.mkdir()
    simulation, platform = md.create_context(built.start.topology, built.system, settings.simulate, seed, 1)
    assert platform == "Reference"
    paths = SegmentPaths(folder)
    md.begin(simulation, start, settings.simulate, seed)
    md.run_segment(
        simulation, settings.simulate, folder,
        lambda positions: FrameWriter(paths.frames, built.record.n_residues, built.native.positions, 8.0, positions),
        built.record.ca_indices, n_frames, None, 60.0,
        names=(paths.trajectory.name, paths.log.name, paths.state.name),
    )  # fmt: skip
    return paths


def test_without_noise_two_segments_are_one_bit_for_bit(villin, tmp_path):
    # So little friction that nothing of the thermostat is left: what remains is deterministic.
    settings = calpha_settings(friction_per_ps=1e-30)
    start = md.Start(positions=villin.native.positions)
    whole = run_calpha(villin, settings, tmp_path / "whole", start, 20, seed=3)
    first = run_calpha(villin, settings, tmp_path / "first", start, 10, seed=3)
    second = run_calpha(
        villin, settings, tmp_path / "second", md.Start(state_xml=first.state.read_text()), 10, seed=4
    )
    parts = [read_columns(paths.frames) for paths in (first, second)]
    for name, values in read_columns(whole.frames).items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values, err_msg=name)
    ends = [openmm.XmlSerializer.deserialize(paths.state.read_text()) for paths in (whole, second)]
    for values in ("getPositions", "getVelocities"):
        one, other = (np.asarray(getattr(end, values)(asNumpy=True)._value) for end in ends)
        np.testing.assert_array_equal(one, other)
    assert np.ptp(read_columns(whole.frames)["rmsd_angstrom"]) > 0.1


def test_with_noise_two_segments_are_one_in_distribution(villin, tmp_path):
    # From an extended chain the radius of gyration falls all the time: a part too much or too little is seen.
    settings = calpha_settings(report_interval_ps=5)
    name, n_replicas = "radius_of_gyration_angstrom", 20
    ends = {"whole": [], "parts": [], "half": []}
    for replica in range(n_replicas):
        start = md.Start(positions=villin.start.positions, minimise=True)
        whole = run_calpha(villin, settings, tmp_path / f"whole{replica}", start, 4, seed=100 + replica)
        first = run_calpha(villin, settings, tmp_path / f"first{replica}", start, 2, seed=200 + replica)
        second = run_calpha(
            villin, settings, tmp_path / f"second{replica}", md.Start(state_xml=first.state.read_text()), 2,
            seed=300 + replica,
        )  # fmt: skip
        for key, paths in (("whole", whole), ("parts", second), ("half", first)):
            ends[key].append(read_columns(paths.frames)[name][-1])
    assert stats.ks_2samp(ends["whole"], ends["parts"]).pvalue > 1e-3
    # The test has the power to see half a segment missing.
    assert stats.ks_2samp(ends["whole"], ends["half"]).pvalue < 1e-3


# The CA model of Clementi, Nymeyer and Onuchic 2000.


def measure_native(tmp_path, reduced_temperature):
    """Means of RMSD and native contacts, second half of 0.4 ns from the native structure."""
    settings = calpha_settings(reduced_temperature)
    built = build_system(settings, cache=tmp_path)
    start = md.Start(positions=built.native.positions)
    paths = run_calpha(built, settings, tmp_path / f"T{reduced_temperature}", start, 200, seed=11)
    columns = read_columns(paths.frames)
    return columns["rmsd_angstrom"][100:].mean(), columns["native_contacts"][100:].mean()


def test_villin_is_native_when_cold_and_melts_when_heated(tmp_path):
    temperatures = (0.2, 0.6, 1.0, 1.6)
    rmsd, contacts = np.transpose([measure_native(tmp_path, reduced) for reduced in temperatures])
    assert (np.diff(contacts) < -0.04).all(), contacts
    assert contacts[0] > 0.85
    assert rmsd[0] < 2.0
    assert contacts[-1] < 0.5
    assert rmsd[-1] > 6.0


#: Ångström from bead to bead.
STEP = 3.8


def place(points, length, angle, dihedral):
    """The next bead of a chain, by its internal coordinates (ångström, radians)."""
    axis = points[-1] - points[-2]
    axis = axis / np.linalg.norm(axis)
    normal = np.cross(points[-2] - points[-3], axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    return points[-1] + length * (
        -np.cos(angle) * axis + np.sin(angle) * (np.cos(dihedral) * side + np.sin(dihedral) * normal)
    )


def make_chain(lengths=(STEP,) * 4, angles=(90.0,) * 3, dihedrals=(60.0, 60.0)):
    """Five beads by bond lengths (ångström), angles and dihedrals (degrees): by default with one native contact."""
    angles, dihedrals = np.radians(angles), np.radians(dihedrals)
    points = [np.zeros(3), np.array([lengths[0], 0.0, 0.0])]
    points.append(points[1] + lengths[1] * np.array([-np.cos(angles[0]), np.sin(angles[0]), 0.0]))
    for length, angle, dihedral in zip(lengths[2:], angles[1:], dihedrals, strict=True):
        points.append(place(points, length, angle, dihedral))
    return np.array(points)


def compute_terms(system, positions_angstrom, epsilon):
    """Energies of a system's forces by their names, in units of epsilon."""
    for number, force in enumerate(system.getForces()):
        force.setForceGroup(number)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(np.asarray(positions_angstrom) * 0.1)
    return {
        force.getName(): context.getState(energy=True, groups={number}).getPotentialEnergy()._value / epsilon
        for number, force in enumerate(system.getForces())
    }


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({}, {}),
        # 100 epsilon/Å² times 0.2 Å squared.
        ({"lengths": (STEP, STEP, STEP, STEP + 0.2)}, {"bonds": 4.0}),
        ({"lengths": (STEP - 0.1, STEP, STEP, STEP + 0.2)}, {"bonds": 5.0}),
        # 20 epsilon/rad² times 0.1 and 0.3 rad squared.
        ({"angles": (90.0, 90.0, 90.0 + np.degrees(0.1))}, {"angles": 0.2}),
        ({"angles": (90.0 - np.degrees(0.3), 90.0, 90.0)}, {"angles": 1.8}),
        # 1 - cos(x) + (1 - cos(3x))/2 at 60, 120, 180 and -90 degrees.
        ({"dihedrals": (60.0, 120.0)}, {"dihedrals": 0.5 + 1.0}),
        ({"dihedrals": (60.0, 180.0)}, {"dihedrals": 1.5 + 0.0}),
        ({"dihedrals": (60.0, 240.0)}, {"dihedrals": 2.0 + 1.0}),
        ({"dihedrals": (-30.0, 60.0)}, {"dihedrals": 1.0 + 0.5}),
    ],
)
def test_bonded_terms_of_small_geometries(moved, expected):
    native, epsilon = make_chain(), 1.7
    terms = compute_terms(calpha.build(native, epsilon), make_chain(**moved), epsilon)
    for name in ("bonds", "angles", "dihedrals"):
        assert terms[name] == pytest.approx(expected.get(name, 0.0), abs=1e-5), name


@pytest.mark.parametrize(
    ("ratio", "expected"),
    # 5 r^-12 - 6 r^-10: its minimum of -1 at the native distance, 5/2^12 - 6/2^10 and so on beside it.
    [(1.0, -1.0), (0.5, 5 * 4096 - 6 * 1024), (2.0, (5 - 24) / 4096), (np.sqrt(2.0), (5 - 12) / 64)],
)
def test_a_native_contact_attracts_by_its_12_10_potential(ratio, expected):
    native, epsilon = make_chain(), 1.7
    first, last = native[0], native[4]
    distance = np.linalg.norm(last - first)
    assert distance < 8.0
    moved = native.copy()
    moved[4] = first + (last - first) * ratio
    terms = compute_terms(calpha.build(native, epsilon), moved, epsilon)
    assert terms["native contacts"] == pytest.approx(expected, rel=1e-5)
    # What attracts is not pushed away as well, nor are neighbours within three along the chain.
    assert terms["repulsion"] == 0.0


@pytest.mark.parametrize(("distance", "expected"), [(4.0, 1.0), (8.0, 2.0**-12), (2.0, 2.0**12)])
def test_what_is_no_contact_repels_as_a_sphere_of_4_angstrom(distance, expected):
    # An extended chain, bent back at its end so that 4 and 8 are its one native contact.
    native = np.array([[STEP * n, 0.0, 0.3 * (n % 2)] for n in range(9)])
    native[8] = native[4] + np.array([2.0, 5.0, 0.0])
    native[7] = (native[8] + native[6]) / 2 + np.array([0.5, 0.0, 0.5])
    epsilon = 1.7
    system = calpha.build(native, epsilon)
    # Beads 0 and 5 alone come near one another: all others are beyond the cutoff.
    apart = np.array([[100.0 * n, 0.0, 0.0] for n in range(9)])
    apart[5] = apart[0] + np.array([0.0, distance, 0.0])
    assert compute_terms(system, apart, epsilon)["repulsion"] == pytest.approx(expected, rel=1e-5)
