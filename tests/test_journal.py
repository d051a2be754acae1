"""The journal: records on disk stay, a torn tail is cut, damage in the middle is named and left as it is."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ssd_lite.errors import UserError
from ssd_lite.journal import Journal, Record, decode_line, encode_line, read_records


def key(record: Record) -> tuple[str, int]:
    return record["id"], record["n"]


def row(n: int) -> dict[str, object]:
    return {"id": "é\u2028\n", "n": n, "text": 'line\nbreak "and" crc', "crcs": [1.5, None]}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A journal of three records."""
    path = tmp_path / "samples.jsonl"
    with Journal(path, key) as journal:
        journal.append([row(0), row(1)])
        journal.append([row(2)])
    return path


def test_a_line_is_json_with_the_checksum_of_what_stands_before_it() -> None:
    line = encode_line(row(0))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    before, _, tail = line.rpartition(b',"crc":"')
    assert int(tail[:8], 16) == zlib.crc32(before)
    assert json.loads(line)["text"] == row(0)["text"]
    assert decode_line(line) == row(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_json_does_not_know_are_refused(value: float) -> None:
    with pytest.raises(ValueError):
        encode_line({"x": value})


def test_any_changed_byte_is_noticed() -> None:
    line = encode_line({"id": "a", "n": 1, "text": "abc"})
    missed = []
    for position in range(len(line) - 1):
        changed = line[:position] + bytes([line[position] ^ 1]) + line[position + 1 :]
        try:
            decode_line(changed)
            missed.append(position)
        except ValueError:
            pass
    assert missed == []


def test_reopening_reads_everything_and_goes_on(written: Path) -> None:
    with Journal(written, key) as journal:
        assert journal.records == [row(0), row(1), row(2)]
        assert (len(journal), journal.cut_bytes) == (3, 0)
        assert key(row(1)) in journal
        assert key(row(3)) not in journal
        journal.append([row(3)])
        assert key(row(3)) in journal
    assert read_records(written) == [row(n) for n in range(4)]


LAST = len(encode_line(row(2)))


@pytest.mark.parametrize("kept", [0, 1, 17, LAST - 1])
def test_a_torn_tail_is_cut_and_its_record_can_be_made_again(written: Path, kept: int) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[: len(whole) - LAST + kept])
    with Journal(written, key) as journal:
        assert journal.cut_bytes == kept
        assert journal.records == [row(0), row(1)]
        assert key(row(2)) not in journal
        journal.append([row(2)])
    assert written.read_bytes() == whole


def test_a_torn_tail_without_any_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(encode_line(row(0))[:9])
    with Journal(path, key) as journal:
        assert (journal.records, journal.cut_bytes) == ([], 9)
        journal.append([row(0)])
    assert read_records(path) == [row(0)]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damage_names_file_and_line_and_changes_nothing(written: Path, number: int) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"break", b"brake")
    damaged = b"".join(lines)
    written.write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        Journal(written, key)
    assert caught.value.where == f"{written}:{number}"
    assert "damaged" in caught.value.what
    assert caught.value.next_step
    assert written.read_bytes() == damaged
    with pytest.raises(UserError) as caught:
        read_records(written)
    assert caught.value.where == f"{written}:{number}"


def test_a_line_cut_in_the_middle_of_the_file_is_damage_not_a_tail(written: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[2])
    with pytest.raises(UserError) as caught:
        Journal(written, key)
    assert caught.value.where == f"{written}:2"


def test_a_second_record_of_one_key_is_refused_in_the_file(written: Path) -> None:
    with open(written, "ab") as file:
        file.write(encode_line(row(1)))
    with pytest.raises(UserError, match="second record") as caught:
        Journal(written, key)
    assert caught.value.where == f"{written}:4"


def test_a_second_record_of_one_key_is_not_appended(written: Path) -> None:
    before = written.read_bytes()
    with Journal(written, key) as journal, pytest.raises(KeyError):
        journal.append([row(1)])
    assert written.read_bytes() == before


def test_a_batch_with_a_key_twice_writes_nothing(written: Path) -> None:
    before = written.read_bytes()
    with Journal(written, key) as journal, pytest.raises(KeyError):
        journal.append([row(7), row(7)])
    assert written.read_bytes() == before


def test_reading_a_finished_journal_is_strict_about_its_tail(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-5])
    with pytest.raises(UserError) as caught:
        read_records(written)
    assert caught.value.where == f"{written}:3"


def test_a_missing_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_records(tmp_path / "none.jsonl")
    assert str(tmp_path / "none.jsonl") in caught.value.where


def test_a_journal_in_a_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "no" / "j.jsonl", key)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from ssd_lite.errors import UserError
from ssd_lite.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(Path(sys.argv[1]), lambda record: record["id"]) as journal:
    journal.append([{"id": 0}])
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    try:
        journal.append([{"id": 1, "text": "x" * 500}])
    except UserError as error:
        print(error.format_message())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.append([{"id": 1, "text": "y"}])
"""


def test_a_write_that_finds_no_room_leaves_the_journal_whole(tmp_path: Path) -> None:
    path = tmp_path / "full.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert read_records(path) == [{"id": 0}, {"id": 1, "text": "y"}]
