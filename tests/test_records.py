"""Records: whole or not at all, and refused by name when damaged."""

from __future__ import annotations

import math

import pytest

from entk_app.errors import RecordError
from entk_app.records import (
    Action,
    Decision,
    Finding,
    FrameRef,
    Outlier,
    append_record,
    order_by_rmsd,
    read_lines,
    read_record,
    read_whole_lines,
    write_record,
)

REF = FrameRef(simulation=3, segment=1, frame=17)


def test_a_record_reads_back_equal_and_leaves_no_temporary_file(tmp_path):
    (tmp_path / "settings.yaml").touch()
    path = tmp_path / "below" / "record.json"
    write_record(path, REF)
    assert read_record(FrameRef, path) == REF
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("text", ["", '{"simulation": 3', '{"simulation": 3}', "[]", '{"other": 1}'])
def test_a_damaged_record_is_refused_by_name(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"record\.json is not a whole FrameRef"):
        read_record(FrameRef, path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"cannot read the FrameRef .*gone\.json"):
        read_record(FrameRef, tmp_path / "gone.json")


def test_lines_are_appended_in_order(tmp_path):
    path = tmp_path / "decisions.jsonl"
    assert list(read_lines(Decision, path)) == []
    written = [
        Decision(
            index=n,
            iteration=1,
            next="simulate",
            reason="because",
            actions=(Action(kind="start", simulation=n, reason="r"),),
        )
        for n in range(3)
    ]
    for decision in written:
        append_record(path, decision)
    assert list(read_lines(Decision, path)) == written


def test_an_infinite_distance_survives_json(tmp_path):
    finding = Finding(latent_dim=3, eps=0.5, distance=math.inf)
    write_record(tmp_path / "f.json", finding)
    assert read_record(Finding, tmp_path / "f.json").isolation == math.inf


def test_outliers_are_ordered_by_rmsd_then_isolation():
    def outlier(frame, rmsd, distance):
        return Outlier(
            frame=FrameRef(simulation=0, segment=0, frame=frame),
            rmsd_angstrom=rmsd,
            found_by=(Finding(latent_dim=3, eps=1.0, distance=distance),),
        )

    ordered = order_by_rmsd([outlier(1, None, 9.0), outlier(2, 4.0, 2.0), outlier(3, 4.0, 3.0), outlier(4, 1.0, 1.1)])
    assert [o.frame.frame for o in ordered] == [4, 3, 2, 1]


@pytest.mark.parametrize("torn", ['{"index": 1, "itera', '{"index"', "\u00e9"])
def test_a_torn_last_line_is_taken_away_and_the_rest_kept(tmp_path, torn):
    path = tmp_path / "decisions.jsonl"
    first = Decision(index=0, iteration=1, next="simulate", reason="r")
    append_record(path, first)
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode()[:-1])
    assert read_whole_lines(Decision, path) == [first]
    assert path.read_bytes() == whole
    append_record(path, first.model_copy(update={"index": 1}))
    assert [d.index for d in read_lines(Decision, path)] == [0, 1]


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_text("{}\n")
    append_record(path, Decision(index=0, iteration=1, next="simulate", reason="r"))
    with pytest.raises(RecordError, match="line 1 is not a whole Decision"):
        read_whole_lines(Decision, path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecordError, match="cannot read"):
        list(read_lines(Decision, path))
