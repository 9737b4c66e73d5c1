"""Scores beside the RMSD: known ones, the examples, and that a function that is no score is refused in words."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import h5py
import MDAnalysis
import numpy as np
import pytest
from conftest import CHECKOUT, prepare, tiny_settings
from MDAnalysis.lib.distances import calc_dihedrals, distance_array

from entk_app.errors import RunFolderError, ScoreError, SettingsError
from entk_app.frame_table import FrameTable, Selection
from entk_app.inprocess import run_campaign
from entk_app.integrity import DamagedError
from entk_app.layout import RunLayout, failure_of
from entk_app.records import (
    AnalysisRecord,
    Decision,
    SegmentRecord,
    SystemRecord,
    TaskFailure,
    read_lines,
    read_record,
    write_record,
)
from entk_app.run_folder import change_settings
from entk_app.run_reader import RunReader
from entk_app.scores import Molecule, choose_score, explain_unused
from entk_app.settings import build_settings
from entk_app.status import read_status
from entk_app.tasks import note_failure, run_task
from entk_app.verify import verify_run

EXAMPLES = CHECKOUT / "examples" / "scores.py"


LINE = np.array([[3.8 * place, 0.0, 0.0] for place in range(6)])
#: An ideal α-helix: 100 degrees and 1.5 Å a residue, 2.3 Å from the axis.
TURN = np.radians(100.0) * np.arange(6)
HELIX = np.stack([2.3 * np.cos(TURN), 2.3 * np.sin(TURN), 1.5 * np.arange(6)], axis=1)


def molecule(native=LINE):
    return Molecule(("CA",) * 6, ("MET", "LEU", "SER", "ASP", "GLY", "PHE"), np.arange(6), np.arange(6), native)


def load_examples():
    spec = importlib.util.spec_from_file_location("score_examples", EXAMPLES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own(tmp_path, body, *assignments, name="score", goal="minimise"):
    """Settings whose score is a function with this body."""
    path = tmp_path / "mine.py"
    path.write_text(f"import numpy as np\n\ndef {name}(positions, molecule):\n    {body}\n")
    return tiny_settings(f"steering.score={path}:{name}", f"steering.score_goal={goal}", *assignments)


def choose(settings, positions=None, which=None):
    which = molecule() if which is None else which
    return choose_score(settings, which, which.native_ca if positions is None else positions)


def test_the_examples_have_known_answers():
    examples, line = load_examples(), LINE
    assert examples.end_to_end(line, molecule()) == pytest.approx(19.0)
    # Residues 0, 1 and 5 are hydrophobic: 0, 3.8 and 19 Å along the line.
    assert examples.hydrophobic_radius(line, molecule()) == pytest.approx(np.std([0.0, 3.8, 19.0]))
    assert examples.native_distance_error(line, molecule()) == 0.0
    assert examples.native_distance_error(2.0 * line, molecule()) > 1.0
    assert examples.helical_fraction(HELIX, molecule()) == 1.0
    assert examples.helical_fraction(HELIX * [1, 1, -1], molecule()) == 0.0


@pytest.mark.parametrize("name", ["native_contacts", "radius_of_gyration"])
def test_known_scores_have_their_own_way_that_is_better(name):
    settings = tiny_settings(f"steering.score={name}")
    assert settings.steering.goal == {"native_contacts": "maximise", "radius_of_gyration": "minimise"}[name]
    assert choose(settings, which=molecule(HELIX)).record.goal == settings.steering.goal
    turned = tiny_settings(f"steering.score={name}", "steering.score_goal=maximise")
    assert choose(turned, which=molecule(HELIX)).record.goal == "maximise"


def test_without_a_score_there_is_none():
    assert choose(tiny_settings()) is None


def test_native_contacts_need_a_native_structure():
    with pytest.raises(SettingsError, match=r"native_contacts needs a native structure.*--reference"):
        choose(tiny_settings("steering.score=native_contacts"), LINE, molecule(native=None))
    with pytest.raises(SettingsError, match=r"no contact within 8 Å to count"):
        choose(tiny_settings("steering.score=native_contacts"), LINE, molecule(native=LINE))


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["steering.score=rmds"], "there is no such score; did you mean 'rmsd'"),
        (["steering.score=native_contact"], "did you mean 'native_contacts'"),
        (["steering.score=mine.py"], "path/to/file.py:function"),
        (["steering.score=os.path:2nd"], "no such score"),
        (["steering.score=a.py:f"], "steering.score_goal=minimise or steering.score_goal=maximise"),
        (["steering.score_goal=maximise"], "the RMSD is minimised"),
        (["stop.target_score=3"], "needs a steering.score.*stop.target_rmsd_angstrom"),
        (["steering.score=native_contacts", "steering.score_goal=most"], "score_goal"),
    ],
)
def test_settings_of_a_score_are_checked(assignments, message):
    with pytest.raises(SettingsError, match=message):
        tiny_settings(*assignments)


def test_a_relative_path_of_a_score_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings("steering.score=own/mine.py:f", "steering.score_goal=minimise")
    assert settings.steering.score == f"{tmp_path}/own/mine.py:f"
    assert settings.steering.score_name == "f"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"raised ZeroDivisionError: division by zero \(mine.py line 4\)"),
        ("raise SystemExit(0)", "raised SystemExit"),
        ("return positions[99]", "raised IndexError"),
        ("return None", "returned a NoneType: it must return one number"),
        ("return 'far'", "returned a str"),
        ("return True", "returned a bool"),
        ("return positions", r"returned an array of shape \(6, 3\)"),
        ("return [1.0]", r"returned an array of shape \(1,\)"),
        ("return [[1], [1, 2]]", "raised ValueError"),
        ("return np.nan", "returned nan: it must return a finite number"),
        ("return -np.inf", "returned -inf"),
        ("return 1j", "returned a complex"),
    ],
)
def test_what_is_no_score_is_refused_in_words(tmp_path, body, message):
    with pytest.raises(SettingsError, match=rf"tried on the start structure.*{message}"):
        choose(own(tmp_path, body))


@pytest.mark.parametrize(
    "body", ["return 3", "return np.float32(3)", "return np.array(3)", "positions[:] = 0; return 3.0"]
)
def test_any_finite_number_is_a_score_and_positions_stay_as_they_are(tmp_path, body):
    which = molecule()
    before = which.native_ca.copy()
    assert choose(own(tmp_path, body), which=which).record.name == "score"
    np.testing.assert_array_equal(which.native_ca, before)


def test_nothing_compiled_is_left_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    choose(own(tmp_path, "return 1"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_file_that_cannot_be_loaded_is_refused_in_words(tmp_path):
    for text, message in (
        ("import nowhere_to_be_found", "cannot be loaded: ModuleNotFoundError"),
        ("def score(:", "cannot be loaded: SyntaxError"),
        ("other = 1", "no function 'score'"),
        ("score = 1", "no function 'score'"),
    ):
        settings = own(tmp_path, "return 1")
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(SettingsError, match=message):
            choose(settings)
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        choose(settings)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(SettingsError, match="there is no file"):
        choose(settings)


def test_a_function_of_a_module_is_the_same_module_later(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text("def first(positions, molecule):\n    return positions[0, 0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = tiny_settings("steering.score=my_scores:first", "steering.score_goal=maximise")
    campaign = prepare(tmp_path / "run", settings, cores=1)
    record = read_record(SystemRecord, campaign.layout.system_record).score
    assert (record.module, record.name, len(record.sha256)) == ("my_scores", "first", 64)
    stage = campaign.start()
    (tmp_path / "my_scores.py").write_text("def first(positions, molecule):\n    return 0.0\n")
    with pytest.raises(ScoreError, match="not the one that the campaign was begun with"):
        run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    sys.modules.pop("my_scores")


def test_an_unused_score_is_noted():
    assert explain_unused(tiny_settings()) is None
    assert "steers nothing" in explain_unused(tiny_settings("steering.score=native_contacts"))
    for use in ("steering.ranking=score", "steering.ranking=mix", "stop.target_score=1"):
        assert explain_unused(tiny_settings("steering.score=native_contacts", use)) is None


def test_a_score_that_fails_while_it_simulates_fails_the_task_in_its_own_words(tmp_path):
    settings = own(tmp_path, "molecule.__dict__.setdefault('n', []).append(1)\n    return 1 / (3 - len(molecule.n))")
    campaign = prepare(tmp_path / "run", settings, cores=1)
    order = campaign.start().tasks[0].order
    with pytest.raises(ScoreError, match="the score 'score' raised ZeroDivisionError") as caught:
        run_task("simulate", campaign.layout.root, order)
    note_failure(campaign.layout, order, caught.value)
    failure = read_record(TaskFailure, failure_of(order))
    assert (failure.kind, failure.reason) == ("error", str(caught.value))
    assert not campaign.layout.segment(0, 0).folder.exists()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A finished in-process campaign that is steered by the end-to-end distance."""
    root = tmp_path_factory.mktemp("scored")
    mine = root / "mine.py"
    mine.write_text(EXAMPLES.read_text())
    settings = tiny_settings(
        f"steering.score={mine}:end_to_end", "steering.score_goal=minimise", "steering.ranking=score",
        "steering.min_restarts=1",
    )  # fmt: skip
    campaign = prepare(root / "run", settings, cores=2)
    # The run folder has its own.
    mine.unlink()
    run_campaign(campaign)
    campaign.summarise()
    return campaign


