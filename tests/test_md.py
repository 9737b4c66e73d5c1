"""Molecular dynamics of a segment: what it integrates, what it writes, how it starts and goes on."""

from __future__ import annotations

import numpy as np
import pytest
from openmm import unit

from entk_app import md
from entk_app.frames import FrameWriter, read_columns
from entk_app.settings import build_settings
from entk_app.systems import build_system


@pytest.fixture(scope="module")
def villin(tmp_path_factory):
    settings = make_settings()
    return build_system(settings, cache=tmp_path_factory.mktemp("cache"))


def make_settings(**simulate):
    values = {"segment_ns": 0.02, "report_interval_ps": 1, "time_step_fs": 20, "friction_per_ps": 1, **simulate}
    return build_settings({"simulate": values})


def run(built, settings, folder, start, n_frames, seed=1, **kwargs):
    folder.mkdir()
    simulation, _ = md.create_context(built.start.topology, built.system, settings.simulate, seed, 1)
    seen = {}

    def make_writer(positions):
        seen["start"] = positions
        seen["velocities"] = (
            simulation.context.getState(velocities=True)
            .getVelocities(asNumpy=True)
            .value_in_unit(unit.nanometer / unit.picosecond)
        )
        return FrameWriter(folder / "frames.h5", built.record.n_residues, built.native.positions, 8.0, positions)

    md.begin(simulation, start, settings.simulate, seed)
    result = md.run_segment(
        simulation, settings.simulate, folder, make_writer, built.record.ca_indices, n_frames,
        settings.simulate.segment_minutes, settings.faults.save_minutes,
        names=("trajectory.dcd", "log.csv", "state.xml"), **kwargs,
    )  # fmt: skip
    return result, seen


def test_a_segment_holds_the_frames_and_the_time_asked_for(villin, tmp_path):
    start = md.Start(positions=villin.start.positions, minimise=True)
    result, _ = run(villin, make_settings(), tmp_path / "s", start, 20)
    assert (result.n_frames, result.steps, result.ended_by) == (20, 1000, "length")
    assert result.time_ps == pytest.approx(20.0)
    columns = read_columns(tmp_path / "s" / "frames.h5")
    np.testing.assert_allclose(columns["time_ps"], np.arange(1, 21), atol=1e-6)
    log = (tmp_path / "s" / "log.csv").read_text().splitlines()
    assert len(log) == 21
    for word in ("Step", "Time", "Potential Energy", "Kinetic Energy", "Total Energy", "Temperature", "Speed"):
        assert word in log[0]


def test_the_protocol_reaches_the_integrator(villin):
    settings = make_settings(temperature_k=310, friction_per_ps=91, time_step_fs=2)
    simulation, _ = md.create_context(villin.start.topology, villin.system, settings.simulate, 7, 1)
    integrator = simulation.integrator
    assert type(integrator).__name__ == "LangevinMiddleIntegrator"
    assert integrator.getTemperature().value_in_unit(unit.kelvin) == 310
    assert integrator.getFriction().value_in_unit(unit.picosecond**-1) == 91
    assert integrator.getStepSize().value_in_unit(unit.femtosecond) == pytest.approx(2)
    assert integrator.getRandomNumberSeed() == 7


def test_a_restart_begins_at_its_frame_with_fresh_velocities(villin, tmp_path):
    positions = villin.native.positions + 0.01
    _, one = run(villin, make_settings(), tmp_path / "a", md.Start(positions=positions), 1, seed=1)
    _, other = run(villin, make_settings(), tmp_path / "b", md.Start(positions=positions), 1, seed=2)
    np.testing.assert_allclose(one["start"], positions, atol=1e-9)
    assert np.abs(one["velocities"] - other["velocities"]).max() > 0.1
    # Boltzmann at 300 K: mean square of 105 components of 110 amu beads, within 5 standard errors.
    variance = 8.31446e-3 * 300 / 110
    assert np.mean(one["velocities"] ** 2) == pytest.approx(variance, rel=5 * np.sqrt(2 / 105))


def test_a_continued_segment_starts_at_the_very_state_it_left(villin, tmp_path):
    start = md.Start(positions=villin.start.positions, minimise=True)
    _, _ = run(villin, make_settings(), tmp_path / "a", start, 5)
    text = (tmp_path / "a" / "state.xml").read_text()
    import openmm

    left = openmm.XmlSerializer.deserialize(text)
    result, seen = run(villin, make_settings(), tmp_path / "b", md.Start(state_xml=text), 3, seed=9)
    np.testing.assert_array_equal(seen["start"], left.getPositions(asNumpy=True).value_in_unit(unit.angstrom))
    np.testing.assert_array_equal(
        seen["velocities"], left.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
    )
    assert (result.first_step, result.start_time_ps) == (250, pytest.approx(5.0))
    assert read_columns(tmp_path / "b" / "frames.h5")["step"].tolist() == [300, 350, 400]


