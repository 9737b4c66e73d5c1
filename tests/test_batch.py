"""The batch job around this process, from environments as schedulers set them."""

from __future__ import annotations

import time

import pytest

from entk_app.batch import Job, find_end_unix, find_job, parse_end


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": ""}, None),
        (
            {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "96", "SLURM_GPUS_ON_NODE": "16"},
            Job("slurm", "12", 2, 96, 16),
        ),
        ({"SLURM_JOB_ID": "12", "SLURM_NNODES": "1", "SLURM_JOB_GPUS": "4,5"}, Job("slurm", "12", 1, None, 2)),
        ({"PBS_JOBID": "3.head"}, Job("pbs", "3.head")),
        ({"PBS_JOBID": "3.head", "PBS_NODEFILE": "/nowhere/at/all"}, Job("pbs", "3.head")),
        ({"LSB_JOBID": "99"}, Job("lsf", "99")),
        ({"COBALT_JOBID": "1"}, Job("cobalt", "1")),
    ],
)
def test_a_job_is_read_from_its_environment(environment, job):
    assert find_job(environment) == job


@pytest.mark.parametrize(("name", "number"), [("PBS_NODEFILE", "PBS_JOBID"), ("LSB_DJOB_HOSTFILE", "LSB_JOBID")])
def test_nodes_are_the_distinct_hosts_of_the_node_file(tmp_path, name, number):
    hosts = tmp_path / "hosts"
    hosts.write_text("n1\nn1\nn2\nn2\nn3\n")
    assert find_job({number: "5", name: str(hosts)}).nodes == 3


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("1800000000", 1.8e9),
        ("2027-01-15T09:00:00+01:00", 1.8e9),
        ("N/A", None),
        ("Unknown", None),
        ("", None),
    ],
)
def test_the_end_that_slurm_prints_is_read(text, unix):
    assert parse_end(text) == unix


def test_a_time_without_a_zone_is_local():
    assert parse_end(time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(1.8e9))) == 1.8e9


def test_the_end_that_a_script_hands_on_comes_first(tmp_path):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\n[ \"$SLURM_TIME_FORMAT\" = %s ] && echo 1790000000 || echo yesterday\n")
    squeue.chmod(0o755)
    in_job = {"SLURM_JOB_ID": "5", "PATH": str(tmp_path)}
    assert find_end_unix(in_job) == 1.79e9
    assert find_end_unix(in_job | {"SLURM_JOB_END_TIME": "1800000000"}) == 1.8e9
    assert find_end_unix(in_job | {"SLURM_JOB_END_TIME": "1800000000", "ENTK_APP_JOB_END": "1700000000"}) == 1.7e9
    assert find_end_unix({"PATH": str(tmp_path)}) is None


def test_a_scheduler_that_does_not_answer_is_no_end(tmp_path, caplog):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    squeue.chmod(0o755)
    assert find_end_unix({"SLURM_JOB_ID": "5", "PATH": str(tmp_path)}) is None
    assert "squeue does not say" in caplog.text