def recompute(layout, record):
    """End-to-end distances of a segment by MDAnalysis, from topology and trajectory."""
    paths = layout.segment(record.simulation, record.segment)
    universe = MDAnalysis.Universe(str(layout.topology), str(paths.trajectory))
    ca = universe.select_atoms("name CA")
    return [float(distance_array(ca.positions[:1], ca.positions[-1:])[0, 0]) for _ in universe.trajectory]


def segments_of(layout):
    return [read_record(SegmentRecord, path) for path in sorted(layout.simulations.glob("*/segment-????/segment.json"))]


def test_every_score_on_disk_is_what_another_library_finds(scored):
    lowest = {}
    for record in segments_of(scored.layout):
        expected = recompute(scored.layout, record)
        with h5py.File(scored.layout.segment(record.simulation, record.segment).frames) as file:
            np.testing.assert_allclose(file["score"][:], expected, atol=1e-4)
            assert dict(file["score"].attrs)["name"] == "end_to_end"
            assert dict(file["score"].attrs)["goal"] == "minimise"
        assert record.best_score == pytest.approx(min(expected), abs=1e-4)
        assert record.best_score_frame == int(np.argmin(expected))
        lowest[record.simulation, record.segment] = min(expected)
    summary = json.loads(scored.layout.summary.read_text())
    assert summary["score"] == "end_to_end"
    assert summary["best_score"] == pytest.approx(min(lowest.values()), abs=1e-4)
    recomputed = {(r.simulation, r.segment): recompute(scored.layout, r) for r in segments_of(scored.layout)}
    for iteration in (1, 2, 3):
        for outlier in read_record(AnalysisRecord, scored.layout.analysis(iteration)).outliers:
            expected = recomputed[outlier.frame.simulation, outlier.frame.segment][outlier.frame.frame]
            assert outlier.score == pytest.approx(expected, abs=1e-4)
    place = summary["best_score_frame"]
    assert (place["simulation"], place["segment"]) == min(lowest, key=lowest.get)


