"""Mutated settings and structures: a campaign that can be, or a sentence. Never a traceback, never a hang.

Quick and always the same here; by hand, as long as you like and with other seeds:
``ENTK_APP_FUZZ_EXAMPLES=20000 python -m pytest tests/test_fuzz.py --timeout 0``.
"""

from __future__ import annotations

import os
import random
import warnings
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from openmm import app

from entk_app.errors import EntkAppError
from entk_app.layout import RunLayout
from entk_app.settings import build_settings, dump_yaml, preset_names, read_config, read_preset, render_template
from entk_app.systems import build_system, write_system
from entk_app.systems.build import _to_pdb, load_system
from entk_app.systems.sequences import parse_sequence
from entk_app.systems.structures import ALPHA_HELIX, build_chain

LONGER = os.environ.get("ENTK_APP_FUZZ_EXAMPLES")


def fuzz(examples: int):
    """So many examples, from a fixed seed; or those that were asked for, from any."""
    return settings(
        max_examples=int(LONGER or examples),
        derandomize=not LONGER,
        database=None,
        deadline=20_000,
        suppress_health_check=list(HealthCheck),
    )


def check_refusal(error: EntkAppError) -> None:
    assert error.exit_code == 2
    assert str(error).strip() and "Traceback" not in str(error)
    assert len(str(error)) < 5_000


# Settings.


@cache
def yaml_texts() -> tuple[str, ...]:
    presets = [dump_yaml(build_settings(read_preset(name)[1])) for name in preset_names()]
    return (*presets, *(render_template(name) for name in preset_names()))


