"""An independent check of a report: every number of the page again from the raw files, and from the files beside it.

Reads HDF5 with h5py, structures and trajectories with MDAnalysis, the rest as JSON and CSV; it shares no code with the
application. ``python tests/check_report.py RUN`` checks the report of a campaign that has ended by hand.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import re
import statistics
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import h5py
import MDAnalysis as mda
import numpy as np
import yaml
from MDAnalysis.analysis.rms import rmsd as compute_rmsd

#: Ma et al. 2019: class limits of Fs-peptide in ångström, and the rows of tables 1 and 2.
PAPER_LIMITS = {"fs-peptide": (3.1, 4.6)}
PAPER_ROWS = {
    "table-1": [
        ["fs-peptide", 31, 54.198, 1.01, 3.4, 90, 1.6, 91],
        ["bba", 45, 18.562, 0.517, 0.873, 100, 4.44, 91],
    ],
    "table-2": [["fs-peptide", 7, 100, 5, 5.13, 1.25, 91], ["bba", 11, 100, 7, 1.27, 1.20, 91]],
}
#: What is shown on the page is rounded to three digits, or to two decimals; files hold ten digits.
SHOWN, WRITTEN = 6e-3, 1e-8


class Raw:
    """The raw files of a campaign."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.settings = yaml.safe_load((run / "settings.yaml").read_text(encoding="utf-8"))
        self.decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text("utf-8").splitlines()]
        self.segments = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(run.glob("simulations/*/segment-????/segment.json"))
            if re.fullmatch(r"segment-\d{4}", path.parent.name)
        ]
        self.models = [json.loads(p.read_text("utf-8")) for p in sorted(run.glob("models/iteration-*/*/model.json"))]
        self.analyses = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(run.glob("analysis/iteration-*.json"))
            if re.fullmatch(r"iteration-\d{4}\.json", path.name)
        ]
        self.rmsd: dict[tuple[int, int], np.ndarray] = {}
        self.maps = []
        for segment in self.segments:
            with h5py.File(self.folder(segment) / "frames.h5", "r") as file:
                self.rmsd[segment["simulation"], segment["segment"]] = file["rmsd_angstrom"][:]
                self.n_residues = int(file.attrs["n_residues"])
                self.maps.append(file["contacts"][:])
        self.every = np.concatenate(list(self.rmsd.values()))
        name, target = self.settings["system"]["name"], self.settings["stop"]["target_rmsd_angstrom"]
        self.folded, self.partial = PAPER_LIMITS.get(name, (target or 2.0, 1.5 * (target or 2.0)))

    def folder(self, segment: dict) -> Path:
        return self.run / "simulations" / f"{segment['simulation']:04d}" / f"segment-{segment['segment']:04d}"

    def classify(self, value: float) -> str:
        return "folded" if value <= self.folded else "partial" if value <= self.partial else "unfolded"

    def count_classes(self) -> dict[str, int]:
        folded, near = int((self.every <= self.folded).sum()), int((self.every <= self.partial).sum())
        return {"folded": folded, "partial": near - folded, "unfolded": len(self.every) - near}


