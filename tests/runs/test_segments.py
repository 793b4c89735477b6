"""The rounds that a run says while it trains: whole lines, each round once."""

from __future__ import annotations

import json
import math
from pathlib import Path

from floral.runs import segments

ROW = ("test", "accuracy", 0.1 + 0.2)


def rounds(folder: Path) -> list[int]:
    return [evaluated.round for evaluated in segments.read(folder)]


def test_what_was_said_is_read(tmp_path: Path) -> None:
    segment = segments.new(tmp_path)
    assert segments.read(tmp_path) == [] and segments.size(tmp_path) == 0
    segments.append(segment, 0, [ROW, ("test", "loss", math.nan)])
    segments.append(segment, 5, [ROW])
    first, second = segments.read(tmp_path)
    assert (first.round, first.metrics, second.round) == (0, (ROW,), 5)
    assert 0 <= second.time - first.time < 60_000


def test_after_a_kill_no_round_is_doubled_and_half_a_line_harms_nothing(tmp_path: Path) -> None:
    killed = segments.new(tmp_path)
    for round in (0, 5):
        segments.append(killed, round, [ROW])
    whole = killed.read_bytes()
    killed.write_bytes(whole + whole.splitlines()[1][:30])
    assert rounds(tmp_path) == [0, 5]

    resumed = segments.new(tmp_path)
    assert resumed != killed
    before = segments.read(tmp_path)
    for round in (5, 10):  # its checkpoint was of a round before 5
        segments.append(resumed, round, [ROW])
    assert rounds(tmp_path) == [0, 5, 10]
    assert segments.read(tmp_path)[:2] == before


def test_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    segment = segments.new(tmp_path)
    segments.append(segment, 0, [ROW])
    with segment.open("ab") as file:
        file.write(b"\0\0\0\n[]\n{}\n" + json.dumps({"round": 1, "time": 0, "metrics": [["a", "b"]]}).encode() + b"\n")
    segments.append(segment, 2, [ROW])
    assert rounds(tmp_path) == [0, 2]