ODD_YAML = st.one_of(
    st.sampled_from(
        [
            "null", "~", "true", "off", "[]", "{}", "-1", "0", "1e400", ".inf", "-.inf", ".nan", "1:30",
            "0x" + "f" * 5000,
            "9" * 5000, "1_000", "2026-11-23", "2026-13-45", "!!binary aGk=", "!!binary x", "!!int x", "!!float ''",
            "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp x", "!!python/name:os.system", "!x y", "*x",
            "&x 1", "&x [*x]", "<<: {a: 1}", "<<: [{a: 1}]", "? [1]\n: 2", "? {a: 1}\n: 2", "? |\n  x\n: 2", "'",
            '"', "|",
            ">", "%YAML 9.9", "---", "...", "\t", "@", "`", "[" * 3000, "{a: " * 300, "- " * 500, "\u2028", "\x85",
            "\ufeff", "\x00", '"\\ud800"', '"\\0"', "'~/x'", "'~nobody/x'", "/" * 5000, "3.5", "'3'", "''", "[3, 3]",
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


@st.composite
def mutated_yaml(draw) -> str:
    lines = draw(st.sampled_from(yaml_texts())).splitlines()
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(lines) - 1))
        line = lines[place]
        kind = draw(
            st.sampled_from(
                ["delete", "double", "value", "value", "value", "insert", "indent", "character", "cut", "swap"]
            )
        )
        if kind == "delete":
            del lines[place]
        elif kind == "double":
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif kind == "value":
            lines[place] = line.partition(":")[0] + ": " + draw(ODD_YAML)
        elif kind == "insert":
            lines.insert(place, line[: len(line) - len(line.lstrip())] + draw(ODD_YAML))
        elif kind == "indent":
            lines[place] = " " * draw(st.integers(0, 6)) + line.lstrip()
        elif kind == "character":
            at = draw(st.integers(0, len(line)))
            lines[place] = line[:at] + draw(st.characters(codec="utf-8")) + line[at + draw(st.integers(0, 2)) :]
        elif kind == "cut":
            lines[place] = line[: draw(st.integers(0, len(line)))]
        else:
            other = draw(st.integers(0, len(lines) - 1))
            lines[place], lines[other] = lines[other], line
        lines = lines or [""]
    return "\n".join(lines) + "\n"


@fuzz(300)
@given(text=mutated_yaml())
def test_settings(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        built = build_settings(read_config(path))
    except EntkAppError as error:
        check_refusal(error)
        return
    # What is taken can be kept, and is the same when it is read again.
    path.write_text(dump_yaml(built), encoding="utf-8")
    assert build_settings(read_config(path)) == built


@fuzz(150)
@given(content=st.binary(max_size=200))
def test_any_bytes_as_settings(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    try:
        build_settings(read_config(path))
    except EntkAppError as error:
        check_refusal(error)


@fuzz(150)
@given(key=st.sampled_from(["seed", "system.pdb", "train.latent_dims", "resource.label", "stop"]), value=ODD_YAML)
def test_assignments(key, value):
    try:
        build_settings({"simulate": {"segment_ns": 1}}, assignments=[f"{key}={value}"])
    except EntkAppError as error:
        check_refusal(error)


# Structures.


@cache
def pdb_texts() -> tuple[str, ...]:
    """An ideal helix of eight residues, and villin as OpenMM ships it, with two of its waters and ions."""
    helix = _to_pdb(build_chain(parse_sequence("AKAFGMTR"), ALPHA_HELIX))
    lines = (Path(app.__file__).parent / "data" / "test.pdb").read_text().splitlines()
    villin = [line for line in lines if "HOH" not in line] + [line for line in lines if "HOH" in line][:6]
    return helix, "\n".join(villin)


FIELDS = ((0, 6), (6, 11), (12, 16), (16, 17), (17, 20), (20, 21), (21, 22), (22, 26), (26, 27), (30, 38), (38, 46),
          (46, 54), (54, 60), (60, 66), (76, 78), (78, 80))  # fmt: skip

ODD_FIELDS = st.one_of(
    st.sampled_from(
        ["nan", "inf", "-inf", "1e99", "99999999", "-9999.9", "0.000", "****", "-", "", "A000", "ZZZZ", "B", "MSE",
        "HOH",
         "ACE", "NME", "CA", "OXT", "H1", "D", "HID", "CYX", "TIP3", "NA", "TER", "END", "ATOM", "HETATM", "Cα",
         "\t", "-1",
         "0", "9999", "1_0", "٣", "\x0c", "EP"]
    ),
    st.text(max_size=8),
    st.floats(-2000, 20_000).map("{:8.3f}".format),
)  # fmt: skip

ODD_LINES = st.sampled_from(
    ["MODEL        1", "MODEL", "MODEL     nine", "ENDMDL", "END", "TER", "TER   ", "CONECT", "CONECT    1    2",
    "CONECT x y z",
     "CRYST1", "CRYST1   nan   nan   nan  90.00  90.00  90.00 P 1", "SEQRES", "MODRES garbage", "HETATM", "ATOM",
     "ATOM  ",
     "ANISOU    1  N   ALA A   1", "REMARK \x00", "\x1f\x8b", "data_x", "\x0c", "\u2028",
     "HETATM  999 ZN    ZN A 100       1.000   1.000   1.000  1.00  0.00          ZN"]
)  # fmt: skip


@st.composite
def mutated_pdb(draw) -> str:
    lines = draw(st.sampled_from(pdb_texts())).splitlines()
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = draw(st.integers(0, len(lines) - 1))
        line = lines[place]
        kind = draw(
            st.sampled_from(
                ["field", "field", "field", "delete", "delete some", "double", "swap", "line", "character", "shift",
                "cut",
                 "truncate", "locations", "residue", "models", "shuffle"]
            )
        )  # fmt: skip
        if kind == "field":
            start, end = draw(st.sampled_from(FIELDS))
            value = draw(ODD_FIELDS)
            fitted = value[: end - start].rjust(end - start)
            lines[place] = line[:start] + draw(st.sampled_from([fitted, fitted, value])) + line[end:]
        elif kind == "delete":
            del lines[place]
        elif kind == "delete some":
            del lines[place : place + draw(st.integers(1, 30))]
        elif kind == "double":
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[place], lines[other] = lines[other], line
        elif kind == "line":
            lines.insert(place, draw(ODD_LINES))
        elif kind == "character":
            at = draw(st.integers(0, len(line)))
            lines[place] = line[:at] + draw(st.characters(codec="utf-8")) + line[at + 1 :]
        elif kind == "shift":
            at = draw(st.integers(0, len(line)))
            lines[place] = line[:at] + " " + line[at:]
        elif kind == "cut":
            lines[place] = line[: draw(st.integers(0, len(line)))]
        elif kind == "truncate":
            lines = lines[: place + 1]
        elif kind == "locations":
            letters = draw(st.sampled_from(["A", "AB", "AA", " B"]))
            lines[place : place + 1] = [line[:16] + letter + line[17:] for letter in letters]
        elif kind == "residue":
            name = draw(st.sampled_from(["GLY", "PRO", "MSE", "HIS", "NME", "ACE", "HOH", "CYS", "  A", "UNK", "CA "]))
            lines = [x[:17] + name + x[20:] if x[17:27] == line[17:27] else x for x in lines]
        elif kind == "models":
            lines = ["MODEL        1", *lines, "ENDMDL", "MODEL        2", *lines[:place], "ENDMDL"]
        else:
            random.Random(draw(st.integers(0, 99))).shuffle(lines)
        lines = lines or [""]
    return "\n".join(lines) + draw(st.sampled_from(["\n", "", "\r\n"]))


def try_to_build(folder: Path, text: str, **system: str) -> None:
    path = folder / "mutated.pdb"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    system = {key: str(path) if value == "" else value for key, value in system.items()}
    try:
        with warnings.catch_warnings():
            # OpenMM warns of what it would guess: nothing is left for it to guess.
            warnings.simplefilter("error")
            built = build_system(build_settings({"simulate": {"segment_ns": 1}, "system": system}), cache=folder)
    except EntkAppError as error:
        event("refused: " + str(error).replace(str(path), "")[:40])
        check_refusal(error)
        return
    event("taken")
    # What is taken can be written and is read by a task as it was.
    layout = RunLayout(folder / "fuzzed")
    layout.native.unlink(missing_ok=True)
    write_system(built, layout)
    loaded = load_system(layout)
    assert loaded.topology.getNumAtoms() == loaded.system.getNumParticles() == built.record.n_atoms
    assert len(built.record.sequence) == built.record.n_residues >= 4


@fuzz(250)
@given(text=mutated_pdb())
def test_references(text, tmp_path_factory):
    """The CA model's native structure: reading, checking, and the model's own terms."""
    sequence = "LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF" if " A  35 " in text or "PHE    35" in text else "AKAFGMTR"
    try_to_build(
        tmp_path_factory.getbasetemp(), text, name="mine", model="calpha", sequence=sequence, reference=""
    )  # fmt: skip


@fuzz(25)
@given(text=mutated_pdb())
def test_structures(text, tmp_path_factory):
    """All atoms: the force field has its word, too. An example takes a second."""
    try_to_build(tmp_path_factory.getbasetemp(), text, name="mine", model="all-atom", pdb="")
