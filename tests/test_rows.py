"""Result files survive crashes and say where they are broken."""

import json

import pytest

from agentsd.bench.rows import append_row, key_of, newest, read_rows


def test_rows_are_appended_and_read_back(tmp_path):
    path = tmp_path / "folder" / "rows.jsonl"
    rows = [{"arm": "stock", "speedup": 1.0}, {"arm": "\u00e4\n", "seconds": [1.5]}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("torn", ["{", '{"arm": "stock"}', '{"arm": "\u00e4'])
def test_a_torn_last_line_is_left_out_and_then_replaced(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"arm": "stock"})
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert read_rows(path) == [{"arm": "stock"}]
    append_row(path, {"arm": "other"})
    assert [json.loads(line)["arm"] for line in path.read_text().splitlines()] == ["stock", "other"]


@pytest.mark.parametrize("line", ["no json", "[1]"])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"arm": "stock"}}\n{line}\n{{}}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is .*; it must be a JSON object: remove the line"):
        read_rows(path)


def test_what_json_cannot_say_is_refused_before_the_file_is_touched(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_row(path, {"psnr": float("inf")})
    assert not path.exists()


def test_the_newest_row_of_each_key_stands_where_the_first_was():
    rows = [{"arm": "a", "size": 1, "x": 1}, {"arm": "b", "x": 2}, {"arm": "a", "size": 1, "x": 3}]
    assert [row["x"] for row in newest(rows, ("arm", "size"))] == [3, 2]
    assert key_of(rows[1], ("arm", "size")) == ("b", None)
