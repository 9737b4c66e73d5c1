"""The command line: the only place that prints. Importing it imports neither TensorFlow, OpenMM nor radical."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entk_app import __version__
from entk_app.errors import CampaignFailed, EntkAppError

DEFAULT_PRESET = "villin-quick"


def main(arguments: Sequence[str] | None = None) -> int:
    """``entk-app``: returns the exit code.

    0: the campaign ended by its own rule; 1: it failed; 2: bad settings or input; 130: interrupted.
    """
    return _run(_build_parser().parse_args(arguments))


def main_run(arguments: Sequence[str] | None = None) -> int:
    """``python app.py``: the same as ``entk-app run``."""
    parser = argparse.ArgumentParser(prog="app.py", description=_RUN_HELP)
    _add_run_options(parser)
    return _run(parser.parse_args(arguments))


_RUN_HELP = (
    "Run a campaign: simulate, train, analyse and restart from outliers until the protein folds or a limit is met."
)

_ACCOUNTING_HELP = (
    "Where the core-hours and GPU-hours of a campaign went, running, finished or dead. Writes RUN/accounting."
)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entk-app", description="Deep-learning-driven adaptive protein folding on RADICAL-EnTK."
    )
    parser.add_argument("--version", action="version", version=f"entk-app {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a campaign", description=_RUN_HELP)
    _add_run_options(run)
    presets = commands.add_parser("presets", help="list the presets")
    presets.set_defaults(function=_list_presets)
    template = commands.add_parser("template", help="print a preset as a commented YAML file of every setting")
    template.add_argument("preset", help="name of a preset")
    template.set_defaults(function=_print_template)
    systems = commands.add_parser("systems", help="list the proteins that are known by name")
    systems.set_defaults(function=_list_systems)
    accounting = commands.add_parser(
        "accounting", help="what a campaign's pilots were used for", description=_ACCOUNTING_HELP
    )
    accounting.add_argument("run", metavar="RUN", type=Path, help="run folder")
    accounting.set_defaults(function=_account)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resource", metavar="LABEL", help="<site>.<key> of a resource file (default local.localhost)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--preset", metavar="NAME", help=f"settings by name (default {DEFAULT_PRESET}); see entk-app presets"
    )
    given.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="YAML file of settings, over the defaults; see entk-app template",
    )
    parser.add_argument("--run-dir", metavar="DIR", type=Path, help="run folder (default runs/<preset or config>-001)")
    parser.add_argument("--seed", metavar="N", help="all random numbers follow from it")
    parser.add_argument("--reference", metavar="FILE", type=Path, help="native structure, a PDB file")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="assignments",
        action="append",
        default=[],
        help="set one setting; repeatable",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    parser.set_defaults(function=_run_campaign)


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.function(options))
    except EntkAppError as error:
        print(f"entk-app: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe has gone (entk-app template x | head): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("entk-app: interrupted", file=sys.stderr)
        return 130


def _list_presets(options: argparse.Namespace) -> int:
    from entk_app.settings import preset_names, read_preset

    for name in preset_names():
        title, _ = read_preset(name)
        print(f"{name:18} {title}")
    return 0


def _print_template(options: argparse.Namespace) -> int:
    from entk_app.settings import render_template

    print(render_template(options.preset), end="")
    return 0


def _list_systems(options: argparse.Namespace) -> int:
    from entk_app.systems.catalogue import CATALOGUE

    for known in CATALOGUE.values():
        print(f"{known.name:12} {known.title}")
        print(f"{'':12} {known.sequence}")
    print(
        "Your own: --set system.name=NAME with system.pdb=FILE or system.sequence=LETTERS, "
        "and --reference FILE if there is one."
    )
    return 0


def _account(options: argparse.Namespace) -> int:
    from rich.console import Console

    from entk_app.accounting_report import account_run, build_tables, list_facts, list_pilots
    from entk_app.layout import RunLayout

    result, paths = account_run(RunLayout(options.run.absolute()))
    console = Console()
    console.print("\n".join(list_pilots(result)), end="\n\n", markup=False, highlight=False, soft_wrap=True)
    for table in build_tables(result, console):
        console.print(table)
        console.print()
    written = f"written: {paths[0].parent}: {', '.join(path.name for path in paths)}"
    console.print("\n".join([*list_facts(result), written]), markup=False, highlight=False, soft_wrap=True)
    return 0


def _run_campaign(options: argparse.Namespace) -> int:
    from rich.console import Console

    from entk_app.settings import build_settings, read_config, read_preset

    if options.config is not None:
        name, layer = options.config.stem, read_config(options.config)
    else:
        name = options.preset or DEFAULT_PRESET
        layer = read_preset(name)[1]
    assignments = list(options.assignments)
    if options.seed is not None:
        assignments.append(f"seed={options.seed}")
    if options.resource is not None:
        assignments.append(f"resource.label={options.resource}")
    named = {} if options.reference is None else {"system": {"reference": str(options.reference)}}
    settings = build_settings(layer, named, assignments=assignments)

    # Heavy imports only now, when the settings are known to be good.
    from entk_app.campaign import Campaign, create_run_folder, divide_machine
    from entk_app.layout import RunLayout
    from entk_app.md import check_platform
    from entk_app.resources import LOCAL, find_resource
    from entk_app.systems import build_system, write_system

    _configure_logging(options.verbose)
    resource = find_resource(settings.resource)
    if resource.label == LOCAL:
        check_platform(settings.simulate.platform)
    machine = divide_machine(settings, resource.cores, resource.gpus, resource.node_cores)
    root = _choose_run_folder(options.run_dir, name)
    layout = RunLayout(root)
    built = build_system(settings, cache=root.parent / ".cache")
    create_run_folder(layout, settings, sys.argv)
    write_system(built, layout)

    console = Console()
    campaign = Campaign(layout, settings, machine)
    slots = machine.slots
    record = built.record
    console.print(
        f"entk-app {__version__}: {record.name}, {record.model}, {record.n_residues} residues, "
        f"{record.n_atoms} particles; "
        f"{resource.label}: {resource.cores} cores, {resource.gpus} GPUs, {slots.simulate} simulations at a time; "
        f"seed {settings.seed}\nrun folder: {root}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for note in _notes(settings, resource, record.has_native, slots):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    return _drive(campaign, resource, console)


def _notes(settings: Any, resource: Any, has_native: bool, slots: Any) -> list[str]:
    """What the user may not expect of a campaign that runs all the same."""
    from entk_app.resources import LOCAL, count_gpus

    notes = []
    if not has_native:
        notes.append("no native structure: no RMSD and no target; restarts are ranked by novelty")
    asked = settings.resource
    if (asked.md_slots or 0) > slots.simulate:
        notes.append(
            f"resource.md_slots = {asked.md_slots}: there are {slots.total} slots, which all stages share in turn"
        )
    if resource.label != LOCAL:
        notes.append(f"{resource.label}: this version has been run on {LOCAL} only")
        return notes
    cores, gpus = len(os.sched_getaffinity(0)), count_gpus()
    if resource.cores > cores or resource.gpus > gpus:
        notes.append(
            f"{resource.cores} cores and {resource.gpus} GPUs are asked for, this machine has {cores} and {gpus}: "
            "tasks will share them"
        )
    return notes


def _drive(campaign: Any, resource: Any, console: Any) -> int:
    """Run on the pilot, and leave a summary whatever happens."""
    from entk_app.pilot import run_on_pilot
    from entk_app.progress import Progress

    failure: EntkAppError | None = None
    with Progress(console, campaign):
        try:
            run_on_pilot(campaign, resource)
        except EntkAppError as error:
            failure = error
        except (Exception, KeyboardInterrupt) as error:
            logging.getLogger(__name__).exception("unexpected")
            campaign.end("failed", f"{type(error).__name__}: {error}")
            failure = CampaignFailed(f"the campaign failed: {type(error).__name__}: {error}")
    summary = campaign.summarise()
    rmsd = "" if summary.min_rmsd_angstrom is None else f", lowest RMSD {summary.min_rmsd_angstrom:.2f} Å"
    console.print(
        f"{summary.stop_reason}: {summary.message}\n"
        f"{summary.n_iterations} iterations, {summary.n_simulations} simulations ({summary.n_restarts} from outliers, "
        f"{summary.n_purged} purged), {summary.n_frames} frames, {summary.total_time_us * 1000:.4g} ns{rmsd}\n"
        + (f"{summary.n_failed_tasks} tasks failed: see {campaign.layout.logs}\n" if summary.n_failed_tasks else "")
        + f"summary: {campaign.layout.summary}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if failure is not None:
        raise failure
    return 0


def _configure_logging(verbose: bool) -> None:
    """Our own logger only: radical wants the root logger without handlers when it is imported."""
    logger, handler = logging.getLogger("entk_app"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _choose_run_folder(asked: Path | None, name: str) -> Path:
    if asked is not None:
        # An unknown user's home (~nobody/x) is left as it is written.
        return Path(os.path.expanduser(asked)).absolute()
    runs = Path.cwd() / "runs"
    number = 1
    while (runs / f"{name}-{number:03d}").exists():
        number += 1
    return runs / f"{name}-{number:03d}"
