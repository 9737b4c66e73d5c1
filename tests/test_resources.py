"""Resource files: every one is read, the machine is found, wrong labels name the near ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import CHECKOUT

from entk_app.errors import SettingsError
from entk_app.resources import check_presence, config_folders, count_gpus, find_resource, keep_resource, read_entries
from entk_app.settings import ResourceSettings


def test_local_localhost_is_this_machine():
    resource = find_resource(ResourceSettings())
    assert resource.cores == len(os.sched_getaffinity(0))
    assert resource.entry["cores_per_node"] == resource.cores
    assert resource.source.parent.name == "resource_configs"


EMULATED = "local.dgx2_emulated"


def test_a_part_of_a_node_can_be_asked_for():
    resource = find_resource(ResourceSettings(label=EMULATED, cores=8, gpus=3))
    assert (resource.cores, resource.gpus, resource.nodes) == (8, 3, 1)
    # RADICAL-Pilot is told of a node of that size; it counts two threads a core.
    assert (resource.entry["cores_per_node"], resource.entry["gpus_per_node"]) == (4, 3)


@pytest.mark.parametrize("label", ["ornl.dgx2", EMULATED])
def test_a_dgx2_is_one_node_of_16_gpus(label):
    resource = find_resource(ResourceSettings(label=label))
    assert (resource.nodes, resource.node_cores, resource.node_gpus) == (1, 96, 16)
    assert (resource.cores, resource.gpus, resource.schema) == (96, 16, "local")
    assert resource.is_emulated == (label == EMULATED)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"label": "ornl.dgx2", "gpus": 17}, "resource.gpus = 17: ornl.dgx2 has 16 GPUs"),
        ({"label": "ornl.dgx2", "cores": 97}, "resource.cores = 97: ornl.dgx2 has 96 cores"),
        ({"label": "ornl.dgx2", "nodes": 2}, "resource.nodes = 2: ornl.dgx2 is one node"),
        ({"label": "local.localhost", "gpus": 1000}, "resource.gpus = 1000: local.localhost has"),
        ({"label": "local.localhost", "cores": 10_000}, "resource.cores = 10000: local.localhost has"),
        ({"label": "slurm.cluster"}, "resource.cores_per_node: resource_slurm.json leaves open"),
        (
            {"label": "slurm.cluster", "cores_per_node": 8, "nodes": 2, "cores": 17},
            "2 nodes of slurm.cluster have 16 cores",
        ),
        ({"label": "ornl.dgx2", "gpus_per_node": 17}, "resource.gpus_per_node = 17: a node of ornl.dgx2 has 16"),
        ({"label": "ornl.dgx2", "access_schema": "ssh"}, "resource.access_schema = 'ssh': ornl.dgx2 has local, slurm"),
        (
            {"label": "slurm.cluster", "cores_per_node": 8, "gpus_per_node": 4, "sims_per_gpu": 2},
            "resource.sims_per_gpu = 2: slurm.cluster launches tasks with SRUN, which gives out whole GPUs only",
        ),
        ({"label": EMULATED, "submit": True}, "--submit: local.dgx2_emulated has no schema for a batch system"),
    ],
)
def test_what_a_resource_does_not_have_is_refused(asked, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        find_resource(ResourceSettings(**asked), environment={})


@pytest.mark.parametrize(
    ("asked", "nodes", "cores", "gpus"),
    [
        ({"nodes": 3}, 3, 192, 12),
        ({"gpus": 9}, 3, 192, 9),
        ({"cores": 65}, 2, 65, 8),
        ({}, 1, 64, 4),
    ],
)
def test_a_generic_cluster_is_filled_in(asked, nodes, cores, gpus):
    settings = ResourceSettings(label="slurm.cluster", cores_per_node=64, gpus_per_node=4, submit=True, **asked)
    resource = find_resource(settings, environment={})
    assert (resource.nodes, resource.cores, resource.gpus) == (nodes, cores, gpus)
    assert (resource.schema, resource.manager, resource.launcher) == ("batch", "SLURM", "SRUN")
    assert resource.places_devices


def test_inside_a_slurm_job_the_node_is_the_jobs():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "96", "SLURM_GPUS_ON_NODE": "16"}
    resource = find_resource(ResourceSettings(label="slurm.cluster"), environment=job)
    assert (resource.nodes, resource.cores, resource.gpus) == (2, 192, 32)
    check_presence(resource, job)
    more = find_resource(ResourceSettings(label="slurm.cluster", gpus_per_node=20), environment=job)
    with pytest.raises(SettingsError, match="20 GPUs a node: slurm job 7 has 16"):
        check_presence(more, job)
    with pytest.raises(SettingsError, match="resource.nodes = 3: slurm job 7 has 2"):
        check_presence(find_resource(ResourceSettings(label="slurm.cluster", nodes=3), environment=job), job)


def test_submit_takes_the_schema_that_queues():
    assert find_resource(ResourceSettings(label="ornl.dgx2", submit=True)).schema == "slurm"
    assert find_resource(ResourceSettings(label="ornl.dgx2")).schema == "local"


@pytest.mark.parametrize(
    ("asked", "environment", "words"),
    [
        ({"label": "slurm.cluster", "cores_per_node": 8}, {}, "this is not inside a slurm job"),
        ({"label": "pbs.cluster", "cores_per_node": 8}, {}, "this is not inside a pbs job"),
        ({"label": "lsf.cluster", "cores_per_node": 8}, {"SLURM_JOB_ID": ""}, "this is not inside a lsf job"),
        ({"label": "ornl.dgx2", "submit": True}, {"SLURM_JOB_ID": "5"}, "this is inside slurm job 5"),
    ],
)
def test_a_resource_that_is_not_here_is_refused_with_what_to_do(asked, environment, words):
    resource = find_resource(ResourceSettings(**asked), environment=environment)
    with pytest.raises(SettingsError, match=re.escape(words)):
        check_presence(resource, environment)


def test_a_real_node_must_be_as_large_as_it_says(monkeypatch):
    resource = find_resource(ResourceSettings(label="ornl.dgx2"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(16))))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))
    check_presence(resource, {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(SettingsError, match="wants 96 cores and 16 GPUs, this machine has 96 and 2.*--submit"):
        check_presence(resource, {})


def test_a_job_is_believed_what_it_says_of_its_node(monkeypatch):
    resource = find_resource(ResourceSettings(label="ornl.dgx2"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    job = {"SLURM_JOB_ID": "5", "SLURM_CPUS_ON_NODE": "96", "SLURM_GPUS_ON_NODE": "16"}
    check_presence(resource, job)
    with pytest.raises(SettingsError, match="wants 96 cores and 16 GPUs, this machine has 2"):
        check_presence(resource, job | {"SLURM_GPUS_ON_NODE": "8"})


def test_radical_pilot_reads_every_file(tmp_path):
    """RADICAL-Pilot's own loader and type checks, in a process of its own: it reads its environment at import."""
    configs = tmp_path / ".radical" / "pilot" / "configs"
    configs.mkdir(parents=True)
    files = sorted((CHECKOUT / "resource_configs").glob("resource_*.json"))
    for path in files:
        shutil.copy(path, configs)
    labels = [f"{path.stem.removeprefix('resource_')}.{key}" for path in files for key in json.loads(path.read_text())]
    code = """if True:
        import json, sys
        import radical.utils as ru
        import radical.pilot as rp
        from radical.pilot.resource_config import ResourceConfig
        read = {}
        for label in sys.argv[1:]:
            site, key = label.split('.', 1)
            entry = ru.Config('radical.pilot.resource', name=site, expand=False)[key].as_dict()
            for schema in entry['schemas']:
                config = ResourceConfig(from_dict=entry)
                ru.dict_merge(config, config['schemas'][schema], ru.OVERWRITE)
                config.verify()
                from radical.pilot.agent.resource_manager import ResourceManager
                assert ResourceManager.get_manager(config['resource_manager']) is not None
                read[f'{label}:{schema}'] = [config.cores_per_node, config.gpus_per_node, config.job_manager_endpoint]
        print(json.dumps(read))
    """
    environment = {**os.environ, "RADICAL_CONFIG_USER_DIR": str(tmp_path), "RADICAL_BASE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *labels],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert len(labels) >= 6
    assert read["ornl.dgx2:slurm"] == [48, 16, "slurm://localhost/"]
    assert read["local.dgx2_emulated:local"] == [48, 16, "fork://localhost/"]
    assert read["lsf.cluster:batch"][2] == "lsf://localhost/"


def test_a_wheel_carries_every_file(tmp_path):
    pytest.importorskip("setuptools", reason="a wheel is built without the network")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    for name in ("entk_app", "resource_configs"):
        shutil.copytree(CHECKOUT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command, str(copy)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("entk_app/resource_configs/")}
    assert names == {f"entk_app/resource_configs/{path.name}" for path in (CHECKOUT / "resource_configs").iterdir()}


def test_every_shipped_label_is_found_or_refused_in_words():
    for label in read_entries(config_folders()):
        settings = ResourceSettings(label=label, cores_per_node=1)
        try:
            resource = find_resource(settings, environment={})
        except SettingsError as error:
            assert label in str(error)
        else:
            assert resource.cores >= 1


def test_a_folder_given_wins_and_must_hold_something(tmp_path):
    with pytest.raises(SettingsError, match="there is no resource_<site>.json in it"):
        config_folders(given=tmp_path)
    (tmp_path / "resource_ornl.json").write_text(json.dumps({"dgx2": {"cores_per_node": 4, "gpus_per_node": 2}}))
    resource = find_resource(ResourceSettings(label="ornl.dgx2"), config_folders(given=tmp_path))
    assert (resource.cores, resource.source.parent) == (4, tmp_path)


def test_the_users_own_files_win_and_radicals_are_found(tmp_path):
    own = tmp_path / ".radical" / "pilot" / "configs"
    own.mkdir(parents=True)
    entry = {"cores_per_node": 16, "gpus_per_node": 2, "system_architecture": {"smt": 2}}
    (own / "resource_mine.json").write_text("# a comment\n" + json.dumps({"node": entry}))
    folders = config_folders(home=tmp_path)
    found = find_resource(ResourceSettings(label="mine.node"), folders)
    assert (found.cores, found.gpus) == (32, 2)
    assert find_resource(ResourceSettings(label="ornl.summit"), folders).cores > 0


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("local.localhots", r"did you mean 'local\.localhost'"),
        ("orln.dgx2", r"near: .*ornl\.dgx2"),
        ("ornl.dgx", r"near: .*ornl\.dgx2"),
        ("nowhere.atall", "files exist for the sites"),
    ],
)
def test_a_wrong_label_names_the_near_ones(label, words):
    with pytest.raises(SettingsError, match=words):
        find_resource(ResourceSettings(label=label))


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "resource_bad.json").write_text("{")
    with pytest.raises(SettingsError, match=r"resource_bad\.json"):
        read_entries([tmp_path])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "it must hold {name: entry}"),
        ('{"a": null}', "'a' is not an entry"),
        ('{"a": {"cores_per_node": "many"}}', "cores_per_node = 'many' must be of type int"),
        ('{"a": {"cores_per_node": 4, "system_architecture": "x"}}', "system_architecture = 'x' must be of type dict"),
        ('{"a": {"cores_per_node": 4, "system_architecture": {"smt": "two"}}}', "smt = 'two'"),
        ('{"a": {"cores_per_node": 4, "resource_manager": ["FORK"]}}', "resource_manager = ['FORK'] must be of type"),
    ],
)
def test_odd_content_of_a_file_is_a_sentence(tmp_path, content, words):
    (tmp_path / "resource_bad.json").write_text(content)
    with pytest.raises(SettingsError, match=re.escape(words)):
        find_resource(ResourceSettings(label="bad.a"), [tmp_path])


