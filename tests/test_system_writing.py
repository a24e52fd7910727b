"""Files appear whole or not at all, whoever else writes and whatever fails."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from agentsd.system.writing import sweep, whole_file, write_whole


def stop_halfway(path):
    with whole_file(path) as file:
        np.save(file, np.zeros(3))
        raise RuntimeError("halfway")


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "array.npy"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError, match="halfway"):
        stop_halfway(path)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("array.npy", b"old")]


def test_nothing_is_seen_under_the_name_before_the_end(tmp_path):
    path = tmp_path / "new" / "note.txt"
    with whole_file(path) as file:
        file.write("é".encode())
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "é"


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: write_whole(path, text), texts * 4))
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_only_what_dead_processes_of_this_machine_left_is_removed(tmp_path):
    host, dead = socket.gethostname(), 2**22 + 1  # above what Linux gives out
    names = {
        f".a.1.{host}.{dead}.partial": False,
        f".a.1.{host}.{os.getpid()}.partial": True,
        f".a.1.elsewhere.{dead}.partial": True,
        f"a.1.{host}.{dead}.partial": True,
        "a": True,
    }
    for name in names:
        (tmp_path / name).touch()
    assert sweep(tmp_path) == 1
    assert {name: (tmp_path / name).exists() for name in names} == names
