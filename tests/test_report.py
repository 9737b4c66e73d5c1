"""The report: its numbers against the raw files, and every state that a campaign can be in."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from browser import check_three_dimensions, find_errors, show
from check_report import Page, check_report
from conftest import prepare, tiny_settings
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from selenium.webdriver.support.select import Select

from entk_app import cli
from entk_app.errors import RunFolderError
from entk_app.integrity import digest_file
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock
from entk_app.records import (
    AnalysisRecord,
    Decision,
    FrameRef,
    PilotRecord,
    SegmentRecord,
    SystemRecord,
    append_record,
    read_lines,
    read_record,
    write_lines,
    write_record,
)
from entk_app.report import write_report
from entk_app.report.data import FrameColumns, read_report_data
from entk_app.report.figure import Figure, Missing, Table
from entk_app.report.figures import SECTIONS
from entk_app.report.figures.latent import build_latent
from entk_app.report.sample import sample_points, sample_series
from entk_app.report.tables import format_seconds, format_us
from entk_app.verify import verify_run


@pytest.fixture
def run(tiny_campaign, tmp_path):
    """A copy of a finished campaign of three iterations, with limits that put frames into every class."""
    shutil.copytree(tiny_campaign.layout.root, tmp_path / "run")
    layout = RunLayout(tmp_path / "run")
    rmsd = np.concatenate([read_rmsd(path) for path in layout.simulations.glob("*/*/frames.h5")])
    target = float(np.percentile(rmsd, 20))
    settings = layout.settings.read_text()
    assert "target_rmsd_angstrom: 0.1\n" in settings
    layout.settings.write_text(settings.replace("target_rmsd_angstrom: 0.1\n", f"target_rmsd_angstrom: {target}\n"))
    return layout


def read_rmsd(path):
    with h5py.File(path, "r") as file:
        return file["rmsd_angstrom"][:]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and put on the page, their files are left empty: drawing takes most of a report's time."""

    def write_nothing(figure, paths):
        for path in paths:
            path.write_bytes(_DOT if path.suffix == ".png" else b"<svg/>")

    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    _DOT = picture.getvalue()
    monkeypatch.setattr("entk_app.report.write.draw_files", write_nothing)


def make_page(layout: RunLayout) -> tuple[Page, list[str]]:
    """The page, and what was left out; no figure may be missing because it failed."""
    written = write_report(layout)
    assert not [sentence for sentence in written.missing if "It failed" in sentence]
    page = Page(written.page)
    assert set(page.figures) == set(written.figures)
    return page, list(written.missing)


def build_figures(data) -> dict[str, Figure | Missing]:
    found = [item for _, _, builders in SECTIONS for builder in builders for item in builder(data)]
    assert len({item.name for item in found}) == len(found)
    return {item.name: item for item in found}