def test_null_in_a_file_is_as_if_it_were_not_there(tmp_path):
    (tmp_path / "resource_ok.json").write_text('{"a": {"cores_per_node": 4, "gpus_per_node": null, "schemas": null}}')
    resource = find_resource(ResourceSettings(label="ok.a"), [tmp_path])
    assert (resource.cores, resource.gpus, resource.manager) == (4, 0, "FORK")


def test_cores_that_radical_blocks_are_not_asked_for(tmp_path):
    entry = {
        "cores_per_node": 64, "gpus_per_node": 8, "resource_manager": "SLURM",
        "system_architecture": {"smt": 2, "blocked_cores": [0, 8, 16, 24], "blocked_gpus": [7]},
    }  # fmt: skip
    (tmp_path / "resource_x.json").write_text(json.dumps({"y": entry}))
    resource = find_resource(ResourceSettings(label="x.y"), [tmp_path], environment={})
    assert (resource.nodes, resource.cores, resource.gpus) == (1, 124, 7)
    assert (resource.entry["cores_per_node"], resource.entry["gpus_per_node"]) == (64, 8)


def test_a_campaigns_resource_is_kept_with_it(tmp_path):
    entry = {"cores_per_node": 4, "gpus_per_node": 2, "agent_config": "lean"}
    source, kept = tmp_path / "mine", tmp_path / "run"
    source.mkdir()
    (source / "resource_my.json").write_text(json.dumps({"node": entry, "other": {}}))
    (source / "agent_lean.json").write_text("{}")
    resource = find_resource(ResourceSettings(label="my.node", gpus=1), [source])
    keep_resource(resource, kept)
    assert json.loads((kept / "resource_my.json").read_text()) == {"node": entry}
    assert (kept / "agent_lean.json").exists()
    again = find_resource(ResourceSettings(label="my.node"), [kept])
    assert again.gpus == 2
    keep_resource(again, kept)  # already there


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", 0), ("0,1,3", 3), ("-1", 0), ("GPU-abc", 1), ("MIG-1,MIG-2", 2), ("NoDevFiles", 0)],
)
def test_visible_devices_are_counted(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == expected