class Page:
    """What a reader, or a browser, finds in the page."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        scripts = re.findall(r'<script type="application/json" id="data-([^"]+)">(.*?)</script>', self.text, re.S)
        self.data = {name: decode(json.loads(text)) for name, text in scripts}
        self.visible = re.sub(r"<(script|style)\b.*?</\1>", "", self.text, flags=re.S)
        self.missing = re.findall(r'<div class="card missing" id="([^"]+)"', self.visible)
        self.figures = re.findall(r'<figure class="card" id="([^"]+)"', self.visible)

    def read_rows(self, table: str) -> list[list[str]]:
        body = re.search(rf'id="{table}".*?<tbody>(.*?)</tbody>', self.visible, re.S)
        assert body is not None, f"no {table} on the page"
        return [
            [clean(cell) for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.S)]
            for row in re.findall(r"<tr.*?</tr>", body[1], re.S)
        ]

    def read_fact(self, name: str) -> tuple[str, str]:
        found = re.search(rf'class="fact fact-{name}\b.*?<strong>(.*?)</strong><span>(.*?)</span>', self.visible, re.S)
        assert found is not None, f"no fact {name} on the page"
        return clean(found[1]), clean(found[2])

    def read_caption(self, figure: str) -> str:
        found = re.search(rf'<figure class="card" id="{figure}".*?<figcaption[^>]*>(.*?)<', self.visible, re.S)
        assert found is not None, f"no caption of {figure}"
        return clean(found[1])


def clean(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\xa0", " ").strip()


def decode(value: object) -> object:
    """plotly's arrays of base64 as numpy's."""
    if isinstance(value, dict):
        if "bdata" in value:
            array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=np.dtype(value["dtype"]))
            shape = [int(n) for n in str(value.get("shape", len(array))).split(",")]
            return array.reshape(shape)
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def is_near(shown: object, value: float | None, tolerance: float) -> bool:
    """Whether a number, or what stands where none is known, is the value."""
    if value is None or shown in ("", "–", None):
        return value is None and shown in ("", "–", None)
    return abs(float(str(shown)) - value) <= tolerance * abs(value) + 1e-12


def check_report(run: Path) -> dict[str, int]:
    """Returns how much of each was checked."""
    raw, page = Raw(run), Page(run / "report" / "index.html")
    folder = run / "report" / "figures"
    check_tables(raw, page, folder)
    check_facts(raw, page)
    n_bins = check_histogram(raw, page, folder)
    n_points = check_series(raw, page, folder)
    return {
        "bins": n_bins,
        "points": n_points,
        "latent": check_latent(raw, page, folder),
        "structures": check_structures(raw, page, folder),
        "pairs": check_contacts(raw, page, folder),
        "simulations": check_lineage(raw, folder),
        "models": check_learning(raw, page, folder),
        "decisions": check_decisions(raw, page, folder),
        "figures": check_files(page, folder),
    }


def check_tables(raw: Raw, page: Page, folder: Path) -> None:
    lengths: dict[int, list[float]] = {}
    for segment in raw.segments:
        n, time_ps = lengths.get(segment["simulation"], (0, 0.0))
        lengths[segment["simulation"]] = [n + segment["n_frames"], time_ps + segment["time_ps"]]
    past = [time_ps for n, time_ps in lengths.values() if n >= raw.settings["steering"]["min_frames"]]
    total = sum(time_ps for _, time_ps in lengths.values())
    seconds = sum(segment["seconds_md"] for segment in raw.segments)
    n_iterations = max(decision["iteration"] for decision in raw.decisions)
    median = {
        key: statistics.median(m[key] for m in raw.models) if raw.models else None
        for key in ("seconds_train", "epochs", "seconds_per_epoch", "inference_ms_per_frame")
    }
    minutes = median["seconds_train"] and median["seconds_train"] / 60
    ours: dict[str, list[float | None]] = {
        "table-1": [len(lengths), total * 1e-6, min(past) * 1e-6 if past else None,
                    max(t for _, t in lengths.values()) * 1e-6, n_iterations, raw.every.min()],
        "table-2": [minutes, median["epochs"], median["seconds_per_epoch"], median["inference_ms_per_frame"],
                    total / 1000 / (seconds / 60)],
    }  # fmt: skip
    friction = {segment["friction_per_ps"] for segment in raw.segments}
    assert friction == {raw.settings["simulate"]["friction_per_ps"]}
    for name, expected in ours.items():
        written = read_csv(folder / f"{name}.csv")
        rows = [[v for k, v in row.items() if k not in ("source", "platform")] for row in written]
        assert rows[0][0] == raw.settings["system"]["name"]
        for value, number in zip(rows[0][1:], [*expected, *friction], strict=True):
            assert is_near(value, number, WRITTEN), (name, value, number)
        for row, paper in zip(rows[1:], PAPER_ROWS[name], strict=True):
            assert [row[0], *map(float, row[1:])] == paper, (name, row)
        shown = [cell for row in page.read_rows(name)[:1] for text in row[1:] for cell in text.split(", ")]
        # The platform has commas of its own, and stands before the friction.
        shown = [*shown[: len(expected)], shown[-1]]
        for value, number in zip(shown, [*expected, *friction], strict=True):
            assert is_near(value, number, SHOWN), (name, value, number)
        for row, paper in zip(page.read_rows(name)[1:], PAPER_ROWS[name], strict=True):
            assert "the paper" in row[0] and "V100" in row[-2] and row[-1] == "91"
            numbers = [float(cell) for text in row[1:-2] for cell in text.split(", ")]
            assert numbers == paper[1:-1], (name, row)
        platforms = {segment["platform"] for segment in raw.segments}
        assert all(platform in page.read_rows(name)[0][-2] for platform in platforms)


def check_facts(raw: Raw, page: Page) -> None:
    answer, detail = page.read_fact("folded")
    n_folded = raw.count_classes()["folded"]
    assert answer.startswith("Yes" if n_folded else "No")
    assert not n_folded or detail.startswith(f"{n_folded:,} frames")
    answer, detail = page.read_fact("lowest")
    simulation, segment, frame = map(int, re.findall(r"\d+", detail))
    assert raw.rmsd[simulation, segment][frame] == raw.every.min()
    assert answer == f"{raw.every.min():.2f} Å"
    assert f"{len(raw.every):,} frames" in page.read_fact("long")[1]


def check_histogram(raw: Raw, page: Page, folder: Path) -> int:
    rows = read_csv(folder / "rmsd-histogram.csv")
    for row in rows:
        left, right = float(row["from_angstrom"]), float(row["to_angstrom"])
        # An edge is no number that a binary computer has: what is on it may be on either side.
        at_least = int(((raw.every > left + 1e-8) & (raw.every < right - 1e-8)).sum())
        at_most = int(((raw.every > left - 1e-8) & (raw.every < right + 1e-8)).sum())
        assert at_least <= int(row["n_frames"]) <= at_most, row
        assert is_near(row["percent"], 100 * int(row["n_frames"]) / len(raw.every), WRITTEN)
    assert sum(int(row["n_frames"]) for row in rows) == len(raw.every)
    traces = page.data["rmsd-histogram"]["data"]
    assert sum(int(np.sum(trace["customdata"])) for trace in traces) == len(raw.every)
    drawn = {round(float(x), 6): int(n) for t in traces for x, n in zip(t["x"], t["customdata"], strict=True)}
    for row in rows:
        centre = (float(row["from_angstrom"]) + float(row["to_angstrom"])) / 2
        assert drawn[round(centre, 6)] == int(row["n_frames"])
    caption = page.read_caption("rmsd-histogram")
    for name, word in (("folded", ": folded"), ("partial", "partially folded"), ("unfolded", "unfolded")):
        n = raw.count_classes()[name]
        said = f"{word.removeprefix(': ')}: {n:,} frames ({100 * n / len(raw.every):.1f} %)"
        assert said in caption, (said, caption)
    return len(rows)


def check_series(raw: Raw, page: Page, folder: Path) -> int:
    """RMSD over time: what is drawn is what was measured, and no extreme is missing."""
    interval = raw.settings["simulate"]["report_interval_ps"]
    n_points = 0
    for name in ("rmsd-aggregate", "rmsd-own"):
        rows = read_csv(folder / f"{name}.csv")
        shown: dict[int, list[float]] = {}
        before, total = {}, 0.0
        for simulation in sorted({segment["simulation"] for segment in raw.segments}):
            before[simulation] = total
            total += max(s["start_time_ps"] + s["time_ps"] for s in raw.segments if s["simulation"] == simulation)
        # A simulation's own clock: what was set aside before a segment was simulated all the same.
        began = {(s["simulation"], s["segment"]): s["start_time_ps"] for s in raw.segments}
        for row in rows:
            key = int(row["simulation"]), int(row["segment"])
            value = raw.rmsd[key][int(row["frame"])]
            assert is_near(row["rmsd_angstrom"], value, WRITTEN)
            time_ps = began[key] + (int(row["frame"]) + 1) * interval
            assert abs(float(row["time_ps"]) - time_ps) < 1e-6 * time_ps
            shift = before[key[0]] if name == "rmsd-aggregate" else 0.0
            assert abs(float(row["drawn_at_ps"]) - time_ps - shift) < 1e-6 * (time_ps + shift)
            shown.setdefault(key[0], []).append(value)
        for simulation, values in shown.items():
            own = np.concatenate([v for (number, _), v in raw.rmsd.items() if number == simulation])
            assert (min(values), max(values)) == (own.min(), own.max())
            reached = {row["simulation_reached"] for row in rows if int(row["simulation"]) == simulation}
            assert reached == {raw.classify(own.min())}
        assert set(shown) == {simulation for simulation, _ in raw.rmsd}
        drawn = np.concatenate([trace["y"] for trace in page.data[name]["data"]])
        drawn = np.sort(drawn[~np.isnan(drawn)])
        written = np.sort([float(row["rmsd_angstrom"]) for row in rows])
        assert np.allclose(drawn, written, rtol=1e-6)
        n_points += len(rows)
    check_progress(raw, folder)
    return n_points


def check_progress(raw: Raw, folder: Path) -> None:
    """The lowest RMSD so far: frames in the order of the clock, evenly spaced within their segments."""
    frames = []
    for segment in raw.segments:
        n, begin, end = segment["n_frames"], segment["unix_start"], segment["unix_end"]
        rmsd = raw.rmsd[segment["simulation"], segment["segment"]]
        frames += [(begin + (k + 1) / n * (end - begin), segment["time_ps"] / n, rmsd[k]) for k in range(n)]
    frames.sort(key=lambda frame: frame[0])
    expected, total = [], 0.0
    for _, step_ps, value in frames:
        total += step_ps
        if not expected or value < expected[-1][1]:
            expected.append((total, value))
    rows = read_csv(folder / "progress.csv")
    for row, (aggregate_ps, value) in zip(rows, expected, strict=True):
        assert is_near(row["rmsd_angstrom"], value, WRITTEN)
        assert abs(float(row["aggregate_ps"]) - aggregate_ps) < 1e-6 * total


def check_latent(raw: Raw, page: Page, folder: Path) -> int:
    if not raw.analyses:
        assert {"latent", "latent-newest", "latent-newest-over-older", "outliers"} <= set(page.missing)
        return 0
    last = raw.analyses[-1]
    best = last["best_model"]
    path = raw.run / f"models/iteration-{best['iteration']:04d}/latent-{best['latent_dim']}/embeddings.h5"
    rows = read_csv(folder / "latent.csv")
    outliers = {tuple(outlier["frame"].values()) for outlier in last["outliers"]}
    with h5py.File(path, "r") as file:
        latent = file["latent"][:]
        places = {(simulation, segment): (first, n) for simulation, segment, first, n in file["segments"][:].tolist()}
    whole = {(segment["simulation"], segment["segment"]) for segment in raw.segments}
    # What was set aside since that analysis is no data any more.
    outliers = {outlier for outlier in outliers if outlier[:2] in whole}
    known = {key: latent[first : first + n] for key, (first, n) in places.items() if key in whole}
    for row in rows:
        key, frame = (int(row["simulation"]), int(row["segment"])), int(row["frame"])
        own = [float(row[f"z{k + 1}"]) for k in range(best["latent_dim"])]
        assert np.allclose(own, known[key][frame], rtol=1e-6)
        assert is_near(row["rmsd_angstrom"], raw.rmsd[key][frame], WRITTEN)
        assert bool(int(row["outlier"])) == ((*key, frame) in outliers)
    ringed = {(int(r["simulation"]), int(r["segment"]), int(r["frame"])) for r in rows if r["group"] == "outliers"}
    assert ringed == outliers
    newest = {(r["simulation"], r["segment"], r["frame"]) for r in read_csv(folder / "latent-newest.csv")}
    n_frames = sum(map(len, known.values()))
    assert len(newest) >= min(round(0.1 * n_frames), 1000)
    for figure in ("latent", "latent-newest-over-older"):
        content = page.data[figure]
        for trace, axes in zip(content["data"], content["dimensions"], strict=True):
            assert {len(axis) for axis in axes} == {len(trace["customdata"])}
            for point, values in list(zip(trace["customdata"], zip(*axes, strict=True), strict=True))[::17]:
                simulation, segment, frame = (int(v) for v in point[:3])
                assert np.allclose(values[: best["latent_dim"]], known[simulation, segment][frame], rtol=1e-6)
                assert abs(point[3] - raw.rmsd[simulation, segment][frame]) < 1e-4
    return len(rows)


def check_structures(raw: Raw, page: Page, folder: Path) -> int:
    counts, n_checked = raw.count_classes(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = mda.Universe(str(raw.run / "system" / "native.pdb")).select_atoms("name CA").positions
        for name in ("lowest", "folded", "partial", "unfolded"):
            figure = f"structure-{name}"
            if name != "lowest" and not counts[name]:
                assert figure in page.missing and not (folder / f"{figure}.pdb").exists()
                continue
            atoms = mda.Universe(str(folder / f"{figure}.pdb")).select_atoms("name CA").positions
            simulation, segment, frame = map(
                int, re.findall(r"simulation (\d+) segment (\d+) frame (\d+)", page.read_caption(figure))[0]
            )
            value = raw.rmsd[simulation, segment][frame]
            assert value == raw.every.min() if name == "lowest" else raw.classify(value) == name
            path = raw.run / f"simulations/{simulation:04d}/segment-{segment:04d}/trajectory.dcd"
            simulated = mda.Universe(str(raw.run / "system" / "topology.pdb"), str(path))
            simulated.trajectory[frame]
            simulated_ca = simulated.select_atoms("name CA").positions
            # The structure is that frame, moved as a whole to where it is nearest to the native one.
            assert abs(compute_rmsd(simulated_ca, native, superposition=True) - value) < 2e-3
            assert compute_rmsd(atoms, simulated_ca, superposition=True) < 2e-3
            assert abs(compute_rmsd(atoms, native) - value) < 2e-3
            reference, trace = page.data[figure]["data"]
            assert np.allclose(np.column_stack([trace[axis] for axis in "xyz"]), atoms, atol=2e-3)
            assert np.allclose(np.column_stack([reference[axis] for axis in "xyz"]), native, atol=2e-3)
            n_checked += 1
    return n_checked


def check_contacts(raw: Raw, page: Page, folder: Path) -> int:
    n = raw.n_residues
    upper = np.triu_indices(n, k=1)
    bits = np.concatenate([np.unpackbits(packed, axis=1)[:, : len(upper[0])] for packed in raw.maps])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = mda.Universe(str(raw.run / "system" / "native.pdb")).select_atoms("name CA").positions
    distance = np.linalg.norm(native[:, None] - native[None], axis=-1)[upper]
    expected = {
        "contacts-mean": bits.mean(axis=0),
        "contacts-best": bits[int(np.argmin(raw.every))],
        "contacts-native": distance < raw.settings["simulate"]["contact_cutoff_angstrom"],
    }
    for name, values in expected.items():
        rows = read_csv(folder / f"{name}.csv")
        assert [(int(r["residue"]) - 1, int(r["other_residue"]) - 1) for r in rows] == list(zip(*upper, strict=True))
        assert np.allclose([float(row["contact"]) for row in rows], values, atol=1e-9), name
        drawn = np.asarray(page.data[name]["data"][0]["z"], dtype=float).reshape(n, n)
        assert np.allclose(drawn[upper], values, atol=1e-6) and np.array_equal(drawn, drawn.T)
    return len(upper[0])


def check_lineage(raw: Raw, folder: Path) -> int:
    rows = {int(row["simulation"]): row for row in read_csv(folder / "lineage.csv")}
    assert set(rows) == {segment["simulation"] for segment in raw.segments}
    ends = {a["simulation"]: a["kind"] for d in raw.decisions for a in d["actions"] if a["kind"] in ("purge", "end")}
    for number, row in rows.items():
        origin = json.loads((raw.run / f"simulations/{number:04d}/simulation.json").read_text("utf-8"))["origin"]
        for key in ("simulation", "segment", "frame"):
            assert row[f"origin_{key}"] == ("" if origin is None else str(origin[key]))
        own = [segment for segment in raw.segments if segment["simulation"] == number]
        lowest = min(raw.rmsd[number, segment["segment"]].min() for segment in own)
        assert is_near(row["min_rmsd_angstrom"], lowest, WRITTEN) and row["reached"] == raw.classify(lowest)
        assert is_near(row["time_ps"], sum(segment["time_ps"] for segment in own), WRITTEN)
        assert row["end"] == ends.get(number, "")
        lived = (float(row["ended_hours"]) - float(row["began_hours"])) * 3600
        took = max(s["unix_end"] for s in own) - min(s["unix_start"] for s in own)
        assert lived <= took + 1e-3, "time between pilots is cut out, never added"
    return len(rows)


def check_learning(raw: Raw, page: Page, folder: Path) -> int:
    if not raw.models:
        assert {"losses", "model-choice"} <= set(page.missing)
        return 0
    curves = read_csv(folder / "losses.csv")
    chosen = {a["iteration"]: (a["best_model"]["iteration"], a["best_model"]["latent_dim"]) for a in raw.analyses}
    choice = {(int(r["iteration"]), int(r["latent_dim"])): r for r in read_csv(folder / "model-choice.csv")}
    assert set(choice) == {(m["iteration"], m["latent_dim"]) for m in raw.models}
    for model in raw.models:
        key = model["iteration"], model["latent_dim"]
        row = choice[key]
        assert is_near(row["held_out_reconstruction"], model["held_out_reconstruction"], WRITTEN)
        assert bool(int(row["chosen"])) == (chosen.get(key[0]) == key)
        history = read_csv(raw.run / f"models/iteration-{key[0]:04d}/latent-{key[1]}/history.csv")
        own = [r for r in curves if (int(r["iteration"]), int(r["latent_dim"])) == key]
        assert len(own) == len(history) == model["epochs"]
        for mine, theirs in zip(own, history, strict=True):
            assert is_near(mine["held_out_loss"], float(theirs["held_out_loss"]), WRITTEN)
            assert is_near(mine["train_loss"], float(theirs["train_loss"]), WRITTEN)
    if raw.analyses:
        check_outliers(raw, page, folder)
    return len(raw.models)


def check_outliers(raw: Raw, page: Page, folder: Path) -> None:
    """By iteration and model: DBSCAN's noise, its share, the eps."""
    rows = {(int(r["iteration"]), int(r["latent_dim"])): r for r in read_csv(folder / "outliers.csv")}
    n_expected = 0
    for analysis in raw.analyses:
        frames = {tuple(outlier["frame"].values()) for outlier in analysis["outliers"]}
        for found in analysis["models"]:
            row = rows[analysis["iteration"], found["model"]["latent_dim"]]
            noise = None if found["eps"] is None else 100 * found["n_outliers"] / found["n_frames"]
            assert int(row["n_outliers"]) == found["n_outliers"] and is_near(row["eps"], found["eps"], WRITTEN)
            assert is_near(row["noise_percent"], noise, WRITTEN)
            assert int(row["n_outliers_of_all_models"]) == len(frames)
            n_expected += 1
    assert len(rows) == n_expected
    drawn = page.data["outliers"]["data"][0]
    assert dict(zip(map(int, drawn["x"]), map(int, drawn["y"]), strict=True)) == {
        analysis["iteration"]: len(analysis["outliers"]) for analysis in raw.analyses
    }


