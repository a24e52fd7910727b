"""Files of a run: whole or not there, checked when read, never mixed; the disk may be full and the process may die."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import forked, kill_self
from PIL import Image

from agentsd.bench.store import UnfinishedError, read_arrays, read_json, write_bytes
from agentsd.evaluation.manifest import ManifestMismatchError, claim, differing
from agentsd.evaluation.store import Store, chunks
from agentsd.system import writing

RECORD = {"index": 3, "seed": 7}
LATENT = np.ones((4, 2, 2), dtype=np.float32)


def write(store, index=3, arm="stock", colour="red", record=RECORD):
    store.write_picture(arm, index, Image.new("RGB", (16, 8), colour), LATENT, record)


def test_a_picture_is_complete_only_as_it_was_recorded(tmp_path):
    store = Store(tmp_path)
    assert not store.is_complete("stock", 3, RECORD)
    write(store)
    assert store.is_complete("stock", 3, RECORD, (16, 8))
    assert not store.is_complete("stock", 3, RECORD | {"seed": 8})
    assert not store.is_complete("stock", 3, RECORD, (8, 16))
    assert not store.is_complete("other", 3, RECORD)
    assert store.picture("stock", 3).tolist() == np.full((8, 16, 3), (255, 0, 0)).tolist()


@pytest.mark.parametrize("damage", ["cut", "bits", "empty", "latents", "foreign"])
def test_damage_is_found(tmp_path, damage):
    store = Store(tmp_path)
    write(store)
    path = store.picture_path("stock", 3)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) - 20])
    elif damage == "bits":
        place = data.index(b"IDAT") + 8
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "latents":
        store.latent_path("stock", 3).write_bytes(b"PK")
    else:
        Image.new("RGB", (16, 8)).save(path)  # a picture that somebody else put there
    assert not store.is_complete("stock", 3, RECORD)


def test_a_damaged_picture_is_named(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UnfinishedError, match=r"000003\.png' is missing or damaged; start the same command again"):
        store.picture("stock", 3)


def test_a_new_picture_drops_the_measures_of_its_chunk_alone(tmp_path):
    store = Store(tmp_path)
    first, second = chunks(40)
    for arm in ("stock", "ours"):
        for chunk in (first, second):
            store.write_measure(arm, "likeness", chunk, {"ssim": np.zeros(len(chunk))})
    write(store)
    # Likeness of every arm hangs on stock's picture.
    assert store.read_measure("stock", "likeness", first) is None
    assert store.read_measure("ours", "likeness", first) is None
    assert store.read_measure("ours", "likeness", second) is not None


def test_measures_of_other_pictures_are_not_taken(tmp_path):
    store = Store(tmp_path)
    store.write_measure("stock", "kind", [0, 1], {"value": np.arange(2.0)})
    assert store.read_measure("stock", "kind", [0, 1, 2]) is None
    assert store.read_measure("stock", "kind", [0, 1])["value"].tolist() == [0, 1]
    store.measure_path("stock", "kind", 0).write_bytes(b"not a zip file")
    assert store.read_measure("stock", "kind", [0, 1]) is None


def test_damaged_data_reads_as_missing(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"[1]", b"{", b"\xff\xfe"):
        path.write_bytes(content)
        assert read_json(path) is None
        assert read_arrays(path) is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch, code):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(UnfinishedError, match=r"is full .* make room and start the same command again"):
        write_bytes(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output='.*' cannot be written"):
        write_bytes(tmp_path / "file" / "below", b"")


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(writing.os, "replace", lambda *names: kill_self())
    assert forked(lambda: write_bytes(path, b"new")) == [-9]
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    # Another start removes what the dead process left, but nothing of a living one.
    write_living = tmp_path / f".{path.name}.{writing.socket.gethostname()}.{os.getpid()}.partial"
    write_living.write_bytes(b"")
    assert writing.sweep(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([path, write_living])


def test_a_manifest_refuses_other_settings_and_lists_them(tmp_path):
    path = tmp_path / "manifest.json"
    config = {"steps": 20, "scheduler": {"class": "DDIM"}, "seed": 0}
    key = claim(path, config)
    assert claim(path, dict(reversed(config.items()))) == key
    with pytest.raises(ManifestMismatchError) as caught:
        claim(path, {"steps": 25, "scheduler": {"class": "PNDM"}, "seed": 0})
    assert set(caught.value.keys) == {"steps", "scheduler.class"}
    assert "(scheduler.class: DDIM there, PNDM now; steps: 20 there, 25 now)" in str(caught.value)
    assert "name another --output" in str(caught.value)


def test_a_missing_key_differs():
    assert differing({"a": 1}, {"a": 1, "b": 2}) == {"b": (None, 2)}


def test_a_broken_manifest_is_not_written_over(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"holds a manifest\.json that cannot be read: .*; remove the file"):
        claim(path, {"steps": 20})
    assert path.read_text() == "{"


def test_chunks_cover_everything_once():
    assert [index for chunk in chunks(70) for index in chunk] == list(range(70))
    assert chunks(0) == []


def test_names_become_folders():
    assert Store(Path("run")).arm_folder("paper, ratio 0.3/x").as_posix() == "run/arms/paper-ratio-0.3-x"