def forget(layout: RunLayout, *patterns: str) -> None:
    for pattern in patterns:
        for path in list(layout.root.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_decisions(layout: RunLayout, n: int) -> None:
    """The first so many, and the simulations that they started."""
    kept = list(read_lines(Decision, layout.decisions))[:n]
    write_lines(layout.decisions, kept)
    started = {action.simulation for decision in kept for action in decision.actions}
    for folder in layout.simulations.iterdir():
        if int(folder.name) not in started:
            shutil.rmtree(folder)


# A finished campaign.


def test_every_number_is_that_of_the_raw_files_and_every_figure_has_its_files(run):
    written = write_report(run)
    # No pilot ran this campaign: it has no account.
    assert len(written.figures) >= 16
    checked = check_report(run.root)
    assert checked["points"] > 100 and checked["latent"] > 100 and checked["structures"] >= 3 and checked["models"] == 6
    first = {path: path.read_bytes() for path in (run.report / "figures").iterdir()}
    (run.report / "figures" / "of-an-earlier-report.svg").touch()
    left_behind = run.root / ".report-left"
    left_behind.mkdir()
    assert write_report(run).figures == written.figures
    # The same numbers make the same files; those of earlier reports go; an hour has not passed for what is in work.
    assert {path: path.read_bytes() for path in (run.report / "figures").iterdir()} == first
    assert [path.name for path in run.root.glob(".report-*")] == [left_behind.name]
    left_behind.rmdir()
    assert not verify_run(run).problems


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("figures/table-1.csv", r"campaign,\d+,", "campaign,99,"),
        ("figures/outliers.csv", r"(?m)^(\d,\d),\d+,", r"\1,777,"),
        ("figures/rmsd-histogram.csv", r"(?m)^([\d.]+,[\d.]+),\d+,", r"\1,88,"),
        ("figures/contacts-mean.csv", r"(?m)^(1,\d+),0\.\d+$", r"\1,0.123"),
        ("figures/lineage.csv", "purge", "end"),
        ("figures/latent.csv", r"(?m)^(frames,\d+,\d+,\d+),[\d.]+", r"\1,0.5"),
        ("figures/rmsd-own.csv", r"(?m),[\d.]+,(\w+)$", r",3.25,\1"),
        ("figures/losses.csv", r"(?m)^(\d,\d,\d),[\d.]+", r"\1,1.5"),
        ("index.html", r"<strong>[\d.]+&nbsp;Å", "<strong>0.01&nbsp;Å"),
        ("index.html", r"(unfolded: )[\d,]+ frames", r"\1 7 frames"),
        ("index.html", r'"customdata":\{"dtype":"i1","bdata":"..', r'"customdata":{"dtype":"i1","bdata":"Zz'),
    ],
)
def test_the_check_finds_a_number_that_is_not_the_raw_files(run, undrawn, file, old, new):
    make_page(run)
    check_report(run.root)
    path = run.report / file
    text = path.read_text(encoding="utf-8")
    altered = re.sub(old, new, text)
    assert altered != text
    path.write_text(altered, encoding="utf-8")
    with pytest.raises(AssertionError):
        check_report(run.root)


def test_names_from_outside_are_text_on_the_page(tiny_campaign, tmp_path, undrawn):
    root = tmp_path / "<img src=x onerror=alert(1)> & co"
    shutil.copytree(tiny_campaign.layout.root, root)
    page, _ = make_page(RunLayout(root))
    assert "<img src=x" not in page.text and "&lt;img src=x" in page.text


def test_the_page_holds_everything_and_asks_for_nothing(run, undrawn):
    page, _ = make_page(run)
    assert "connect-src 'none'" in page.text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:|figures/|#)", page.visible)


def test_a_reader_chooses_latent_dimensions_and_the_light(run, undrawn, chromium):
    newest = run.analysis(3)
    record = read_record(AnalysisRecord, newest)
    best = next(found.model for found in record.models if found.model.latent_dim == 4)
    write_record(newest, record.model_copy(update={"best_model": best}))
    page, _ = make_page(run)
    show(chromium, run.report / "index.html", 1280, "light")
    drawn = "const plot = document.querySelector('#latent .plot');"
    title, first = f"{drawn} return plot._fullLayout.scene.xaxis.title.text", f"{drawn} return plot._fullData[0].x[0]"
    z1, z4 = (float(page.data["latent"]["dimensions"][0][axis][0]) for axis in (0, 3))
    assert (chromium.execute_script(title), chromium.execute_script(first)) == ("z1", pytest.approx(z1))
    Select(chromium.find_element("css selector", "#latent select[data-axis='0']")).select_by_value("3")
    assert (chromium.execute_script(title), chromium.execute_script(first)) == ("z4", pytest.approx(z4))
    chromium.execute_script("document.getElementById('theme').click()")
    assert chromium.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert check_three_dimensions(chromium) >= 5
    assert find_errors(chromium) == []


# A campaign in any other state.


def test_there_is_no_report_of_a_folder_without_a_campaign(tmp_path, capsys):
    with pytest.raises(RunFolderError, match="no campaign"):
        write_report(RunLayout(tmp_path))
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no campaign" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_campaign_that_has_just_begun_says_what_is_not_there_yet(tmp_path, undrawn):
    campaign = prepare(tmp_path / "run", tiny_settings("coupling=staged"))
    campaign.start()
    CampaignLock.create(campaign.layout.lock)
    page, missing = make_page(campaign.layout)
    assert any("No segment is whole yet" in sentence for sentence in missing)
    assert page.figures == []
    assert page.read_rows("table-1")[0][1:6] == ["0", "0", "–, –", "1", "–"]
    assert page.read_fact("folded")[0] == "–"
    assert "2 simulations start" in page.visible
    assert "state-starting" in page.visible or "state-running" in page.visible


