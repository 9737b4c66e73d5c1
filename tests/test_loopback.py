"""radical's sockets on one node: bound to loopback in every Python process that gets the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from entk_app import loopback

BRIDGE = """
import radical.utils as ru, zmq
sock = zmq.Context().socket(zmq.PUB)
url = ru.zmq.utils.zmq_bind(sock)
print(sock.getsockopt(zmq.LAST_ENDPOINT).decode(), url)
"""


@pytest.fixture
def environment(tmp_path):
    # In a process of its own: zmq of the tests stays as it is.
    script = (
        "import json, os, sys; from pathlib import Path; from entk_app import loopback\n"
        "env = dict(os.environ); loopback.prepare(Path(sys.argv[1]), env); print(json.dumps(env))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "hook")], capture_output=True, check=True)
    return json.loads(done.stdout)


def run(script, environment, cwd):
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_bridge_of_radical_is_bound_to_loopback_and_says_so(tmp_path, environment):
    bound, told = run(BRIDGE, environment, tmp_path)
    assert bound.startswith("tcp://127.0.0.1:")
    assert told == bound
    bound, _ = run(BRIDGE, dict(os.environ), tmp_path)
    assert bound.startswith("tcp://0.0.0.0:"), "radical binds differently: this hook is not needed any more"


def test_other_addresses_are_left_alone(tmp_path, environment):
    script = (
        "import zmq\nsock = zmq.Context().socket(zmq.PUB)\nsock.bind('tcp://127.0.0.2:*')\nsock.bind('inproc://x')\n"
        "print(sock.getsockopt(zmq.LAST_ENDPOINT).decode())"
    )
    assert run(script, environment, tmp_path) == ["inproc://x"]


def test_a_process_without_zmq_does_not_import_it(tmp_path, environment):
    assert run("import sys; print('zmq' in sys.modules)", environment, tmp_path) == ["False"]


def test_the_sites_own_sitecustomize_still_runs(tmp_path, environment):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.own = 'here'")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path / "site")
    assert run("import sys; print(sys.own)", environment, tmp_path) == ["here"]


def test_the_hook_comes_once_and_first(tmp_path):
    environment = {"PYTHONPATH": f"/a{os.pathsep}/b"}
    before = list(sys.meta_path)
    try:
        for _ in range(2):
            loopback.prepare(tmp_path / "hook", environment)
    finally:
        sys.meta_path[:] = before
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "hook"), "/a", "/b"]
    assert environment["RADICAL_DEFAULT_IFACE"] == "lo"
