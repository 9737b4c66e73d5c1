"""An independent check of what must hold in a run folder whatever happened to its campaign.

Every finished segment's frames count once; none is lost or doubled; the lineage is a forest; no outlier is used twice;
purges follow from the records. Reads only files, with h5py and json; it shares no code with the application.
``python tests/check_invariants.py RUN`` checks a run by hand, also one that has not ended.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import yaml


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def read_segments(run: Path) -> dict[int, dict[int, dict]]:
    """Records by simulation and number."""
    found: dict[int, dict[int, dict]] = {}
    for folder in sorted(run.glob("simulations/*/segment-*")):
        if re.fullmatch(r"segment-\d{4}", folder.name):
            record = read_json(folder / "segment.json")
            place = (int(folder.parent.name), int(folder.name[-4:]))
            assert (record["simulation"], record["segment"]) == place, folder
            found.setdefault(place[0], {})[place[1]] = record
    return found


def check_invariants(run: Path) -> dict[str, int]:
    """Returns how much of each was checked."""
    settings = yaml.safe_load((run / "settings.yaml").read_text(encoding="utf-8"))
    decisions = read_lines(run / "decisions.jsonl")
    segments = read_segments(run)
    lost: dict[int, dict[int, dict]] = {}
    for note in read_lines(run / "set-aside" / "notes.jsonl"):
        assert (run / note["kept_as"]).exists(), f"{note['kept_as']} was set aside, and is lost"
        if note["segment"] is not None:
            lost.setdefault(note["simulation"], {})[note["segment"]] = note
    assert [decision["index"] for decision in decisions] == list(range(len(decisions)))
    n_frames = check_frames(run, settings, segments, lost)
    n_restarts = check_lineage(run, decisions, segments, lost)
    n_purges = check_purges(run, settings, decisions, segments, lost)
    last = decisions[-1]
    if last["next"] == "stop" and (run / "summary.json").exists():
        summary = read_json(run / "summary.json")
        if summary["message"] == last["reason"]:
            assert summary["n_frames"] == n_frames
            assert summary["n_simulations"] == len(segments)
    return {
        "segments": sum(map(len, segments.values())), "frames": n_frames, "restarts": n_restarts, "purges": n_purges,
        "set aside": sum(map(len, lost.values())),
    }  # fmt: skip


def check_frames(run: Path, settings: dict, segments: dict, lost: dict) -> int:
    """Numbers without a hole; steps of the frames of a simulation one interval apart, but for what was set aside."""
    every = round(settings["simulate"]["report_interval_ps"] * 1000 / settings["simulate"]["time_step_fs"])
    total = 0
    for simulation, own in segments.items():
        aside = lost.get(simulation, {})
        assert not set(own) & set(aside), f"segment numbers of simulation {simulation} were given twice"
        assert sorted([*own, *aside]) == list(range(len(own) + len(aside))), f"a segment of {simulation} is lost"
        steps = []
        for number, record in sorted(own.items()):
            folder = run / "simulations" / f"{simulation:04d}" / f"segment-{number:04d}"
            with h5py.File(folder / "frames.h5") as file:
                found = file["step"][:]
                assert len(file["contacts"]) == record["n_frames"] == len(found)
            assert len((folder / "log.csv").read_text().splitlines()) == record["n_frames"] + 1
            steps.append(found)
            total += len(found)
        joined = np.concatenate(steps)
        assert len(np.unique(joined)) == len(joined), f"frames of simulation {simulation} are doubled"
        assert (np.diff(joined) > 0).all()
        if not aside:
            assert joined.tolist() == [every * (n + 1) for n in range(len(joined))], f"{simulation} lost frames"
    return total


def check_lineage(run: Path, decisions: list[dict], segments: dict, lost: dict) -> int:
    """Each simulation is started once, from a frame of an older one that nothing else was started from."""
    started: dict[int, dict] = {}
    alive: set[int] = set()
    origins = []
    for decision in decisions:
        for action in decision["actions"]:
            number = action["simulation"]
            assert action["reason"]
            if action["kind"] in ("start", "restart"):
                assert number not in started, f"simulation {number} was started twice"
                assert number == len(started), "ids are given in order"
                started[number] = action
                alive.add(number)
                if action["origin"] is not None:
                    origins.append(action["origin"])
                    assert action["origin"]["simulation"] < number, "an origin is older: the lineage is a forest"
            else:
                assert number in alive, f"decision {decision['index']} tells of simulation {number}, which has ended"
                alive -= {number} if action["kind"] in ("purge", "end") else set()
    keys = [(o["simulation"], o["segment"], o["frame"]) for o in origins]
    assert len(set(keys)) == len(keys), "an outlier was used twice"
    for simulation, segment, frame in keys:
        record = segments.get(simulation, {}).get(segment) or lost.get(simulation, {}).get(segment)
        assert record is not None, f"there is no segment {segment} of simulation {simulation} to start from"
        assert record["n_frames"] is None or frame < record["n_frames"]
    assert set(segments) <= set(started), "a simulation has segments and was never started"
    for simulation in segments:
        record = read_json(run / "simulations" / f"{simulation:04d}" / "simulation.json")
        assert record["origin"] == started[simulation]["origin"]
    return len(keys)


def check_purges(run: Path, settings: dict, decisions: list[dict], segments: dict, lost: dict) -> int:
    """What the rule purged and what it let go on follows from the frames and outliers of that time."""
    rule, count = settings["steering"], 0
    for decision in decisions:
        analysis = run / "analysis" / f"iteration-{decision['iteration'] - 1:04d}.json"
        judged = [a for a in decision["actions"] if a["kind"] in ("purge", "continue")]
        if decision["n_outliers"] is None or not analysis.exists() or decision["next"] == "stop":
            continue
        outliers = [outlier["frame"] for outlier in read_json(analysis)["outliers"]]
        # Where simulations do not wait, a decision knows what its analysis was ordered to look at.
        order = read_json(analysis.with_suffix(".task.json"))
        analysed = {(key["simulation"], key["segment"]) for key in order["segments"]}
        knows_all = settings.get("coupling", "staged") == "staged"
        for action in judged:
            number = action["simulation"]
            known = {n: r for n, r in segments.get(number, {}).items() if r["decision"] < decision["index"]}
            aside = lost.get(number, {})
            if any(n["before_decision"] > decision["index"] and n["n_frames"] is None for n in aside.values()):
                # Its record was damaged: nobody can know any more how long it was.
                continue
            known |= {
                n: note for n, note in aside.items()
                if note["before_decision"] > decision["index"] and note["decision"] < decision["index"]
            }  # fmt: skip
            known = {n: r for n, r in known.items() if knows_all or (number, n) in analysed}
            first = {n: sum(known[m]["n_frames"] for m in known if m < n) for n in known}
            n_frames = sum(record["n_frames"] for record in known.values())
            own = [o for o in outliers if o["simulation"] == number and o["segment"] in known]
            places = [first[o["segment"]] + o["frame"] for o in own]
            stale = not places or max(places) < n_frames - rule["window"]
            due = n_frames >= rule["min_frames"] and stale
            if action["kind"] == "continue":
                assert not due or "no outlier is left" in action["reason"], (decision["index"], action)
            elif "min_restarts" in action["reason"]:
                assert rule["min_restarts"] > 0 and n_frames >= rule["min_frames"]
            else:
                assert due, (decision["index"], action, n_frames, places)
                assert action["reason"].startswith(f"{n_frames} frames"), (action, n_frames)
            count += action["kind"] == "purge"
    return count


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "decisions.jsonl").exists():
        sys.exit("usage: check_invariants.py RUN, the folder of a campaign")
    found = check_invariants(Path(sys.argv[1]))
    print("in order: " + ", ".join(f"{count} {what}" for what, count in found.items()))