def test_restarts_are_from_the_best_scores(scored):
    layout, seen = scored.layout, 0
    decisions = [d for d in read_lines(Decision, layout.decisions) if d.n_outliers is not None]
    for decision in decisions:
        starts = [action for action in decision.actions if action.kind == "restart"]
        if not starts:
            continue
        analysis = read_record(AnalysisRecord, layout.analysis(decision.iteration - 1))
        assert all(outlier.score is not None and not outlier.problems for outlier in analysis.outliers)
        usable = {o.frame: o.score for o in analysis.outliers if (o.frame.segment, o.frame.frame) != (0, 0)}
        used = {a.origin for d in decisions[: decisions.index(decision)] for a in d.actions if a.kind == "restart"}
        best = sorted(score for frame, score in usable.items() if frame not in used)[: len(starts)]
        assert sorted(action.score for action in starts) == best
        assert all("score" in action.reason for action in starts)
        seen += len(starts)
    assert seen >= 2


def test_status_table_and_verify_know_the_score(scored, tmp_path):
    layout = scored.layout
    best = min(record.best_score for record in segments_of(layout))
    report = read_status(RunReader(layout))
    assert (report.score, report.best_score) == ("end_to_end", best)
    run = RunReader(layout).read(0.0)
    rows = [row for piece in FrameTable(layout, run, run.system, Selection(), None).read() for row in piece.to_pylist()]
    assert min(row["score"] for row in rows) == best
    assert verify_run(layout).problems == []
    record = segments_of(layout)[0]
    path = layout.segment(0, 0).record
    try:
        write_record(path, record.model_copy(update={"best_score": best - 1.0}))
        assert [text for _, text in verify_run(layout).problems if "has the best score" in text]
    finally:
        write_record(path, record)


