"""Devices are divided among tasks: every core and GPU of a node is given out, and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entk_app.errors import SettingsError
from entk_app.machine import divide_machine
from entk_app.settings import build_settings


def settings(**asked):
    return build_settings({"simulate": {"segment_ns": 1}, "resource": asked})


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "nodes", "slots", "cores_a_slot"),
    [
        ({}, 2, 0, 1, (2, 2, 2), 1),
        ({"cores_per_simulation": 2}, 8, 0, 1, (4, 4, 4), 2),
        ({"cores_per_simulation": 3}, 8, 0, 1, (2, 2, 2), 3),
        ({"cores_per_simulation": 2}, 96, 16, 1, (16, 12, 4), 2),
        ({}, 96, 16, 1, (16, 12, 4), 6),
        ({"md_slots": 12, "ml_slots": 4}, 96, 16, 1, (16, 12, 4), 6),
        ({"md_slots": 14}, 96, 16, 1, (16, 14, 2), 6),
        ({"ml_slots": 2}, 96, 16, 1, (16, 14, 2), 6),
        ({}, 128, 8, 2, (8, 6, 2), 16),  # two nodes of four GPUs
        ({}, 640, 80, 20, (80, 76, 4), 8),  # a training a model at most
        ({}, 64, 2, 1, (2, 2, 2), 32),  # two GPUs: the stages take turns
        ({}, 2, 4, 1, (2, 2, 2), 1),  # fewer cores than GPUs
        ({"md_slots": 3}, 8, 0, 1, (8, 3, 4), 1),
    ],
)
def test_a_pilot_is_divided_among_slots(asked, cores, gpus, nodes, slots, cores_a_slot):
    machine = divide_machine(settings(**asked), cores, gpus, nodes)
    assert (machine.slots.total, machine.slots.simulate, machine.slots.learn) == slots
    assert machine.simulation_cores(0) == cores_a_slot
    assert machine.gpus_per_task == (1 if gpus else 0)


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "nodes", "slots", "cores_a_simulation"),
    [
        ({"sims_per_gpu": 2}, 96, 16, 1, (32, 24, 4), [3] * 24),
        ({"sims_per_gpu": 2, "md_slots": 12, "ml_slots": 4}, 96, 16, 1, (32, 24, 4), [3] * 24),  # counted in GPUs
        ({"sims_per_gpu": 4, "md_slots": 15}, 96, 16, 1, (64, 60, 1), [2, 2, 1, 1] * 15),
        ({"sims_per_gpu": 3, "cores_per_simulation": 1}, 96, 16, 1, (48, 36, 4), [1] * 36),
        ({"sims_per_gpu": 2}, 64, 2, 1, (4, 4, 2), [16] * 4),  # two GPUs: the stages take turns
        ({"sims_per_gpu": 3}, 128, 8, 2, (24, 18, 2), [5] * 18),  # pieces of one size over several nodes
        ({"sims_per_gpu": 2}, 8, 0, 1, (8, 8, 4), [1] * 8),  # no GPUs: nothing to share
    ],
)
def test_simulations_share_a_gpu_and_trainings_have_theirs(asked, cores, gpus, nodes, slots, cores_a_simulation):
    machine = divide_machine(settings(**asked), cores, gpus, nodes)
    assert (machine.slots.total, machine.slots.simulate, machine.slots.learn) == slots
    assert [machine.simulation_cores(place) for place in range(machine.slots.simulate)] == cores_a_simulation


@given(per_gpu=st.integers(1, 16), gpus=st.integers(1, 16), cores=st.integers(1, 300))
def test_shared_gpus_and_their_cores_are_given_out_and_no_more(per_gpu, gpus, cores):
    try:
        machine = divide_machine(settings(sims_per_gpu=per_gpu), cores, gpus)
    except SettingsError:
        assert cores // min(gpus, cores) < per_gpu
        return
    slots, whole = machine.slots, min(gpus, cores)
    first = [machine.simulation_cores(place) for place in range(slots.total)]
    assert (len(first), sum(first)) == (per_gpu * whole, cores)
    assert min(first) >= 1
    if slots.is_split:
        learning = [machine.training_cores(place) for place in range(slots.learn)]
        assert sum(first[: slots.simulate]) + sum(learning) == cores
        assert slots.simulate / per_gpu + slots.learn <= whole
    assert per_gpu * machine.gpus_per_simulation <= 1 < (per_gpu + 1) * machine.gpus_per_simulation + 1e-4


def test_concurrent_simulations_that_share_gpus_fit_together_whichever_they_are():
    asked = build_settings({"coupling": "concurrent", "simulate": {"segment_ns": 1}, "resource": {"sims_per_gpu": 2}})
    machine = divide_machine(asked, 100, 16)
    assert (machine.slots.total, machine.slots.simulate, machine.slots.learn) == (32, 24, 4)
    assert {machine.simulation_cores(place) for place in range(24)} == {3}
    assert [machine.training_cores(place) for place in range(4)] == [6] * 4
    assert machine.analysis_cores == 24


@given(cores=st.integers(1, 300), gpus=st.integers(0, 20))
def test_all_cores_of_a_gpu_node_are_given_out_and_no_more(cores, gpus):
    machine = divide_machine(settings(), cores, gpus)
    assert sum(machine.slot_cores) == cores
    slots = machine.slots
    if gpus and slots.is_split:
        simulating = [machine.simulation_cores(place) for place in range(slots.simulate)]
        learning = [machine.training_cores(place) for place in range(slots.learn)]
        assert sum(simulating) + sum(learning) == cores
        assert slots.simulate + slots.learn <= gpus
    if slots.total > 1:
        assert max(machine.slot_cores) - min(machine.slot_cores) <= 1


def test_a_training_of_many_cores_fits_a_node():
    asked = build_settings(
        {"simulate": {"segment_ns": 1}, "resource": {"md_slots": 2}, "train": {"latent_dims": [3]}},
    )
    assert divide_machine(asked, 16, 0, nodes=2).training_cores(0) == 8


@given(cores=st.integers(1, 200), gpus=st.integers(0, 9), nodes=st.integers(2, 5))
def test_no_task_exceeds_a_node_of_several(cores, gpus, nodes):
    machine = divide_machine(settings(), nodes * cores, nodes * gpus, nodes)
    in_node = min(gpus, cores) or cores
    assert machine.slots.total == nodes * in_node
    # Any tasks fit together on a node, whichever the scheduler puts there.
    assert max(machine.slot_cores) * in_node <= cores
    assert machine.analysis_cores == cores
    assert max(machine.training_cores(place) for place in range(4)) <= cores


def test_trainings_share_the_cores_of_a_node_without_gpus():
    assert divide_machine(settings(), 64, 0).training_cores(0) == 16  # four latent sizes
    assert divide_machine(settings(), 96, 16).training_cores(0) == 6  # beside one GPU each
    two_nodes = divide_machine(settings(), 128, 0, nodes=2)
    assert (two_nodes.training_cores(0), two_nodes.analysis_cores) == (32, 64)


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "words"),
    [
        ({"cores_per_simulation": 9}, 8, 0, "cores_per_simulation = 9: a node of local.localhost has 8 cores"),
        ({"cores_per_simulation": 7}, 96, 16, "cores_per_simulation = 7: 16 simulations, one a GPU, have 96 cores"),
        (
            {"sims_per_gpu": 2, "cores_per_simulation": 4}, 96, 16,
            "cores_per_simulation = 4: 32 simulations, 2 a GPU, have 96 cores of .* between them; at most 3",
        ),
        ({"sims_per_gpu": 4}, 48, 16, "sims_per_gpu = 4: 16 GPUs of local.localhost have 48 cores .* at most 3"),
        ({"md_slots": 17}, 96, 16, "md_slots = 17: local.localhost has 16 slots"),
        ({"ml_slots": 3}, 2, 0, "ml_slots = 3: local.localhost has 2 slots"),
        ({"md_slots": 12, "ml_slots": 5}, 96, 16, "are 17 slots: local.localhost has 16"),
    ],
)
def test_more_slots_than_there_are_is_refused(asked, cores, gpus, words):
    with pytest.raises(SettingsError, match=words):
        divide_machine(settings(**asked), cores, gpus)


def test_gpus_that_do_not_divide_among_nodes_are_refused():
    with pytest.raises(SettingsError, match="resource.gpus = 3: divided among 2 nodes"):
        divide_machine(settings(), 64, 3, nodes=2)
