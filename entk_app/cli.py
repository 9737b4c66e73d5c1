"""The command line: the only place that prints. Importing it imports neither TensorFlow, OpenMM nor radical."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from entk_app import __version__
from entk_app.errors import CampaignFailed, EntkAppError, Interrupted, LockLost, RecordError, SettingsError

DEFAULT_PRESET = "villin-quick"


def command() -> NoReturn:
    """The console script: ends the process also where radical's threads would not let it."""
    from entk_app.processes import leave

    leave(main())


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

_CHECK_HELP = (
    "Try a campaign without a pilot: settings, system, resource, speed, time, disk and memory. Takes the options of "
    "entk-app run. Exit code 0 if it can run, 2 if it cannot."
)

_REPORT_HELP = (
    "Write RUN/report: one page with the paper's tables and figures of a campaign, running, finished or dead, that "
    "opens without a network, and every figure as SVG, PNG and CSV. A run writes it at its end."
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
    check = commands.add_parser("check", help="try all of a campaign but its pilot", description=_CHECK_HELP)
    _add_run_options(check)
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(function=_check_campaign)
    presets = commands.add_parser("presets", help="list the presets")
    presets.set_defaults(function=_list_presets)
    template = commands.add_parser("template", help="print a preset as a commented YAML file of every setting")
    template.add_argument("preset", help="name of a preset")
    template.set_defaults(function=_print_template)
    _add_job_options(commands.add_parser("job", help="write a batch script for a resource", description=_JOB_HELP))
    systems = commands.add_parser("systems", help="list the proteins that are known by name")
    systems.set_defaults(function=_list_systems)
    resources = commands.add_parser("resources", help="list the resources, or show one")
    resources.add_argument("label", nargs="?", help="<site>.<key>, or a site")
    _add_resource_folder(resources)
    resources.set_defaults(function=_show_resources)
    finished = commands.add_parser(
        "finished",
        help="exit code 0 if the campaign of a run folder is over, 1 if --resume would go on with it",
    )
    finished.add_argument("run", metavar="RUN", type=Path, help="run folder")
    finished.set_defaults(function=_tell_finished)
    report = commands.add_parser("report", help="the paper's tables and figures as one page", description=_REPORT_HELP)
    report.add_argument("run", metavar="RUN", type=Path, help="run folder")
    report.set_defaults(function=_report)
    accounting = commands.add_parser(
        "accounting", help="what a campaign's pilots were used for", description=_ACCOUNTING_HELP
    )
    accounting.add_argument("run", metavar="RUN", type=Path, help="run folder")
    accounting.set_defaults(function=_account)
    verify = commands.add_parser(
        "verify", help="reread all that a campaign kept: what is missing, truncated, altered", description=_VERIFY_HELP
    )
    verify.add_argument("run", metavar="RUN", type=Path, help="run folder")
    verify.set_defaults(function=_verify)
    _add_export_options(commands.add_parser("export", help="frames for other programs", description=_EXPORT_HELP))
    _add_status_options(commands.add_parser("status", help="where a campaign stands", description=_STATUS_HELP))
    _add_compare_options(commands.add_parser("compare", help="does the steering help?", description=_COMPARE_HELP))
    return parser


_VERIFY_HELP = (
    "Reread every file of a campaign and compare it with the checksum in its record, and the records with one another. "
    "Changes nothing. Exit code 0: all is as it was published; 1: it is not."
)


_STATUS_HELP = (
    "One screen of a running, dead or finished campaign, from what is on disk: it works from any shell or node."
)


def _add_status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="redraw every 2 s until it ends; Ctrl-C leaves it running")
    how.add_argument("--json", action="store_true", help="for scripts: every number, see docs/status.md")
    parser.set_defaults(function=_show_status)