def check_decisions(raw: Raw, page: Page, folder: Path) -> int:
    rows = read_csv(folder / "decisions.csv")
    assert len(rows) == len(raw.decisions)
    for row, decision in zip(rows, raw.decisions, strict=True):
        assert decision["reason"] in row["what"]
        for action in decision["actions"]:
            assert f"Simulation {action['simulation']} " in row["actions"] and action["reason"] in row["actions"]
    shown = clean(page.visible.split('<ol class="decisions">')[1].split("</ol>")[0])
    assert all(decision["reason"] in shown for decision in raw.decisions[-200:])
    return len(rows)


def check_files(page: Page, folder: Path) -> int:
    """Every figure has its files; nothing else is there; the page asks for nothing from elsewhere."""
    others = {"table-1.csv", "table-2.csv", "decisions.csv", "native.pdb"}
    expected = {f"{name}.{kind}" for name in page.figures for kind in ("svg", "png", "csv")}
    expected |= {f"{name}.pdb" for name in page.figures if name.startswith("structure-")}
    assert {path.name for path in folder.iterdir()} - others == expected
    for name in page.figures:
        ElementTree.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert read_csv(folder / f"{name}.csv"), f"{name}.csv has no rows"
    for target in re.findall(r'(?:src|href)="([^"]*)"', page.visible):
        assert re.match(r"#|figures/|data:", target), f"the page asks for {target}"
        assert not target.startswith("figures/") or (folder.parent / target).exists(), target
    assert "default-src 'none'" in page.text
    return len(page.figures)


if __name__ == "__main__":
    print(json.dumps(check_report(Path(sys.argv[1]).resolve()), indent=2))