def test_the_first_segment_is_minimised(villin, tmp_path):
    crowded = villin.native.positions * 0.97
    _, seen = run(villin, make_settings(), tmp_path / "a", md.Start(positions=crowded, minimise=True), 1)
    assert np.abs(seen["start"] - crowded).max() > 0.05


def test_the_clock_ends_a_segment_measured_in_minutes(villin, tmp_path):
    settings = build_settings(
        {"simulate": {"segment_minutes": 0.01, "report_interval_ps": 1, "time_step_fs": 20, "friction_per_ps": 1}}
    )
    result, _ = run(villin, settings, tmp_path / "a", md.Start(positions=villin.native.positions), None)
    assert result.ended_by == "clock"
    assert result.n_frames >= 1


def test_a_stop_request_ends_a_segment_in_order(villin, tmp_path):
    calls = iter([None, None, "stop_request"])
    result, _ = run(
        villin,
        make_settings(),
        tmp_path / "a",
        md.Start(positions=villin.native.positions),
        100,
        should_stop=lambda: next(calls),
    )
    assert (result.n_frames, result.ended_by) == (3, "stop_request")
    assert len(read_columns(tmp_path / "a" / "frames.h5")["step"]) == 3
    assert (tmp_path / "a" / "state.xml").exists()


def test_a_stop_between_two_frames_ends_with_the_last_whole_one(villin, tmp_path):
    import openmm

    # 5,000 steps a frame: asked several times on the way to each.
    settings = make_settings(report_interval_ps=100, segment_ns=1)
    asked = []

    def should_stop():
        asked.append(None)
        return "stop_request" if (tmp_path / "a" / "log.csv").read_text().count("\n") >= 3 and len(asked) % 2 else None

    result, _ = run(
        villin, settings, tmp_path / "a", md.Start(positions=villin.native.positions), 50, should_stop=should_stop
    )
    state = openmm.XmlSerializer.deserialize((tmp_path / "a" / "state.xml").read_text())
    assert result.ended_by == "stop_request"
    assert result.steps == 5000 * result.n_frames == state.getStepCount()
    columns = read_columns(tmp_path / "a" / "frames.h5")
    assert columns["step"][-1] == result.steps


def test_without_a_gpu_of_its_own_a_task_takes_no_gpu_platform(villin, monkeypatch):
    import openmm

    asked = []
    real = openmm.Platform.getPlatformByName

    def by_name(name):
        asked.append(name)
        return real("Reference")

    monkeypatch.setattr(openmm.Platform, "getNumPlatforms", lambda: 1)
    monkeypatch.setattr(
        openmm.Platform, "getPlatform", lambda number: type("P", (), {"getName": lambda self: "CUDA"})()
    )
    monkeypatch.setattr(openmm.Platform, "getPlatformByName", by_name)
    with pytest.raises(md.PlatformError):
        md.create_context(villin.start.topology, villin.system, make_settings().simulate, 1, 1, gpus=0)
    assert asked == []


def test_with_a_gpu_of_its_own_a_task_does_not_fall_back_to_the_cpu_silently(villin):
    if any(openmm_has(name) for name in ("CUDA", "HIP")):
        pytest.skip("there is a GPU platform here")
    parts = (villin.start.topology, villin.system, make_settings().simulate, 1, 1)
    with pytest.raises(md.PlatformError, match="CUDA: not installed.*resource.require_gpu=false"):
        md.create_context(*parts, gpus=1, allow_cpu=False)
    assert md.create_context(*parts, gpus=1, allow_cpu=True)[1] in ("OpenCL", "Reference", "CPU")
    # A platform that was asked for by name is what was asked for.
    on_cpu = make_settings(platform="CPU").simulate
    assert md.create_context(*parts[:2], on_cpu, 1, 1, gpus=1, allow_cpu=False)[1] == "CPU"


def openmm_has(name):
    import openmm

    return name in [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]


def test_a_platform_that_is_not_there_is_an_error(villin):
    settings = make_settings(platform="HIP")
    with pytest.raises(md.PlatformError, match="simulate.platform = 'HIP' cannot run here"):
        md.create_context(villin.start.topology, villin.system, settings.simulate, 1, 1)


def test_kinetic_temperature_is_the_one_asked_for(villin, tmp_path):
    settings = make_settings(temperature_k=300, friction_per_ps=10)
    run(villin, settings, tmp_path / "a", md.Start(positions=villin.native.positions), 400)
    log = np.genfromtxt(tmp_path / "a" / "log.csv", delimiter=",", names=True)
    column = next(name for name in log.dtype.names if name.startswith("Temperature"))
    values = log[column][50:]
    # 105 degrees of freedom: a frame's temperature scatters by sqrt(2/105); frames 1 ps apart are decorrelated.
    error = 300 * np.sqrt(2 / 105) / np.sqrt(len(values))
    assert values.mean() == pytest.approx(300, abs=5 * error)
