"""Bad input from the command line: a sentence with the value, exit code 2, no pilot, no run folder, no traceback."""

from __future__ import annotations

import json
import os
import re

import pytest
from conftest import prepare, tiny_settings
from openmm import app

from entk_app import cli
from entk_app.layout import RunLayout
from entk_app.settings import build_settings
from entk_app.systems import build_system
from entk_app.systems.build import _to_pdb, write_system
from entk_app.systems.sequences import parse_sequence
from entk_app.systems.structures import ALPHA_HELIX, build_chain, read_protein

OWN = ("--set", "system.name=mine")
SCORE = ("--set", "steering.score_goal=minimise")
ALL_ATOM = (*OWN, "--set", "system.model=all-atom", "--set", "system.pdb=bad.pdb")


@pytest.fixture(scope="module")
def helix() -> list[str]:
    """Lines of a good PDB file: eight residues, all heavy atoms."""
    return _to_pdb(build_chain(parse_sequence("AKAFGMTR"), ALPHA_HELIX)).splitlines()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs the command line in an empty folder, and returns what it says when it refuses."""
    import entk_app.pilot

    def start(*args):
        raise AssertionError("a pilot was started")

    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", start)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert cli.main(["run", *arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error and error.startswith("entk-app: ")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


def test_the_structure_that_the_others_are_made_from_is_good(helix, tmp_path):
    (tmp_path / "good.pdb").write_text("\n".join(helix))
    settings = build_settings(
        {"simulate": {"segment_ns": 1}, "system": {"name": "mine", "model": "all-atom", "pdb": f"{tmp_path}/good.pdb"}}
    )
    assert build_system(settings, tmp_path).record.n_residues == 8


# Settings.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "fs-peptid"], ["'fs-peptid'", "did you mean 'fs-peptide'"]),
        (["--resource", "local.localhots"], ["'local.localhots'", "did you mean 'local.localhost'"]),
        (["--set", "stop.max_iteration=3"], ["stop.max_iteration", "did you mean 'stop.max_iterations'"]),
        (["--set", "simulate.max_iterations=3"], ["did you mean 'stop.max_iterations'"]),
        (["--set", "simulation.friction_per_ps=3"], ["did you mean 'simulate.friction_per_ps'"]),
        (["--set", "stop.max_iterations=0"], ["stop.max_iterations = 0"]),
        (["--set", "stop.max_iterations=yes"], ["stop.max_iterations = True", "true and false"]),
        (["--set", "train.latent_dims=[3,true]"], ["train.latent_dims = [3, True]", "true and false"]),
        (["--set", "stop.max_iterations=2.5"], ["stop.max_iterations = 2.5"]),
        (["--set", "simulate.temperature_k=hot"], ["simulate.temperature_k = 'hot'"]),
        (["--set", "simulate.temperature_k=.nan"], ["simulate.temperature_k = nan"]),
        (["--set", "resource.project=12345"], ["resource.project = 12345", "in quotes"]),
        (["--set", "resource.scratch=''"], ["resource.scratch = ''", "null"]),
        (["--set", f"seed=0x{'f' * 9000}"], ["seed = (a value of type int, too long to print)"]),
        (["--set", f"stop.max_iterations={'9' * 30}"], ["stop.max_iterations = 999", "up to 1e+15"]),
        (["--set", "stop.max_time_us=1e300"], ["stop.max_time_us", "up to 1e+15"]),
        (["--set", f"resource.nodes=[{'1,' * 5000}]"], ["resource.nodes = [1, 1", "..."]),
        (["--set", "resource.queue={a: [&x 1, *x]}"], ["the alias *x", "write the value out"]),
        (["--seed", "-1"], ["seed = -1"]),
        (["--set", "simulate.segment_ns=0.001"], ["simulate.segment_ns = 0.001", "shorter than one"]),
        (["--set", "simulate.report_interval_ps=0.05"], ["0.05", "whole number of steps"]),
        (["--set", "resource.md_slots=1000"], ["resource.md_slots = 1000", "slots for this campaign"]),
        (["--set", "resource.ml_slots=1000"], ["resource.ml_slots = 1000", "slots for this campaign"]),
        (["--set", "resource.cores_per_simulation=1000"], ["resource.cores_per_simulation = 1000", "cores"]),
        (["--set", "resource.cores=100000"], ["resource.cores = 100000"]),
        (["--set", "system.name=vilin"], ["'vilin'", "did you mean 'villin'"]),
        (["--set", "steering.score=rmds"], ["steering.score = 'rmds'", "did you mean 'rmsd'", "file.py:function"]),
        ([*SCORE, "--set", "steering.score=a.py:f"], ["steering.score", "there is no file", "a.py"]),
        ([*SCORE, "--set", "steering.score=math:f"], ["'math:f'", "there is no function 'f' in math"]),
        ([*SCORE, "--set", "steering.score=no_such_package:f"], ["ModuleNotFoundError", "no_such_package"]),
        ([*SCORE, "--set", "steering.score=math:sqrt"], ["tried on the start structure", "'sqrt' raised TypeError"]),
        ([*OWN, "--set", "system.sequence=AAXA"], ["'X' at residue 3"]),
        ([*OWN, "--set", "system.sequence=AAA"], ["3 residues", "at least 4"]),
        ([*OWN, "--set", f"system.sequence={'A' * 401}"], ["401 residues", "at most 400", "system.pdb"]),
    ],
)  # fmt: skip
def test_settings(refused, arguments, words):
    error = refused(*arguments)
    for word in words:
        assert word in error
    assert len(error) < 2000


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"seed: 1\nstop:\n  max_iterations: 1\n  max_iterations: 2\n",
            ["'max_iterations' is given twice", "line 3", "line 4"],
        ),
        (b"seed: 1\nsimulate: {segment_ns: 1}\nseed: 2\n", ["'seed' is given twice", "line 1", "line 3"]),
        (BOMB.encode(), ["the alias *a", "line 2"]),
        (b"stop:\n  <<: {max_iterations: 1}\n", ["the merge key <<", "line 2"]),
        (b"seed: " + b"[" * 20_000, ["nested too deeply"]),
        (b"seed: 1\n\tstop: 2\n", ["not valid YAML"]),
        (b"!!python/object/apply:os.system ['true']\n", ["not valid YAML", "python/object"]),
        (b"when: 2026-99-99\n", ["not valid YAML"]),
        (b"seed: !!int x\n", ["not valid YAML"]),
        (b"seed: !!float ''\n", ["not valid YAML"]),
        (b"\xffseed: 1\n", ["not UTF-8 text", "byte 0"]),
        (b"PK\x03\x04\x00\x00", ["not valid YAML"]),
        (b"- 1\n", ["groups of settings", "list"]),
        (b"simulate: 3\n", ["simulate = 3", "group of settings"]),
        (
            b"simulate: {segment_ns: 1, segmnt_minutes: 1}\n",
            ["simulate.segmnt_minutes", "did you mean 'simulate.segment_minutes'"],
        ),
        (b"simulte: {segment_ns: 1}\n", ["simulte", "did you mean 'simulate'"]),
        (b"1: 2\nsimulate: {segment_ns: 1}\n", ["keys must be words"]),
        ("".join(f"k{n}: 1\n" for n in range(500)).encode(), ["k0: there is no such setting", "and 480 more"]),
        (b"#" * 200_001, ["larger than 200,000 bytes"]),
        (b'system: {name: mine, pdb: "a\\0b"}\nsimulate: {segment_ns: 1}\n', ["system.pdb", "null"]),
        (b'system: {name: mine, pdb: "\\uD800"}\nsimulate: {segment_ns: 1}\n', ["system.pdb"]),
    ],
)  # fmt: skip
def test_a_configuration_file(refused, tmp_path, content, words):
    (tmp_path / "bad.yaml").write_bytes(content)
    error = refused("--config", "bad.yaml")
    for word in words:
        assert word in error
    assert len(error) < 2500


def test_a_configuration_that_is_no_file(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "folder is a folder" in refused("--config", "folder")
    assert "there is no file nowhere.yaml" in refused("--config", "nowhere.yaml")
    assert "x" * 100 in refused("--config", "x" * 5000)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is not a regular file" in refused("--config", "pipe")
    assert "/dev/zero is not a regular file" in refused("--config", "/dev/zero")


# Structures.


def edit(lines: list[str], pattern: str, change) -> list[str]:
    """The lines with those that match changed; None takes one out, a list puts several in its place."""
    new: list[str] = []
    for line in lines:
        changed = change(line) if re.search(pattern, line) else line
        new += changed if isinstance(changed, list) else [] if changed is None else [changed]
    assert new != lines
    return new


def both_locations(line: str) -> list[str]:
    return [line[:16] + letter + line[17:] for letter in "AB"]


BAD_STRUCTURES = {
    "empty": (lambda lines: [], ["is empty"]),
    "no atom": (lambda lines: ["HEADER    NOTHING", "END"], ["no ATOM record"]),
    "water alone": (lambda lines: edit(lines[:1], "ATOM", lambda x: x[:17] + "HOH" + x[20:]), ["no protein"]),
    "an ion alone": (
        lambda lines: ["HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA"],
        ["holds no protein residue"],
    ),
    "mmCIF": (lambda lines: ["data_1FME", "_entry.id 1FME"], ["mmCIF", "PDB format"]),
    "binary": (lambda lines: [*lines, "\0\0\0"], ["not text"]),
    "two models": (
        lambda lines: ["MODEL        1", *lines[:-1], "ENDMDL", "MODEL        2", *lines[:-1], "ENDMDL"],
        ["holds 2 models", "keep the one", "sed '/^END/q' "],
    ),
    "two frames": (lambda lines: [*lines, *lines, *lines], ["holds 3 models"]),
    "alternate locations": (
        lambda lines: edit(lines, r" CB  LYS A   2 ", both_locations),
        ["atom CB of residue LYS 2 of chain A", "'A', 'B'", "keep one"],
    ),
    "alternate locations with a blank": (
        lambda lines: edit(lines, r" CB  LYS A   2 ", lambda x: [x, both_locations(x)[1]]),
        ["atom CB of residue LYS 2 of chain A", "blank, 'B'"],
    ),
    "alternate residues": (
        lambda lines: edit(
            lines, r" CB  LYS A   2 ", lambda x: [both_locations(x)[0], both_locations(x)[1].replace("LYS", "ARG")]
        ),
        ["atom CB of residue LYS 2 of chain A", "'A', 'B'"],
    ),
    "an atom twice": (
        lambda lines: edit(lines, r" CA  PHE A   4 ", lambda x: [x, x]),
        ["atom CA of residue PHE 4 of chain A is there twice", "lines 21 and 22"],
    ),
    "an unknown residue": (
        lambda lines: edit(lines, r"MET A   6 ", lambda x: x.replace("MET", "MSE")),
        ["residue MSE 6 of chain A", "rename it"],
    ),
    "a nucleotide": (lambda lines: edit(lines, r"MET A   6 ", lambda x: x.replace("MET", " DA")), ["residue DA 6"]),
    "a missing side chain": (
        lambda lines: edit(lines, r" (CG|SD|CE)  MET A   6 ", lambda x: None),
        ["residue MET 6 of chain A lacks CE, CG, SD"],
    ),
    "no end of the chain": (lambda lines: edit(lines, " OXT ", lambda x: None), ["residue ARG 8 of chain A lacks OXT"]),
    "an atom too many": (
        lambda lines: edit(lines, r" CB  ALA A   1 ", lambda x: [x, x.replace(" CB ", " CG ").replace("1.00", "1.01")
                                                                    [:30] + "   9.000" + x[38:]]),
        ["residue ALA 1 of chain A has CG"],
    ),
    "no CA": (
        lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: None), ["residue GLY 5 of chain A", "no CA atom"]),
    "a missing loop": (
        lambda lines: edit(lines, r" A   [45] ", lambda x: None),
        ["ALA 3 and MET 6 of chain A", "Å apart", "broken"],
    ),
    "a missing loop behind a TER": (
        lambda lines: edit(edit(lines, r" A   4 ", lambda x: None), r" N   GLY A   5 ", lambda x: ["TER", x]),
        ["ALA 3 and GLY 5 of chain A", "Å apart"],
    ),
    "NaN": (lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: x[:30] + "     nan" + x[38:]),
            ["line 32 (CA of GLY 5 of chain A): its x is nan"]),
    "infinity": (
        lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: x[:46] + "     inf" + x[54:]), ["its z is inf"]),
    "a number that does not fit": (
        lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: x[:38] + "   1e+09" + x[46:]), ["its y is 1e+09"]),
    "shifted columns": (lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: x.replace("CA", "CA ", 1)),
                        ["line 32", "cannot be read", "columns 39 to 46"]),
    "a line cut off": (lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: x[:40]), ["line 32 is cut off"]),
    "other letters": (
        lambda lines: edit(lines, r" CA  GLY A   5 ", lambda x: x.replace("CA", "Cα")), ["line 32", "Cα"]),
    "atoms in one place": (
        lambda lines: edit(lines, r" CB  MET A   6 ", lambda x: x[:30] + next(
            other[30:54] for other in lines if " CG  MET A   6" in other) + x[54:]),
        ["atom CB of residue MET 6 of chain A and CG of residue MET 6", "overlap", "0.00 Å"],
    ),
    "three residues": (lambda lines: edit(lines, r" A   [4-8] ", lambda x: None), ["3 residues", "at least 4"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STRUCTURES)
def test_a_structure(refused, tmp_path, helix, name):
    make, words = BAD_STRUCTURES[name]
    (tmp_path / "bad.pdb").write_text("\n".join(make(helix)), encoding="utf-8")
    error = refused(*ALL_ATOM)
    assert "bad.pdb" in error
    for word in words:
        assert word in error


@pytest.mark.parametrize("name", ["two models", "alternate locations", "NaN", "no CA", "a missing loop", "empty"])
def test_a_reference(refused, tmp_path, helix, name):
    make, words = BAD_STRUCTURES[name]
    (tmp_path / "bad.pdb").write_text("\n".join(make(helix)), encoding="utf-8")
    error = refused(*OWN, "--set", "system.sequence=AKAFGMTR", "--reference", "bad.pdb")
    assert error.startswith("entk-app: system.reference: ")
    for word in words:
        assert word in error


def test_a_reference_of_other_residues(refused, tmp_path, helix):
    (tmp_path / "other.pdb").write_text("\n".join(helix))
    own = (*OWN, "--reference", "other.pdb", "--set")
    assert "has 8 residues, the system has 9" in refused(*own, "system.sequence=AKAFGMTRA")
    assert "residue 5 of" in refused(*own, "system.sequence=AKAFAMTR")
    assert "there is no file" in refused("--reference", "nowhere.pdb")


def test_a_structure_that_is_no_text_file(refused, tmp_path):
    path = tmp_path / "bad.pdb"
    path.mkdir()
    assert "bad.pdb is a folder" in refused(*ALL_ATOM)
    path.rmdir()
    path.write_bytes(b"HEADER\nAUTHOR    J.\xe9.\n")
    assert "not UTF-8 text" in refused(*ALL_ATOM) and "line 2" in refused(*ALL_ATOM)
    path.write_bytes(b"\x1f\x8b\x08\x00")
    assert "gunzip" in refused(*ALL_ATOM)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused(*ALL_ATOM)
    path.unlink()
    assert "there is no file" in refused(*ALL_ATOM)


def test_a_file_too_large_to_be_a_structure(refused, tmp_path):
    with (tmp_path / "bad.pdb").open("wb") as stream:
        stream.truncate(64_000_001)
    assert "larger than 64,000,000 bytes" in refused(*ALL_ATOM)


def test_what_a_structure_may_have(tmp_path, helix):
    """Not everything unusual is bad: water, one letter of location, insertion codes, a box, odd records, CRLF."""
    lines = edit(helix, r" A   8 ", lambda x: x[:22] + "   7A" + x[27:])
    lines = edit(lines, r" CB  LYS A   2 ", lambda x: both_locations(x)[1])
    water = "HETATM  900  O   HOH W   1      90.000   0.000   0.000  1.00  0.00           O"
    extra = ["CRYST1 garbage", "CONECT garbage", "MODEL        1"]
    (tmp_path / "good.pdb").write_text("\r\n".join([*extra, *lines[:-1], water, water, "ENDMDL"]))
    settings = build_settings(
        {"simulate": {"segment_ns": 1}, "system": {"name": "mine", "model": "all-atom", "pdb": f"{tmp_path}/good.pdb"}}
    )
    built = build_system(settings, tmp_path)
    assert built.record.sequence == "AKAFGMTR"
    write_system(built, RunLayout(tmp_path / "run"))
    written = app.PDBFile(str(tmp_path / "run" / "system" / "topology.pdb")).topology
    assert [(r.id, r.insertionCode.strip()) for r in written.residues()][-2:] == [("7", ""), ("7", "A")]
    assert written.getPeriodicBoxVectors() is None


def test_of_a_structure_that_the_program_fetches_the_first_model_is_taken(tmp_path, helix):
    """PDB 1FME holds 34."""
    moved = [line[:30] + "   5.000" + line[38:] if line.startswith("ATOM") else line for line in helix[:-1]]
    models = ["MODEL        1", *helix[:-1], "ENDMDL", "MODEL        2", *moved, "ENDMDL"]
    (tmp_path / "nmr.pdb").write_text("\n".join(models))
    structure = read_protein(tmp_path / "nmr.pdb", "native structure", first_model=True)
    assert structure.positions[0].tolist() == [float(helix[0][start : start + 8]) for start in (30, 38, 46)]


# Run folders.


def test_a_run_folder(refused, tmp_path, capsys):
    campaign = prepare(tmp_path / "taken", tiny_settings())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for options in ((), ("--dry-run",)):
        error = refused("--run-dir", "taken", *options)
        assert "holds a campaign already" in error and f"--resume {campaign.layout.root}" in error
        assert "not empty" in refused("--run-dir", "notes", *options)
        assert "file is a file" in refused("--run-dir", "file", *options)
        assert "file is a file" in refused("--run-dir", "file/run", *options)
        assert "cannot use the run folder" in refused("--run-dir", "x" * 5000, *options)
    for resumed, words in (
        ("nowhere", "there is no run folder"),
        ("file", "file is a file"),
        ("notes", "holds no campaign"),
        ("x" * 5000, "cannot read the run folder"),
    ):
        assert words in refused("--resume", resumed)
    assert "--resume RUN or --run-dir DIR" in refused("--resume", "taken", "--run-dir", "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_run_folder_that_may_not_be_written(refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "may not be written to" in refused("--run-dir", "closed/run")
    assert "may not be written to" in refused("--run-dir", "closed")


@pytest.mark.parametrize(
    ("scratch", "words"),
    [
        ("/proc/here", "cannot be written to"),
        ("/proc", "cannot be written to"),
        ("nowhere/below", "there is no folder"),
        ("file", "not a folder"),
        ("file/below", "not a folder"),
        ("with space", "take no spaces"),
    ],
)
def test_a_scratch_folder(refused, tmp_path, scratch, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "with space").mkdir()
    error = refused("--set", f"resource.scratch={scratch}")
    assert words in error and f"resource.scratch = '{tmp_path / scratch}'" in error


@pytest.mark.parametrize("local", ["/proc/here", "file/below", "relative"])
def test_a_nodes_own_disk(refused, tmp_path, local):
    (tmp_path / "file").write_text("")
    path = local if local in ("/proc/here", "relative") else str(tmp_path / local)
    assert f"resource.node_local_path = '{path}'" in refused("--set", f"resource.node_local_path={path}")


def test_a_working_directory_that_has_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["run"]) == 2
    assert "the working directory cannot be used" in capsys.readouterr().err


def test_resource_files(refused, tmp_path):
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "resource_my.json"
    for content, words in (
        ("{", "cannot be read"),
        ("[]", "must hold {name: entry}"),
        (json.dumps({"node": 3}), "'node' is not an entry"),
        (json.dumps({"node": {"cores_per_node": "many"}}), "cores_per_node = 'many'"),
        ("\xff", "no resource file has it"),
    ):
        path.write_text(content, encoding="latin-1")
        if content == "\xff":
            path.write_text(json.dumps({"other": {}}))
        assert words in refused("--resource", "my.node", "--resource-configs", "own")