_EXPORT_HELP = (
    "Frames of a campaign for other programs. The name of the file says as what: .pdb (one model a frame) or .xtc "
    "with a topology for VMD and PyMOL, .parquet or .csv for the table of frames. Frames are chosen where every "
    "condition that is given holds; without one all are."
)


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="ends in .pdb, .xtc, .parquet or .csv"
    )
    chosen = parser.add_argument_group("which frames")
    chosen.add_argument("--best", metavar="N", type=int, help="the N with the lowest RMSD, lowest first")
    by_rmsd = chosen.add_mutually_exclusive_group()
    by_rmsd.add_argument("--rmsd-below", metavar="X", type=float, help="RMSD of at most X Å")
    by_rmsd.add_argument("--rmsd", metavar="A:B", help="RMSD of more than A and at most B Å; A or B may be left out")
    by_rmsd.add_argument(
        "--class", dest="fold_class", choices=("folded", "partial", "unfolded"), help="by the system's RMSD limits"
    )
    chosen.add_argument(
        "--outliers",
        metavar="ITERATION",
        nargs="?",
        const="last",
        help="outliers of the last analysis, of that of an iteration, or of any",
    )
    chosen.add_argument("--simulation", metavar="N", type=int, action="append", help="of this simulation; repeatable")
    chosen.add_argument("--segment", metavar="N", type=int, action="append", help="of these segments; repeatable")
    chosen.add_argument("--every", metavar="K", type=int, default=1, help="of each simulation every K-th frame")
    parser.add_argument("--latent", metavar="D", type=int, help="coordinates of the model of this latent size")
    parser.add_argument(
        "--as-simulated", action="store_true", help="structures are not superposed on the native structure"
    )
    parser.add_argument(
        "--solvent", action="store_true", help="structures of a system in explicit solvent: with its water and ions"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    parser.set_defaults(function=_export)


_COMPARE_HELP = (
    "Runs that differ in what steers them: how much less simulation each way needs than none, to come within the "
    "target of the native structure and to see states. Runs of one kind with different seeds are replicas. Writes "
    "compare.csv (a row a run), compare.json and figures."
)


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="two or more run folders")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, help="where to write (default compare-001, the next free number)"
    )
    parser.add_argument("--target", metavar="X", type=float, help="RMSD in Å (default: that of the runs' settings)")
    parser.add_argument(
        "--states", action="store_true", help="compare states seen, too; done anyhow without a native structure"
    )
    parser.add_argument("--n-states", metavar="K", type=int, default=100, help="divide all frames into K (default 100)")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="of resampling and states (default 1)")
    parser.add_argument("--force", action="store_true", help="overwrite a comparison that is there")
    parser.set_defaults(function=_compare)


_JOB_HELP = (
    "Write a batch script that runs a campaign in its allocation, job after job until it is finished. "
    "Options of entk-app run follow after --."
)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resource", metavar="LABEL", required=True, help="<site>.<key> of a resource file")
    parser.add_argument("--scheduler", choices=("slurm", "pbs", "lsf"), help="default: as the resource file says")
    parser.add_argument("--walltime-min", metavar="N", type=int, default=60, help="of each job (default 60)")
    parser.add_argument("--nodes", metavar="N", type=int, help="default: as many as the options ask for, else 1")
    parser.add_argument("--queue", metavar="Q", help="queue or partition (default: the scheduler's)")
    parser.add_argument("--project", metavar="P", help="project or account that is charged")
    parser.add_argument("--output", metavar="FILE", type=Path, help="script to write (default: print it; Slurm only)")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="of entk-app run")
    parser.set_defaults(function=_write_job)


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
    given.add_argument(
        "--resume", metavar="RUN", type=Path, help="go on with the campaign of a run folder, however it ended"
    )
    parser.add_argument("--run-dir", metavar="DIR", type=Path, help="run folder (default runs/<preset or config>-001)")
    parser.add_argument("--seed", metavar="N", help="all random numbers follow from it")
    parser.add_argument(
        "--steering",
        metavar="METHOD",
        help="cvae (the default), rmsd-only or random: what restarts come from; none: independent simulations, the "
        "control to compare with (--set steering.method=...)",
    )
    parser.add_argument("--reference", metavar="FILE", type=Path, help="native structure, a PDB file")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="assignments",
        action="append",
        default=[],
        help="set one setting; repeatable",
    )
    parser.add_argument("--submit", action="store_true", help="queue the pilot as a batch job from here (a login node)")
    parser.add_argument(
        "--budget-gpu-hours", metavar="H", help="end in order before all pilots together have used so much"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the pilot, the placement and the command lines; start nothing"
    )
    _add_resource_folder(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    parser.set_defaults(function=_run_campaign)


def _add_resource_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resource-configs", metavar="DIR", type=Path, help="folder with resource_<site>.json files of your own"
    )