def test_the_run_folder_keeps_the_function(scored):
    layout = scored.layout
    assert sorted(path.name for path in layout.system.iterdir()) == [
        "native.pdb", "score.py", "system.json", "system.xml", "topology.pdb",
    ]  # fmt: skip
    assert layout.score.read_text() == EXAMPLES.read_text()


def test_a_changed_function_is_not_run(scored, tmp_path):
    copy = RunLayout(tmp_path / "run")
    shutil.copytree(scored.layout.root, copy.root)
    copy.score.write_text(copy.score.read_text() + "\nraise RuntimeError\n")
    order = next(copy.simulations.glob("0000/segment-0000.task.json"))
    with pytest.raises(DamagedError, match="score.py"):
        run_task("simulate", copy.root, order)
    campaign = type(scored)(copy, scored.settings, scored.machine)
    with pytest.raises(RunFolderError, match="score.py"):
        campaign.resume()


def test_a_campaign_keeps_its_score_when_it_is_taken_up_again(scored):
    other = scored.settings.model_dump(mode="json")
    other["steering"] = {**other["steering"], "ranking": "mix"}
    change_settings(scored.layout, build_settings(other))
    change_settings(scored.layout, scored.settings)
    other["steering"] = {**other["steering"], "score": "native_contacts"}
    with pytest.raises(SettingsError, match=r"steering.score = 'native_contacts'.*one score"):
        change_settings(scored.layout, build_settings(other))


def test_a_target_that_was_reached_ends_a_campaign_that_is_taken_up_again(scored, tmp_path):
    best = min(record.best_score for record in segments_of(scored.layout))
    copy = RunLayout(tmp_path / "run")
    shutil.copytree(scored.layout.root, copy.root)
    stop = scored.settings.stop.model_copy(update={"target_score": best + 1e-6})
    settings = scored.settings.model_copy(update={"stop": stop})
    campaign = type(scored)(copy, settings, scored.machine)
    assert campaign.resume() is None
    assert campaign.final_decision.stop_reason == "target_score"


@pytest.mark.parametrize(
    ("score", "goal", "target"),
    [("native_contacts", "maximise", 0.0), ("radius_of_gyration", "minimise", 100.0)],
)
def test_a_known_score_is_written_and_ends_a_campaign(tmp_path, score, goal, target):
    settings = tiny_settings(f"steering.score={score}", f"stop.target_score={target}")
    campaign = prepare(tmp_path / "run", settings, cores=1)
    run_campaign(campaign)
    summary = campaign.summarise()
    assert (summary.stop_reason, summary.n_iterations) == ("target_score", 1)
    with h5py.File(campaign.layout.segment(0, 0).frames) as file:
        column = file[score if score == "native_contacts" else "radius_of_gyration_angstrom"][:]
        np.testing.assert_allclose(file["score"][:], column, rtol=1e-12)
    assert summary.best_score == pytest.approx(max(column) if goal == "maximise" else min(column))
    assert not campaign.layout.score.exists()


def test_helical_fraction_and_dihedrals_agree_with_mdanalysis(tiny_campaign):
    examples, layout = load_examples(), tiny_campaign.layout
    universe = MDAnalysis.Universe(str(layout.topology), str(layout.segment(0, 0).trajectory))
    native = MDAnalysis.Universe(str(layout.native)).select_atoms("name CA").positions.astype(float)
    n = len(native)
    which = Molecule(("CA",) * n, ("ALA",) * n, np.arange(n), np.arange(n), native)
    for step in [*universe.trajectory[::5], None]:
        ca = native if step is None else step.positions.astype(float)
        degrees = np.degrees(calc_dihedrals(ca[:-3], ca[1:-2], ca[2:-1], ca[3:]))
        assert examples.helical_fraction(ca, which) == np.mean((degrees >= 30) & (degrees <= 70))
        pairs = distance_array(ca, ca) - distance_array(native, native)
        expected = np.sqrt((pairs[np.triu_indices(n, 1)] ** 2).mean())
        assert examples.native_distance_error(ca, which) == pytest.approx(expected)
    assert examples.helical_fraction(native, which) > 0.5