def test_a_campaign_with_initial_frames_only(run, undrawn):
    forget(run, "models", "analysis", "summary.json", "simulations/*/segment-000[1-9]")
    keep_decisions(run, 1)
    page, missing = make_page(run)
    assert {"latent", "losses", "model-choice", "outliers"} <= set(page.missing)
    assert {"rmsd-aggregate", "rmsd-histogram", "lineage", "contacts-mean"} <= set(page.figures)
    assert any("No analysis has been published yet" in sentence for sentence in missing)
    assert page.read_rows("table-2")[0][1:5] == ["–"] * 4
    check_report(run.root)


def test_a_dead_campaign_with_segments_that_are_not_whole(run, undrawn):
    """Killed while it simulated in its second iteration."""
    forget(run, "summary.json", "analysis/iteration-000[23]*", "models/iteration-000[23]")
    keep_decisions(run, 3)
    forget(run, "simulations/*/segment-0002")
    torn = sorted(run.root.glob("simulations/*/segment-0001"))[0]
    torn.rename(torn.with_name("segment-0001.partial"))
    page, _ = make_page(run)
    assert "state-dead" in page.visible
    # Iteration 2 was analysed by nobody: what it has simulated is drawn, and not yet encoded.
    assert "are not encoded by it yet" in page.read_caption("latent")
    check_report(run.root)


def test_without_a_reference_numbers_of_rmsd_are_left_out_with_a_sentence(run, undrawn):
    system = read_record(SystemRecord, run.system_record)
    write_record(run.system_record, system.model_copy(update={"has_native": False}))
    for path in run.root.glob("simulations/*/segment-????/segment.json"):
        with h5py.File(path.parent / "frames.h5", "r+") as file:
            del file["rmsd_angstrom"], file["native_contacts"]
        record = read_record(SegmentRecord, path)
        files = record.files | {"frames.h5": digest_file(path.parent / "frames.h5")}
        changes = {"min_rmsd_angstrom": None, "min_rmsd_frame": None, "last_rmsd_angstrom": None, "files": files}
        write_record(path, record.model_copy(update=changes))
    page, missing = make_page(run)
    assert {"rmsd-aggregate", "rmsd-histogram", "structures", "contacts-native", "contacts-best"} <= set(page.missing)
    assert {"latent", "lineage", "contacts-mean", "outliers"} <= set(page.figures)
    assert any("no native structure (--reference FILE)" in sentence for sentence in missing)
    assert [page.read_fact(name)[0] for name in ("folded", "lowest", "when")] == ["–"] * 3
    assert page.read_rows("table-1")[0][5] == "–"
    assert "radius of gyration" in page.read_caption("latent")


def test_damaged_pieces_are_left_out_and_named(run, undrawn):
    segments = sorted(run.root.glob("simulations/*/segment-????/frames.h5"))
    flipped, cut, gone = segments[0], segments[1], segments[2].parent / "segment.json"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:100])
    gone.unlink()
    history = next(iter(sorted(run.root.glob("models/iteration-0003/latent-3/history.csv"))))
    history.write_text("epoch,train_loss\nx,y\n")
    page, missing = make_page(run)
    said = " ".join(missing)
    assert "is altered" in said and "is not a whole record" in said and "not a table of numbers" in said
    bad = {path.parent for path in (flipped, cut, gone)}
    whole = [path for path in run.root.glob("simulations/*/segment-????/frames.h5") if path.parent not in bad]
    counts = []
    for path in whole:
        with h5py.File(path, "r") as file:
            counts.append(len(file["time_ps"]))
    assert len(read_report_data(run).frames) == sum(counts) > 0
    assert f"All {sum(counts):,} frames." in page.read_caption("rmsd-histogram")
    assert "losses" in page.figures and "latent" in page.figures


def test_segments_that_were_set_aside_are_no_data(run, undrawn):
    segment = sorted(run.root.glob("simulations/*/segment-0000"))[0]
    (run.root / "set-aside").mkdir(exist_ok=True)
    segment.rename(run.root / "set-aside" / "segment")
    page, _ = make_page(run)
    assert page.figures
    check_report(run.root)


