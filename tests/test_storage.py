"""A run folder that is full, read-only or gone: what is said, what is kept."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager

import pytest

from entk_app import storage
from entk_app.records import Decision, append_record, read_whole_lines, write_record, write_text
from entk_app.storage import explain, find_trouble, is_storage


@contextmanager
def mounted(folder, size: str):
    """A small file system of its own; skipped where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("ENTK_APP_REQUIRE_MOUNT"):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small(tmp_path):
    with mounted(tmp_path / "small", "1m") as folder:
        yield folder


def fill(folder) -> None:
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while stream.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


DECISION = Decision(index=0, iteration=1, next="simulate", reason="r" * 2000)


def test_a_line_that_a_full_disk_refuses_leaves_the_file_as_it_was(small):
    path = small / "decisions.jsonl"
    append_record(path, DECISION)
    fill(small)
    with pytest.raises(OSError) as caught:
        # Two or three of them still go into the block that is there.
        for _ in range(4):
            append_record(path, DECISION)
    assert caught.value.errno == errno.ENOSPC
    before = path.read_bytes()
    assert before.endswith(b"\n")
    (small / "filler").unlink()
    append_record(path, DECISION)
    assert path.read_bytes().startswith(before)
    assert len(read_whole_lines(Decision, path)) == before.count(b"\n") + 1


def test_a_file_that_a_full_disk_refuses_is_the_old_one_whole(small):
    path = small / "summary.json"
    write_text(path, "old")
    fill(small)
    with pytest.raises(OSError) as caught:
        write_text(path, "n" * 100_000)
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in small.iterdir()) == ["filler", "summary.json"]
    told = explain(caught.value, small)
    assert told.endswith("is full: make space") and str(small) in told


def test_room_is_kept_and_a_full_disk_is_seen(small):
    assert find_trouble(small) is None
    fill(small)
    assert "is nearly full (0.0 MiB left): make space" in find_trouble(small)


def test_a_read_only_folder_is_seen(small):
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    assert find_trouble(small) == f"{small} is read-only: make it writable"


def test_files_can_run_out_before_space_does(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_RESERVE_FILES", 2**62)
    assert "files left" in find_trouble(tmp_path)


@pytest.mark.parametrize(("total", "reserve"), [(64 * 2**20, 3.2 * 2**20), (2**40, 64 * 2**20)])
def test_the_reserve_is_less_on_a_small_file_system(tmp_path, monkeypatch, total, reserve):
    class Found:
        f_flag, f_frsize, f_bavail, f_files, f_favail = 0, 1, total // 2, 0, 0
        f_blocks = total

    monkeypatch.setattr(storage.os, "statvfs", lambda folder: Found)
    assert storage.find_room(tmp_path).reserve_bytes == pytest.approx(reserve, rel=0.01)


def test_a_folder_that_has_gone_is_not_made_again(tmp_path):
    run = tmp_path / "run"
    assert find_trouble(run) == f"{run} has gone: put it back"
    for path in (run / "summary.json", run / "simulations" / "0000" / "simulation.json"):
        with pytest.raises(FileNotFoundError):
            write_record(path, DECISION)
    with pytest.raises(FileNotFoundError):
        append_record(run / "decisions.jsonl", DECISION)
    assert not run.exists()


def test_folders_are_made_inside_a_run_folder(tmp_path):
    (tmp_path / "settings.yaml").touch()
    write_record(tmp_path / "simulations" / "0000" / "simulation.json", DECISION)
    assert (tmp_path / "simulations" / "0000" / "simulation.json").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the file system of {path} is full: make space"),
        (errno.EDQUOT, "the file system of {path} has no more room for you: your quota is used up: make space"),
        (errno.EROFS, "{path} is read-only: make it writable"),
        (errno.EACCES, "{path} may not be written: make it writable"),
        (errno.EIO, "{path} cannot be reached (input/output error): see to its file system"),
        (errno.ESTALE, "{path} cannot be reached (stale file handle): see to its file system"),
    ],
)
def test_an_error_is_a_sentence_with_the_path_and_what_to_do(tmp_path, number, words):
    path = str(tmp_path / "decisions.jsonl")
    error = OSError(number, os.strerror(number), path)
    assert explain(error, tmp_path) == words.format(path=path)
    assert is_storage(error)


def test_an_error_of_the_disk_is_known_however_radical_wraps_it():
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as inner:
            raise RuntimeError("EnTK") from inner
    except RuntimeError as error:
        assert is_storage(error)
    assert is_storage(RuntimeError("[Errno 28] No space left on device: 'x'"))
    assert not is_storage(RuntimeError("the pilot failed"))
    assert not is_storage(None)
    assert explain(OSError(errno.EAGAIN, "again"), None) is None
