"""What RADICAL-Pilot's own code makes of the environment of a PBS or LSF job.

Neither scheduler can be had here: their environment is faked, after the format that each documents.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Arguments: name of the resource manager, JSON of the agent's and of the resource's configuration. Prints JSON.
PARSE = """
import json, sys
from unittest.mock import Mock
import radical.utils as ru
from radical.pilot.agent.resource_manager.base import ResourceManager
kind = ResourceManager.get_manager(sys.argv[1])
assert kind.batch_started()
manager = kind.__new__(kind)
manager._cfg, manager._rcfg = (ru.Config(from_dict=json.loads(text)) for text in sys.argv[2:])
manager._log = Mock()
info = manager._init_from_scratch()
info.verify()
print(json.dumps([[node["name"], len(node["cores"]), len(node["gpus"])] for node in info.node_list]))
"""

#: `qsub -l select=2:ncpus=96:ngpus=16`, as `qstat -f` prints it: long values go on in the next line.
QSTAT = """Job Id: 7.server
    Job_Name = entk-app
    job_state = R
    exec_host = node1/0*96+node2/0*96
    exec_vnode = (node1:ncpus=96{more})+(node2:ncpus=
\t96{more})
    Hold_Types = n
"""


def parse(folder: Path, name: str, variables: dict[str, str], nodes: int, threads: int, gpus: int, smt: int) -> list:
    """Node list (name, hardware threads, GPUs) of a pilot on so many nodes of so many threads and GPUs."""
    agent = {
        "nodes": nodes, "cores": nodes * threads, "gpus": nodes * gpus, "cores_per_node": threads,
        "gpus_per_node": gpus, "backup_nodes": 0, "lfs_size_per_node": 0, "lfs_path_per_node": "/tmp",
    }  # fmt: skip
    entry = {"system_architecture": {"smt": smt}, "n_partitions": 1, "launch_methods": {"order": ["MPIRUN"]}}
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RADICAL_BASE": str(folder),
        "RADICAL_UTILS_NTPHOST": ".",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", PARSE, name, json.dumps(agent), json.dumps(entry)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_nodes(folder: Path, *lines: str) -> str:
    path = folder / "nodes"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_qstat(folder: Path, text: str) -> None:
    (folder / "answer").write_text(text, encoding="utf-8")
    (folder / "qstat").write_text(f'#!/bin/sh\n[ "$*" = "-f 7.server" ] && cat {folder}/answer\n', encoding="utf-8")
    (folder / "qstat").chmod(0o755)


def test_pbspro_reads_the_nodes_from_qstat(tmp_path: Path):
    write_qstat(tmp_path, QSTAT.format(more=""))
    variables = {"PBS_JOBID": "7.server", "PBS_NODEFILE": write_nodes(tmp_path, "node1", "node2")}
    assert parse(tmp_path, "PBSPRO", variables, 2, 96, 16, smt=2) == [["node1", 96, 16], ["node2", 96, 16]]


@pytest.mark.parametrize("more", [":ngpus=16", ":mem=1048576kb:ngpus=16"])
def test_pbspro_falls_back_on_the_node_file_when_qstat_names_gpus(tmp_path: Path, more: str):
    # RADICAL-Pilot's parser takes nothing but ncpus in a vnode; then the node file, one line a node, has to do.
    write_qstat(tmp_path, QSTAT.format(more=more))
    variables = {"PBS_JOBID": "7.server", "PBS_NODEFILE": write_nodes(tmp_path, "node1", "node2")}
    assert parse(tmp_path, "PBSPRO", variables, 2, 48, 16, smt=1) == [["node1", 48, 16], ["node2", 48, 16]]


def test_pbspro_counts_hardware_threads_twice_in_a_node_file(tmp_path: Path):
    # A fault of RADICAL-Pilot: entries for PBS say cores_per_node in hardware threads and leave smt at 1.
    write_qstat(tmp_path, QSTAT.format(more=":ngpus=16"))
    variables = {"PBS_JOBID": "7.server", "PBS_NODEFILE": write_nodes(tmp_path, "node1")}
    assert parse(tmp_path, "PBSPRO", variables, 1, 96, 16, smt=2) == [["node1", 192, 16]]


def test_torque_counts_the_lines_of_its_node_file(tmp_path: Path):
    variables = {"PBS_JOBID": "7.server", "PBS_NODEFILE": write_nodes(tmp_path, *["node1"] * 48, *["node2"] * 48)}
    assert parse(tmp_path, "TORQUE", variables, 2, 48, 16, smt=1) == [["node1", 48, 16], ["node2", 48, 16]]


def test_lsf_leaves_the_launch_node_out_and_counts_slots_as_cores(tmp_path: Path):
    hosts = write_nodes(tmp_path, "batch1", *["node1"] * 42, *["node2"] * 42)
    variables = {"LSB_JOBID": "7", "LSB_DJOB_HOSTFILE": hosts}
    assert parse(tmp_path, "LSF", variables, 2, 168, 6, smt=4) == [["node1", 168, 6], ["node2", 168, 6]]