def test_an_analysis_that_found_no_outlier(run, undrawn):
    for path in run.root.glob("analysis/iteration-000?.json"):
        record = read_record(AnalysisRecord, path)
        models = tuple(m.model_copy(update={"eps": None, "n_outliers": 0}) for m in record.models)
        write_record(path, record.model_copy(update={"outliers": (), "models": models}))
    page, _ = make_page(run)
    assert "no radius gave few enough" in page.read_caption("outliers")
    assert [trace["name"] for trace in page.data["latent"]["data"]] == ["frames", "lowest RMSD"]
    rows = (run.report / "figures" / "outliers.csv").read_text().splitlines()
    # An unknown noise fraction is no fraction, not 0.
    assert all(row.split(",")[2:5] == ["0", "", ""] for row in rows[1:])


def test_damaged_decisions_and_unknown_system(run, undrawn):
    lines = run.decisions.read_text().splitlines(keepends=True)
    run.decisions.write_text(lines[0] + "{torn\n" + "".join(lines[2:]))
    run.system_record.write_text("{")
    page, missing = make_page(run)
    assert any("line 2 is damaged" in sentence for sentence in missing)
    assert any("system.json cannot be read" in sentence for sentence in missing)
    assert "rmsd-aggregate" in page.figures


# The end of a run.


def report_at_end(layout) -> str:
    console = Console(file=io.StringIO(), width=300)
    cli._write_last_report(console, layout)
    return console.file.getvalue()


@pytest.mark.parametrize("error", [ValueError("what nobody thought of"), KeyboardInterrupt(), OSError(28, "No space")])
def test_a_report_that_fails_is_one_line_at_the_end_of_a_run(run, monkeypatch, error):
    def fail(layout):
        raise error

    monkeypatch.setattr("entk_app.report.write_report", fail)
    said = report_at_end(run)
    assert said.count("\n") == 1 and said.startswith("note: no report was written (")
    assert f"entk-app report {run.root}" in said


def test_one_figure_that_fails_does_not_cost_the_others(run, undrawn, monkeypatch):
    def build_lineage(data):
        raise ZeroDivisionError("a case nobody thought of")

    def replace_one(builders):
        return tuple(build_lineage if builder.__name__ == "build_lineage" else builder for builder in builders)

    sections = [(key, title, replace_one(builders)) for key, title, builders in SECTIONS]
    monkeypatch.setattr("entk_app.report.write.SECTIONS", sections)
    written = write_report(run)
    assert any("a case nobody thought of" in sentence for sentence in written.missing)
    assert "rmsd-aggregate" in written.figures and "lineage" not in written.figures


