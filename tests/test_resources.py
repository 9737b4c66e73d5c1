"""Resource files: every one is read, the machine is found, wrong labels name the near ones."""

from __future__ import annotations

import json
import os

import pytest

from entk_app.campaign import divide_machine
from entk_app.errors import EntkAppError, SettingsError
from entk_app.resources import config_folders, count_gpus, find_resource, read_entries
from entk_app.settings import ResourceSettings, build_settings


def test_local_localhost_is_this_machine():
    resource = find_resource(ResourceSettings())
    assert resource.cores == len(os.sched_getaffinity(0))
    assert resource.entry["cores_per_node"] == resource.cores
    assert resource.source.parent.name == "resource_configs"


def test_cores_and_gpus_can_be_asked_for():
    resource = find_resource(ResourceSettings(cores=7, gpus=3))
    assert (resource.cores, resource.gpus) == (7, 3)
    assert (resource.entry["cores_per_node"], resource.entry["gpus_per_node"]) == (7, 3)


def test_the_users_own_files_win_and_radicals_are_found(tmp_path):
    own = tmp_path / ".radical" / "pilot" / "configs"
    own.mkdir(parents=True)
    entry = {"cores_per_node": 16, "gpus_per_node": 2, "system_architecture": {"smt": 2}}
    (own / "resource_mine.json").write_text("# a comment\n" + json.dumps({"node": entry}))
    folders = config_folders(home=tmp_path)
    found = find_resource(ResourceSettings(label="mine.node"), folders)
    assert (found.cores, found.gpus) == (32, 2)
    assert find_resource(ResourceSettings(label="ornl.summit"), folders).cores > 0


def test_a_wrong_label_names_the_near_one():
    with pytest.raises(SettingsError, match=r"local\.localhots.*did you mean 'local\.localhost'"):
        find_resource(ResourceSettings(label="local.localhots"))


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "resource_bad.json").write_text("{")
    with pytest.raises(SettingsError, match=r"resource_bad\.json"):
        read_entries([tmp_path])


@pytest.mark.parametrize(("visible", "expected"), [("", 0), ("0,1,3", 3), ("-1", 0), ("GPU-abc", 1)])
def test_visible_devices_are_counted(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == expected


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "slots", "cores_a_slot"),
    [
        ({}, 2, 0, (2, 2, 2), 1),
        ({"cores_per_simulation": 2}, 8, 0, (4, 4, 4), 2),
        ({"cores_per_simulation": 3}, 8, 0, (2, 2, 2), 3),
        ({"cores_per_simulation": 2}, 96, 16, (16, 16, 4), 2),
        ({}, 96, 16, (16, 16, 4), 6),
        ({"md_slots": 12, "ml_slots": 4}, 96, 16, (16, 12, 4), 6),
        ({"md_slots": 12, "ml_slots": 4}, 2, 0, (2, 2, 2), 1),  # a laptop: the stages share the slots in turn
        ({"md_slots": 3}, 8, 0, (8, 3, 4), 1),
    ],
)
def test_a_machine_is_divided_among_slots(asked, cores, gpus, slots, cores_a_slot):
    machine = divide_machine(build_settings({"simulate": {"segment_ns": 1}, "resource": asked}), cores, gpus)
    assert (machine.slots.total, machine.slots.simulate, machine.slots.learn) == slots
    assert machine.cores_per_slot == cores_a_slot
    assert machine.gpus_per_task == (1 if gpus else 0)


def test_trainings_share_the_cores_of_a_node():
    settings = build_settings({"simulate": {"segment_ns": 1}})
    assert divide_machine(settings, 64, 0).cores_per_training == 16  # four latent sizes
    assert divide_machine(settings, 96, 16).cores_per_training == 6  # beside one GPU each
    two_nodes = divide_machine(settings, 128, 0, node_cores=64)
    assert (two_nodes.cores_per_training, two_nodes.cores_per_analysis) == (32, 64)


def test_more_cores_a_simulation_than_there_are_is_refused():
    settings = build_settings({"simulate": {"segment_ns": 1}, "resource": {"cores_per_simulation": 9}})
    with pytest.raises(EntkAppError, match="cores_per_simulation = 9"):
        divide_machine(settings, 8, 0)
