"""What tests share: settings of tiny campaigns, in-process campaigns, real pilots with a hard time limit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import open_chromium, skip_without_chromium
from throwaway_slurm import SlurmUnavailable, ThrowawaySlurm, check_available

from entk_app import inprocess
from entk_app.campaign import Campaign
from entk_app.concurrent import make_campaign
from entk_app.inprocess import run_campaign
from entk_app.layout import RunLayout
from entk_app.machine import divide_machine
from entk_app.run_folder import create_run_folder
from entk_app.settings import Settings, build_settings, read_preset
from entk_app.systems import build_system, write_system
from entk_app.tasks import run_task

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a background job of a script: what the tests start would not hear a Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # As under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

CHECKOUT = Path(__file__).resolve().parent.parent

#: A structure of BBA may lie beside the checkout; it is never part of it.
BBA_REFERENCE = CHECKOUT.parent / "shared" / "data" / "1fme.pdb"

TINY_CALPHA = (
    "simulate.segment_ns=0.06",
    "train.epochs=2",
    "train.latent_dims=[3,4]",
    "steering.min_frames=15",
    "steering.window=10",
    "analyse.max_outliers=8",
    "stop.target_rmsd_angstrom=0.1",
    "stop.max_iterations=3",
)


#: Of in-process campaigns whose test names none; --coupling.
_coupling = "staged"


def pytest_addoption(parser: pytest.Parser) -> None:
    how = "coupling of in-process campaigns whose test names none"
    parser.addoption("--coupling", choices=("staged", "concurrent"), default="staged", help=how)


def pytest_configure(config: pytest.Config) -> None:
    global _coupling
    _coupling = config.getoption("--coupling")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about the staged chain, or has a concurrent campaign of its own."""
    if config.getoption("--coupling") == "staged":
        return
    for item in items:
        marker = item.get_closest_marker("staged")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"of the staged coupling: {marker.args[0]}"))


def tiny_settings(*assignments: str, preset: str = "villin-quick") -> Settings:
    return build_settings(read_preset(preset)[1], assignments=[*TINY_CALPHA, f"coupling={_coupling}", *assignments])


def learned(number: int) -> int:
    """The iteration of the n-th learning of a campaign without GPUs, n from 1.

    In the concurrent coupling the initial phase has a number of its own.
    """
    return number + (_coupling == "concurrent")


def prepare(root: Path, settings: Settings, cores: int = 2, gpus: int = 0) -> Campaign:
    layout = RunLayout(root)
    built = build_system(settings, cache=root.parent / ".cache")
    create_run_folder(layout, settings, ["test"]).release()
    write_system(built, layout)
    return make_campaign(layout, settings, divide_machine(settings, cores, gpus, allow_cpu=True))


@pytest.fixture(scope="session")
def tiny_campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A finished in-process campaign: calpha villin, 3 iterations, 3 slots."""
    campaign = prepare(tmp_path_factory.mktemp("tiny") / "run", tiny_settings(), cores=3)
    run_campaign(campaign)
    return campaign


class Killed(BaseException):
    """As a SIGKILL does, it goes past everything that catches errors."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the n-th task from now on, and with it the launcher, die before it has published anything."""

    def arm(count: int) -> None:
        left = [count]

        def run(kind: str, root: Path, order: Path) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            run_task(kind, root, order)

        monkeypatch.setattr(inprocess, "run_task", run)

    return arm


def collect_logs(folder: Path, n_lines: int = 15) -> str:
    """The last lines of every log that says something, for the message of a failed test."""
    shown = []
    for path in sorted([*folder.rglob("*.err"), *folder.rglob("*.log"), *folder.rglob("*.out")]):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            shown.append(f"== {path}\n" + "\n".join(lines[-n_lines:]))
    return "\n".join(shown)[-20_000:]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium."""
    skip_without_chromium()
    with open_chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="session")
def slurm() -> Iterator[ThrowawaySlurm]:
    """A real Slurm of one node that claims to be a DGX-2; tests leave it without jobs."""
    with _slurm_or_skip(n_nodes=1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def two_node_slurm() -> Iterator[ThrowawaySlurm]:
    """The same with two such nodes."""
    with _slurm_or_skip(n_nodes=2) as cluster:
        yield cluster


@contextmanager
def _slurm_or_skip(n_nodes: int) -> Iterator[ThrowawaySlurm]:
    # Where Slurm is meant to be there, as in .ci/run, its absence must not pass for success.
    if not os.environ.get("ENTK_APP_REQUIRE_SLURM"):
        try:
            check_available()
        except SlurmUnavailable as reason:
            pytest.skip(f"no throw-away Slurm: {reason}")
    with ThrowawaySlurm.started(n_nodes=n_nodes) as cluster:
        yield cluster