def test_a_report_leaves_nothing_behind_when_it_cannot_be_written(run, monkeypatch):
    def fail(data, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("entk_app.report.write._write", fail)
    with pytest.raises(RunFolderError, match="No space left"):
        write_report(run)
    assert not list(run.root.glob(".report-*")) and not run.report.exists()


# Parts.


def test_latent_spaces_of_one_two_and_many_dimensions_are_drawn(run):
    data = read_report_data(run)
    space = data.latent
    for n_dimensions in (1, 2, 20):
        points = np.random.default_rng(1).normal(size=(len(space.rows), n_dimensions)).astype("f4")
        figure = next(build_latent(replace(data, latent=replace(space, coordinates=points))))
        assert len(figure.dimensions[0]) == min(max(3, n_dimensions), 12)
        assert f"z{n_dimensions}" in figure.table.columns
        figure.draw().savefig(io.BytesIO(), format="png")


def test_the_newest_tenth_is_the_newest(run):
    data = read_report_data(run)
    figures = build_figures(data)
    shown = {tuple(row) for row in np.column_stack([figures["latent-newest"].table.columns[key]
                                                    for key in ("simulation", "segment", "frame")])}  # fmt: skip
    when = {tuple(row): unix for row, unix in zip(
        np.column_stack([data.frames.simulation, data.frames.segment, data.frames.frame])[data.latent.rows],
        data.frames.unix[data.latent.rows], strict=True)}  # fmt: skip
    older = [unix for row, unix in when.items() if row not in shown]
    assert max(older) <= min(when[row] for row in shown)
    assert abs(len(shown) - 0.1 * len(when)) <= 0.1 * len(when)


def test_working_hours_leave_out_the_time_between_pilots(run):
    data = read_report_data(run)
    pilots = [
        PilotRecord(number=n, session="s", resource="r", nodes=1, cores=1, gpus=0, walltime_min=60, queued=False,
                    unix_submitted=begin, unix_began=begin, unix_end=end)
        for n, (begin, end) in enumerate([(1000.0, 4600.0), (10_000.0, 11_800.0), (20_000.0, None)])
    ]  # fmt: skip
    for pilot in pilots:
        append_record(run.pilots, pilot)
    first = data.run.decisions[0].model_copy(update={"unix": 1000.0})
    state = replace(data.run, pilots=tuple(pilots), decisions=(first,), now=27_200.0)
    hours = replace(data, run=state).to_working_hours(np.array([1000.0, 2800.0, 7000.0, 10_900.0, 19_000.0, 23_600.0]))
    assert hours == pytest.approx([0.0, 0.5, 1.0, 1.25, 1.5, 2.5])


def test_a_frame_that_is_not_there_is_not_taken_for_another():
    n = np.arange(4)
    columns = FrameColumns(
        simulation=np.array([0, 0, 1, 1], "i4"), segment=np.zeros(4, "i4"), frame=np.array([0, 1, 0, 1], "i4"),
        iteration=np.ones(4, "i4"), time_ps=n * 1.0, unix=n * 1.0, aggregate_ps=n * 1.0, rmsd_angstrom=None,
        native_contacts=None, radius_of_gyration_angstrom=n * 1.0,
    )  # fmt: skip
    rows = [columns.find_row(FrameRef(simulation=s, segment=g, frame=f))
            for s, g, f in [(0, 0, 1), (1, 0, 1), (0, 0, 2), (1, 0, 2), (0, 1, 0), (2, 0, 0)]]  # fmt: skip
    assert rows == [1, 3, None, None, None, None]


@given(st.integers(1, 400), st.integers(4, 60), st.integers(1, 5), st.integers(0, 2**31))
def test_a_sample_has_the_extremes_and_what_must_be_kept(n, limit, n_dimensions, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, n_dimensions)) * 10.0 ** rng.integers(-3, 3, n_dimensions)
    keep = rng.integers(0, n, size=min(n, 7))
    rows = sample_points(points, limit, keep)
    assert np.all(np.diff(rows) > 0) and set(keep) <= set(rows.tolist())
    assert len(rows) <= max(min(n, limit), len(set(keep.tolist())) + 2 * n_dimensions)
    assert len(rows) >= min(n, limit)
    assert np.array_equal(points[rows].min(axis=0), points.min(axis=0))
    assert np.array_equal(points[rows].max(axis=0), points.max(axis=0))
    assert np.array_equal(rows, sample_points(points, limit, keep))


def test_a_sample_thins_dense_regions_and_keeps_sparse_ones():
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(0, 0.1, (50_000, 3)), rng.uniform(-5, 5, (500, 3))])
    rows = sample_points(points, 5000, np.empty(0, int))
    assert (rows >= 50_000).sum() > 400
    assert (rows < 50_000).sum() == 5000 - (rows >= 50_000).sum()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_a_sampled_series_has_its_ends_and_its_extremes(values, limit):
    series = np.array(values)
    rows = sample_series(series, limit)
    assert rows[0] == 0 and rows[-1] == len(series) - 1 and np.all(np.diff(rows) > 0)
    assert series[rows].min() == series.min() and series[rows].max() == series.max()
    assert len(rows) <= max(limit, 4) + 2


def test_a_table_writes_what_is_not_known_as_nothing():
    table = Table({"n": np.array([1, 2]), "x_ps": [None, float("nan")], "y": [np.float32(0.5), 1 / 3]})
    assert table.to_csv() == "n,x_ps,y\n1,,0.5\n2,,0.3333333333\n"


def test_numbers_are_shown_without_exponents():
    assert [format_us(v) for v in (None, 54.1984, 0.016, 8e-05, 0.0000123456)] == [
        "–", "54.198", "0.016", "0.00008", "0.0000123",
    ]  # fmt: skip
    assert [format_seconds(v) for v in (12.4, 683, 7300, 3e5)] == ["12 s", "11 min 23 s", "2 h 1 min", "3.5 days"]


def test_the_page_is_one_json_island_a_figure(run, undrawn):
    page, _ = make_page(run)
    for name in page.data:
        assert name in page.figures
    themes = json.loads(re.search(r'id="themes">(.*?)</script>', page.text, re.S)[1])
    assert set(themes["templates"]) == {"light", "dark"}
