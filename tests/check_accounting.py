"""Check the accounting of any finished run folder: python tests/check_accounting.py RUN."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from entk_app.accounting_report import account_run
from entk_app.layout import RunLayout

#: From the start of a process until its own clock starts: Python and TensorFlow, 38 s seen on two busy cores.
PROCESS_START_S = 180.0


def check_accounting(run: Path) -> dict[str, float]:
    """Account for a campaign that has ended and hold it against the tasks' own records.

    Returns
    -------
    measured : dict
        Core-hours of the whole, in use, and by the tasks' own clocks.
    """
    result, paths = account_run(RunLayout(run))
    assert all(path.stat().st_size > 0 for path in paths)
    assert not result.running
    for parts in (result.core_hours, result.gpu_hours):
        assert abs(parts.accounted - parts.whole) <= 1e-6 * parts.whole
        assert parts.oversubscribed <= 1e-3 * parts.whole
        assert min(parts.start_up, parts.in_use, parts.overhead, parts.idle, parts.shutdown) >= 0
    rows = list(csv.DictReader((run / "accounting" / "tasks.csv").open(encoding="utf-8")))
    assert abs(sum(float(row["core_hours"]) for row in rows) - result.core_hours.in_use) <= 1e-6 * len(rows)
    by_records = 0.0
    by_task: dict[tuple[str, str], list[dict]] = {}
    tasks = {}
    for path in _records(run):
        record = json.loads(path.read_text(encoding="utf-8"))
        row = _find_row(rows, record)
        key = (row["pilot"], row["uid"])
        tasks[key] = row
        by_task.setdefault(key, []).append(record)
        by_records += (record["unix_end"] - record["unix_start"]) * float(row["cores"]) / 3600.0
    for key, row in tasks.items():
        # The task's process began before its own clock and ended after it, by no more than Python takes.
        began = min(record["unix_start"] for record in by_task[key])
        ended = max(record["unix_end"] for record in by_task[key])
        assert 0.0 <= began - float(row["unix_started"]) <= PROCESS_START_S, row["name"]
        assert 0.0 <= float(row["unix_stopped"]) - ended <= PROCESS_START_S, row["name"]
        assert row["state"] in ("done", "purged"), row
    assert len(tasks) == sum(row["state"] in ("done", "purged") for row in rows)
    by_tasks = sum(float(row["core_hours"]) for row in rows if row["state"] in ("done", "purged"))
    assert abs(by_tasks - by_records - result.core_hours.unrecorded) <= 1e-6 * len(rows)
    return {"whole": result.core_hours.whole, "in_use": result.core_hours.in_use, "by_records": by_records}


def _records(run: Path) -> list[Path]:
    patterns = ("simulations/*/segment-????/segment.json", "models/*/*/model.json", "analysis/iteration-????.json")
    return [path for pattern in patterns for path in sorted(run.glob(pattern))]


def _find_row(rows: list[dict[str, str]], record: dict) -> dict[str, str]:
    """The task whose process contains the record's times and whose name says the same."""
    for row in rows:
        if "segment" in record:
            # A task is named by the first segment that it saves.
            same = (row["kind"], row["simulation"]) == ("simulate", str(record["simulation"])) and (
                int(row["segment"]) <= record["segment"]
            )
        elif "latent_dim" in record:
            same = (row["kind"], row["iteration"], row["latent_dim"]) == (
                "train", str(record["iteration"]), str(record["latent_dim"]),
            )  # fmt: skip
        else:
            same = (row["kind"], row["iteration"]) == ("analyse", str(record["iteration"]))
        if same and row["unix_stopped"] and record["unix_start"] <= float(row["unix_stopped"]) and (
            float(row["unix_started"]) <= record["unix_end"]
        ):
            return row
    raise AssertionError(f"no task of tasks.csv ran when this record was made: {record}")


if __name__ == "__main__":
    print(json.dumps(check_accounting(Path(sys.argv[1]).resolve()), indent=2))