def _run(options: argparse.Namespace) -> int:
    try:
        try:
            Path.cwd()
        except OSError as error:
            raise SettingsError(f"the working directory cannot be used ({error.strerror}): change to another") from None
        return int(options.function(options))
    except EntkAppError as error:
        print(f"entk-app: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe has gone (entk-app template x | head): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from entk_app.storage import explain

        told = explain(error, Path.cwd() if error.filename is None else Path(error.filename))
        if told is None:
            raise
        print(f"entk-app: {told}, then go on with --resume RUN", file=sys.stderr)
        return 1
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


def _show_resources(options: argparse.Namespace) -> int:
    import json

    from entk_app.resources import config_folders, get_entry, read_entries

    entries = read_entries(config_folders(given=options.resource_configs))
    label = options.label
    if label is not None and (label in entries or "." in label):
        entry, source = get_entry(label, entries)
        print(f"# {label}, from {source}\n{json.dumps(entry, indent=4)}")
        return 0
    if label is not None and not any(name.startswith(f"{label}.") for name in entries):
        get_entry(label, entries)
    own = {path.parent for _, path in entries.values() if path.parent.name == "resource_configs"}
    print(f"{'label':28} {'cores':>5} {'GPUs':>5}  {'manager':8} description")
    for name in sorted(entries, key=lambda name: (entries[name][1].parent not in own, name)):
        entry, _ = entries[name]
        if label is None or name.startswith(f"{label}."):
            sizes = [str(entry.get(key) or "-") for key in ("cores_per_node", "gpus_per_node")]
            manager, text = str(entry.get("resource_manager") or "-"), str(entry.get("description") or "")
            print(f"{name:28} {sizes[0]:>5} {sizes[1]:>5}  {manager:8} {text[:100]}")
    print("Of a node; -: given by the job or the settings. entk-app resources LABEL shows one.")
    return 0


def _tell_finished(options: argparse.Namespace) -> int:
    from entk_app.layout import RunLayout
    from entk_app.records import Decision, read_lines
    from entk_app.run_folder import is_finished, read_settings

    layout = RunLayout(options.run)
    read_settings(layout)
    decisions = list(read_lines(Decision, layout.decisions))
    last = f"{decisions[-1].stop_reason}: {decisions[-1].reason}" if decisions and decisions[-1].stop_reason else ""
    print(last or "it was cut off")
    return 0 if is_finished(decisions) else 1


def _show_status(options: argparse.Namespace) -> int:
    from entk_app.layout import RunLayout
    from entk_app.run_reader import RunReader
    from entk_app.status import read_status

    reader = RunReader(RunLayout(_as_folder(options.run)))
    if options.json:
        print(read_status(reader).model_dump_json(indent=2))
        return 0
    from rich.console import Console

    from entk_app.status_view import show_status, watch_status

    (watch_status if options.watch else show_status)(Console(), reader)
    return 0


def _export(options: argparse.Namespace) -> int:
    from entk_app.export import build_selection, export_frames, open_run
    from entk_app.layout import RunLayout

    layout = RunLayout(_as_folder(options.run))
    run = open_run(layout)
    selection, words = build_selection(
        layout,
        run,
        rmsd=options.rmsd,
        rmsd_below=options.rmsd_below,
        fold_class=options.fold_class,
        outliers=options.outliers,
        simulations=options.simulation,
        segments=options.segment,
        every=options.every,
        best=options.best,
    )
    result = export_frames(
        layout,
        run,
        selection,
        _as_folder(options.output),
        latent_dim=options.latent,
        superpose=not options.as_simulated,
        solvent=options.solvent,
        force=options.force,
    )
    rmsd = "" if result.rmsd_range is None else ", RMSD {:.2f} to {:.2f} Å".format(*result.rmsd_range)
    print(f"{result.n_frames} frames ({words}){rmsd}")
    print(f"written: {', '.join(map(str, result.paths))}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from entk_app.compare import compare_runs
    from entk_app.compare_files import check_folder, choose_folder, write_comparison
    from entk_app.compare_view import build_tables, list_facts, tell_gains

    roots = [_as_folder(run) for run in options.runs]
    # Not beside the runs: there it would be taken for one, where all of them are asked for (runs/*).
    folder = choose_folder(Path.cwd()) if options.output is None else _as_folder(options.output)
    check_folder(folder, options.force)
    comparison = compare_runs(
        roots, target=options.target, with_states=options.states, n_states=options.n_states, seed=options.seed
    )
    paths = write_comparison(comparison, folder, options.force)
    console = Console()
    console.print("\n".join(list_facts(comparison)), end="\n\n", markup=False, highlight=False, soft_wrap=True)
    for table in build_tables(comparison, console):
        console.print(table)
        console.print()
    lines = [*tell_gains(comparison), *(f"note: {note}" for note in comparison.notes)]
    lines.append(f"written: {folder}: {', '.join(path.name for path in paths)}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return 0


def _report(options: argparse.Namespace) -> int:
    from entk_app.layout import RunLayout
    from entk_app.report import write_report

    written = write_report(RunLayout(options.run.absolute()))
    for sentence in written.missing:
        print(f"note: {sentence}")
    print(f"report: {written.page}")
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


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from entk_app.layout import RunLayout
    from entk_app.verify import verify_run

    layout = RunLayout(_as_folder(options.run))
    found = verify_run(layout)
    lines = [f"{path.relative_to(layout.root)}: {sentence}" for path, sentence in found.problems]
    lines += [f"note: {note}" for note in found.notes]
    lines.append(
        f"read: {found.n_segments} segments with {found.n_frames} frames, {found.n_models} models, "
        f"{found.n_analyses} analyses, {found.n_bytes / 1e6:.1f} MB"
    )
    n_problems = len(found.problems)
    lines.append(f"{n_problems} problems" if n_problems else "all of it is as it was published")
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return 1 if n_problems else 0


def _write_job(options: argparse.Namespace) -> int:
    from entk_app.jobs import build_request, render_job
    from entk_app.machine import divide_machine
    from entk_app.resources import config_folders, find_resource

    # What the job will be asked is read here already: a misspelt key is not to wait in a queue.
    nodes = [] if options.nodes is None else ["--set", f"resource.nodes={options.nodes}"]
    parser = argparse.ArgumentParser(prog="entk-app job --")
    _add_run_options(parser)
    of_run = parser.parse_args(["--resource", options.resource, *nodes, *options.options])
    if of_run.run_dir or of_run.resume or of_run.submit or of_run.dry_run:
        raise SettingsError("entk-app job: --run-dir, --resume, --submit and --dry-run are not for a script")
    campaign = _read_settings(of_run)[0]
    settings = campaign.resource
    resource = find_resource(settings, config_folders(given=of_run.resource_configs), environment={})
    # Likewise more slots than the nodes have.
    divide_machine(campaign, resource.cores, resource.gpus, resource.nodes)
    request = build_request(
        resource,
        scheduler=options.scheduler,
        output=None if options.output is None else options.output.absolute(),
        walltime_min=options.walltime_min,
        queue=options.queue or settings.queue,
        project=options.project or settings.project,
        options=(*nodes, *options.options),
    )
    if options.output is None:
        print(render_job(request), end="")
        return 0
    try:
        options.output.write_text(render_job(request), encoding="utf-8")
        options.output.chmod(0o755)
    except OSError as error:
        raise SettingsError(f"--output {options.output}: {error.strerror}") from None
    print(f"written: {request.path}")
    return 0


def _check_campaign(options: argparse.Namespace) -> int:
    from entk_app.preflight import Report

    try:
        settings, name = _read_settings(options)
    except EntkAppError as error:
        report, lines = Report(problems=tuple(str(error).splitlines()), notes=()), []
        lines = [f"problem: {text}" for text in report.problems]
    else:
        from entk_app.check import check_campaign, render_report

        _configure_logging(options.verbose)
        layout, folders = _find_places(options, name)
        report = check_campaign(settings, layout, folders, is_resumed=options.resume is not None)
        lines = render_report(report)
    print(report.model_dump_json(indent=2) if options.json else "\n".join(lines))
    return 0 if report.ok else SettingsError.exit_code


def _find_places(options: argparse.Namespace, name: str) -> tuple[Any, list[Path]]:
    """The layout of the run folder asked for, and the folders of resource files."""
    from entk_app.layout import RunLayout
    from entk_app.resources import config_folders

    layout = RunLayout(_as_folder(options.resume) if options.resume else _choose_run_folder(options.run_dir, name))
    folders = config_folders(given=options.resource_configs)
    if options.resume and not options.resource_configs and layout.resource_configs.is_dir():
        # A run folder describes itself, its resource included.
        folders.insert(0, layout.resource_configs)
    return layout, folders


def _run_campaign(options: argparse.Namespace) -> int:
    settings, name = _read_settings(options)

    # Heavy imports only now, when the settings are known to be good.
    from entk_app.machine import divide_machine
    from entk_app.preflight import check_room, check_scratch
    from entk_app.publish import check_local
    from entk_app.resources import LOCAL, check_presence, find_resource, keep_resource
    from entk_app.run_folder import check_new_run_folder

    _configure_logging(options.verbose)
    # Whatever the user's: agent and tasks inherit it.
    os.umask(os.umask(0o077) | 0o022)
    layout, folders = _find_places(options, name)
    resource = find_resource(settings.resource, folders)
    required = settings.resource.require_gpu
    allow_cpu = resource.is_emulated if required is None else not required
    machine = divide_machine(settings, resource.cores, resource.gpus, resource.nodes, allow_cpu)
    check_scratch(settings.resource.scratch)
    if not options.resume:
        check_new_run_folder(layout)
    if options.dry_run:
        return _print_plan(settings, resource, machine, layout)

    from entk_app.md import check_platform
    from entk_app.pilot import check_time_left
    from entk_app.workflow import check_environments

    check_presence(resource)
    if resource.is_this_node:
        check_local(settings.resource.node_local_path)
    check_environments(settings.resource.environments)
    if resource.label == LOCAL:
        check_platform(settings.simulate.platform)
    check_time_left(layout, settings, resource)
    built = None if options.resume else _build_system(layout, settings)
    system = _read_system(layout) if built is None else built.record
    room = check_room(layout, settings, machine.slots, system)
    lock = _reopen(layout, settings) if built is None else _create(layout, settings, built)
    with lock:
        if room is not None:
            print(f"note: {room}")
        keep_resource(resource, layout.resource_configs)
        return _drive(settings, resource, machine, layout, system, lock)


def _read_settings(options: argparse.Namespace) -> tuple[Any, str]:
    """The settings that the options ask for, and a name for a run folder."""
    from entk_app.layout import RunLayout
    from entk_app.run_folder import read_settings
    from entk_app.settings import build_settings, read_config, read_preset

    name, layer = options.preset or DEFAULT_PRESET, {}
    if options.resume is not None:
        if options.run_dir is not None:
            raise SettingsError("--resume RUN or --run-dir DIR: a campaign that is taken up again stays in its folder")
        layer = read_settings(RunLayout(_as_folder(options.resume))).model_dump(mode="json")
    elif options.config is not None:
        name, layer = options.config.stem, read_config(options.config)
    else:
        layer = read_preset(name)[1]
    assignments = list(options.assignments)
    for option, key in (
        (options.seed, "seed"),
        (options.resource, "resource.label"),
        (options.budget_gpu_hours, "stop.budget_gpu_hours"),
        (options.steering, "steering.method"),
    ):
        if option is not None:
            assignments.append(f"{key}={option}")
    if options.submit or options.resume is not None:
        # How a campaign was begun does not say how it goes on.
        assignments.append(f"resource.submit={str(options.submit).lower()}")
    named = {} if options.reference is None else {"system": {"reference": str(options.reference)}}
    return build_settings(layer, named, assignments=assignments), name


def _print_plan(settings: Any, resource: Any, machine: Any, layout: Any) -> int:
    from entk_app.plan import describe_plan
    from entk_app.resources import check_presence

    print("dry run: nothing is started, nothing is written")
    print("\n".join(describe_plan(settings, resource, machine, layout)))
    try:
        check_presence(resource)
    except SettingsError as error:
        print(f"note: it would be refused here: {error}")
    return 0


def _build_system(layout: Any, settings: Any) -> Any:
    from entk_app.systems import build_system

    return build_system(settings, cache=layout.root.parent / ".cache")


def _read_system(layout: Any) -> Any:
    from entk_app.records import SystemRecord, read_record

    return read_record(SystemRecord, layout.system_record)


def _create(layout: Any, settings: Any, built: Any) -> Any:
    """A new run folder with the system in it; its lock."""
    from entk_app.run_folder import create_run_folder
    from entk_app.systems import write_system

    lock = create_run_folder(layout, settings, sys.argv)
    try:
        write_system(built, layout)
    except BaseException:
        lock.release()
        raise
    return lock


def _reopen(layout: Any, settings: Any) -> Any:
    """The run folder of a campaign that goes on, with the settings that it goes on with: likewise."""
    from entk_app.run_folder import change_settings, claim_run_folder

    lock = claim_run_folder(layout, tell=lambda text: print(text, flush=True))
    try:
        change_settings(layout, settings)
    except BaseException:
        lock.release()
        raise
    return lock


def _notes(settings: Any, resource: Any, has_native: bool) -> list[str]:
    """What the user may not expect of a campaign that runs all the same."""
    from entk_app.preflight import note_friction, note_steering

    notes = [*note_steering(settings, has_native), *note_friction(settings)]
    if resource.is_emulated:
        notes.append(f"{resource.label} is emulated: its devices are counted, the tasks share this machine's cores")
    elif resource.gpus and settings.resource.require_gpu is False:
        notes.append("resource.require_gpu is false: a task that finds no GPU runs on the CPU")
    return notes


def _drive(settings: Any, resource: Any, machine: Any, layout: Any, record: Any, lock: Any) -> int:
    """Run on the pilot, and leave a summary whatever happens."""
    from rich.console import Console

    from entk_app.concurrent import make_campaign
    from entk_app.pilot import run_on_pilot
    from entk_app.progress import Progress

    console = Console()
    campaign = make_campaign(layout, settings, machine)
    nodes = f"{resource.nodes} nodes, " if resource.nodes > 1 else ""
    slots = machine.slots
    shared = f", {machine.sims_per_gpu} a GPU," if machine.sims_per_gpu > 1 else ""
    beside = f" beside {slots.learn} {'trainings' if settings.learns else 'analysis'}" if slots.is_split else ""
    lines = [
        f"entk-app {__version__}: {record.name}, {record.kind}, {record.n_residues} residues, "
        f"{record.n_atoms} particles; "
        f"{resource.label}: {nodes}{resource.cores} cores, {resource.gpus} GPUs, "
        f"{slots.simulate} simulations at a time{shared}{beside}; seed {settings.seed}",
        f"run folder: {layout.root}",
        *(f"note: {note}" for note in _notes(settings, resource, record.has_native)),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    failure: EntkAppError | None = None
    with Progress(console, campaign):
        try:
            run_on_pilot(campaign, resource, lock)
        except EntkAppError as error:
            failure = error
        except KeyboardInterrupt:
            # When everything but the summary had been done.
            failure = None if campaign.final_decision else Interrupted("interrupted; --resume goes on with it")
        except Exception as error:
            if not campaign.has_begun:
                raise
            logging.getLogger(__name__).exception("unexpected")
            campaign.end("failed", f"{type(error).__name__}: {error}")
            failure = CampaignFailed(f"the campaign failed: {type(error).__name__}: {error}")
    if failure is not None and (not campaign.has_begun or isinstance(failure, LockLost)):
        # Nothing is known of the campaign, or it is another launcher's: what is there is not written over.
        raise failure
    try:
        summary = campaign.summarise()
    except (OSError, RecordError):
        if failure is None:
            raise
        # Nor has what came before it been written.
        raise failure from None
    rmsd = "" if summary.min_rmsd_angstrom is None else f", lowest RMSD {summary.min_rmsd_angstrom:.2f} Å"
    score = "" if summary.best_score is None else f", best {summary.score} {summary.best_score:.6g}"
    console.print(
        f"{summary.stop_reason}: {summary.message}\n"
        f"{summary.n_iterations} iterations, {summary.n_simulations} simulations ({summary.n_restarts} from outliers, "
        f"{summary.n_purged} purged), {summary.n_frames} frames, {summary.total_time_us * 1000:.4g} ns{rmsd}{score}\n"
        + (f"{summary.n_failed_tasks} tasks failed: see {campaign.layout.logs}\n" if summary.n_failed_tasks else "")
        + f"summary: {campaign.layout.summary}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if failure is not None:
        raise failure
    _write_last_report(console, layout)
    return 0


def _write_last_report(console: Any, layout: Any) -> None:
    """The report of a campaign that has just ended; whatever becomes of it, the campaign has ended as it has."""
    try:
        from entk_app.report import write_report

        line = f"report: {write_report(layout).page}"
    except (Exception, KeyboardInterrupt) as error:
        logging.getLogger(__name__).info("no report", exc_info=True)
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        line = f"note: no report was written ({said}); entk-app report {layout.root} writes it"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _configure_logging(verbose: bool) -> None:
    """Our own logger only: radical wants the root logger without handlers when it is imported."""
    logger, handler = logging.getLogger("entk_app"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _choose_run_folder(asked: Path | None, name: str) -> Path:
    if asked is not None:
        return _as_folder(asked)
    runs = Path.cwd() / "runs"
    number = 1
    while (runs / f"{name}-{number:03d}").exists():
        number += 1
    return runs / f"{name}-{number:03d}"


def _as_folder(path: Path) -> Path:
    # An unknown user's home (~nobody/x) is left as it is written.
    return Path(os.path.expanduser(path)).absolute()
