"""Prepared data are verified as a whole, and a run, a sweep or a trained ANN never goes on with other data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import Done
from snnexp.config import conf_dir
from snnexp.dataset import events, manifest
from snnexp.dataset.digits import digits
from snnexp.dataset.manifest import MANIFEST, content, fault
from snnexp.dataset.prepare import prepared_once
from snnexp.dataset.saccade import mnist_saccade
from snnexp.errors import UserError
from snnexp.rundir import other_data
from snnexp.session import Session
from snnexp.task.converting import trained
from snnexp.training import load_checkpoint
from snnexp.trial.data import check_data
from snnexp.trial.job import Job

FILES = {"a.npy": b"12345", "deep/b.bin": b"678"}


def fill(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text)


def again(path: Path, text: bytes) -> None:
    """Other content of the same size and time: only a digest tells."""
    times = path.stat().st_mtime_ns
    path.write_bytes(text)
    os.utime(path, ns=(times, times))


def folder_of_the_name(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_file(path: Path) -> None:
    manifest.emptied(path)
    (path / "deep").rmdir()
    path.rmdir()
    path.write_bytes(b"")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda d: (d / "deep/b.bin").unlink(), "deep/b.bin is missing"),
    "zero bytes": (lambda d: (d / "a.npy").write_bytes(b""), "a.npy has 0 bytes instead of 5"),
    "short": (lambda d: (d / "a.npy").write_bytes(b"1234"), "a.npy has 4 bytes instead of 5"),
    "exchanged": (lambda d: (d / "a.npy").write_bytes(b"54321"), "a.npy has other contents"),
    "exchanged, same time": (lambda d: again(d / "a.npy", b"54321"), "a.npy has other contents"),
    "foreign": (lambda d: (d / "deep/c.bin").write_bytes(b"9"), "deep/c.bin does not belong to it"),
    "foreign pipe": (lambda d: os.mkfifo(d / "pipe"), "pipe does not belong to it"),
    "pipe": (lambda d: ((d / "a.npy").unlink(), os.mkfifo(d / "a.npy")), "a.npy is not a readable file"),
    "link": (lambda d: ((d / "a.npy").unlink(), (d / "a.npy").symlink_to("deep/b.bin")), "a.npy is not a readable"),
    "folder": (lambda d: folder_of_the_name(d / "a.npy"), "a.npy is missing"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), "it has no valid manifest.json"),
    "empty manifest": (lambda d: (d / MANIFEST).write_bytes(b""), "it has no valid manifest.json"),
    "null": (lambda d: (d / MANIFEST).write_text("null"), "it has no valid manifest.json"),
    "numbers": (lambda d: (d / MANIFEST).write_text('{"files": {"a.npy": 3}}'), "it has no valid manifest.json"),
    "Latin-1": (lambda d: (d / MANIFEST).write_bytes(b'{"files": "\xe9"}'), "it has no valid manifest.json"),
    "a file": (replaced_by_a_file, "it has no valid manifest.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_entry_that_is_not_whole_is_made_again(name, tmp_path, caplog, monkeypatch):
    damage, words = DAMAGES[name]
    monkeypatch.setattr(manifest, "_digested", set())  # as in a new process
    made = prepared_once(tmp_path / "set/entry", fill)
    manifest._digested.clear()
    damage(made)
    assert prepared_once(made, fill) == made
    assert {n: (made / n).read_bytes() for n in FILES} == FILES
    assert f"{made} is not as it was prepared ({words}" in caplog.text
    assert sorted(p.name for p in made.parent.iterdir()) == ["entry", "entry.lock"]


def test_an_entry_that_is_whole_is_used_as_it_is(tmp_path):
    made = prepared_once(tmp_path / "set/entry", fill)
    os.utime(made / "a.npy", ns=(1, 1))  # a copy
    (made / ".nfs0001").write_bytes(b"")  # of the file system
    (made / "empty").mkdir()

    def never(folder: Path) -> None:
        raise AssertionError

    assert prepared_once(made, never) == made
    assert json.loads((made / MANIFEST).read_text())["files"]["a.npy"][1] == 1  # compared by content only once
    assert content(made, "a.npy") != content(made, "deep/b.bin")


def test_a_large_entry_is_digested_only_where_a_time_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "CHEAP", 7)
    made = prepared_once(tmp_path / "set/entry", fill)
    manifest._digested.clear()
    read: list[str] = []
    digests = manifest._digests
    monkeypatch.setattr(manifest, "_digests", lambda folder, names: digests(folder, read.extend(names) or names))
    assert fault(made) is None
    assert read == []
    os.utime(made / "deep/b.bin", ns=(1, 1))
    assert fault(made) is None
    assert read[0] == "deep/b.bin"


def test_recordings_that_lost_a_file_are_recorded_again(tmp_path):
    """Before, one file less and no frames gave one recording less, under the same key."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("t10k", 4)):
        x, y = rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())

    def load():
        return mnist_saccade(tmp_path, tmp_path / "cache", 2)

    first = load()
    (recordings,) = (tmp_path / "cache/mnist_saccade").glob("recordings-*[0-9a-f]")
    (frames,) = (tmp_path / "cache/mnist_saccade").glob("frames-*[0-9a-f]")
    (recordings / "Test/3/00004.bin").unlink()
    manifest.emptied(frames)
    second = load()
    assert len(second.test) == 4
    assert second.identity == first.identity
    assert torch.equal(second.train.x, first.train.x)


def test_the_identity_of_data_is_that_of_their_contents():
    data = digits()
    same = digits()
    assert data.identity == same.identity
    assert {k: v for k, v in data.identity.items() if k != "digest"} == {
        "name": "digits", "train": 1293, "val": 144, "test": 360,
    }  # fmt: skip
    x = data.train.x.clone()
    x[5, 0, 3, 3] += 1
    changed = [
        replace(data, train=replace(data.train, x=x)),
        replace(data, train=replace(data.train, y=data.train.y.flip(0))),
        replace(data, train=replace(data.train, index=data.train.index[1:])),
        replace(data, train=replace(data.train, x=data.train.x.int())),
        replace(data, classes=data.classes[::-1]),
        replace(data, normalize=None),
        digits(seed=1),
    ]
    assert len({d.identity["digest"] for d in [data, *changed]}) == 8


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Ten recordings to train, four to test, as N-MNIST has them."""
    rng = np.random.default_rng(0)
    for split, n in (("Train", 10), ("Test", 4)):
        for k in range(n):
            path = tmp_path / "nmnist" / split / str(k % 2) / f"{k:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            t, x, y, p = np.arange(50), rng.integers(0, 34, 50), rng.integers(0, 34, 50), rng.integers(0, 2, 50)
            events.write(path, events.Events(t, x, y, p))
    return tmp_path / "nmnist"


TINY = ("dataset=nmnist", "trainer.epochs=1", "model.hidden=4", "timesteps=2", "trainer.threads=1", "tracking=none")


def test_a_run_is_not_resumed_with_other_data(recordings: Path, snnexp: Callable[..., Done], tmp_path: Path) -> None:
    tiny = (*TINY, f"dataset.root={recordings}", f"cache_dir={tmp_path / 'cache'}")
    first = snnexp(*tiny)
    assert first.code == 0, first.err
    (run,) = first.runs()
    data = json.loads((run / "run.json").read_text())["data"]
    assert {k: v for k, v in data.items() if k != "digest"} == {"name": "nmnist", "train": 9, "val": 1, "test": 4}

    lost = recordings / "Train/1/00003.bin"
    text = lost.read_bytes()
    lost.unlink()
    for resume in ("true", str(run)):
        refused = snnexp(*tiny, f"resume={resume}")
        assert refused.code == 1
        assert f"the run in {run} used other data of the dataset nmnist: train + val + test had 9 + 1 + 4 samples" in (
            refused.err
        )
        assert "and have 8 + 1 + 4 samples" in refused.err
        assert "Bring the old data back, or start a new run with resume=false" in refused.err
    assert first.runs() == [run]

    lost.write_bytes(text)  # another time, so another cache entry; the same data
    assert "already finished" in snnexp(*tiny, "resume=true").out
    lost.write_bytes(events.encode(events.Events(*(np.zeros(1, np.int64) for _ in range(4)))))
    assert snnexp(*tiny, "resume=true").code == 1
    assert snnexp(*tiny).code == 0
    assert "already finished" in snnexp(*tiny, "resume=true").out  # the newest of those that had these data


def test_a_study_is_not_continued_with_other_data(
    recordings: Path, snnexp: Callable[..., Done], tmp_path: Path
) -> None:
    study = ("-m", *TINY, "hydra.sweeper.study=s", "optimizer.lr=interval(1e-4,1e-3)", "hydra.sweeper.retries=0")
    study = (*study, f"dataset.root={recordings}", f"cache_dir={tmp_path / 'cache'}")
    first = snnexp(*study, "hydra.sweeper.n_trials=1")
    assert first.code == 0, first.err
    (recordings / "Train/1/00003.bin").unlink()
    second = snnexp(*study, "hydra.sweeper.n_trials=2", "hydra.sweeper.max_failures=1")
    assert second.code == 1
    assert "an earlier job of this sweep used other data of the dataset nmnist: train + val + test had 9 + 1 + 4" in (
        second.err
    )
    assert "choose another name with hydra.sweeper.study=NAME" in second.err


def test_the_jobs_of_a_grid_have_the_same_data(tmp_path):
    data = {"name": "digits", "train": 3, "val": 1, "test": 1, "digest": "a"}
    setting = {"dataset": {"seed": 0, "root": "/here"}, "task": "t"}
    check_data(Job(), tmp_path, setting, data)
    check_data(Job(), tmp_path, {"dataset": {"seed": 0, "root": "/there"}, "task": "t"}, data)
    check_data(Job(), tmp_path, {"dataset": {"seed": 1, "root": "/here"}, "task": "t"}, data | {"digest": "b"})
    with pytest.raises(UserError) as error:
        check_data(Job(), tmp_path, setting, data | {"train": 2, "digest": "c"})
    assert str(error.value) == (
        "an earlier job of this sweep used other data of the dataset digits: train + val + test had 3 + 1 + 1 samples "
        "(a), and have 2 + 1 + 1 samples (c) now. Bring the old data back, or start the sweep again"
    )
    assert other_data(None, data) == other_data(data, None) == other_data(data, dict(data)) == ""


def test_an_ann_is_trained_for_its_data_and_again_if_its_weights_are_damaged(tmp_path, caplog):
    choices = ["dataset=digits", "neuron=relu", "model=mlp", "model.hidden=[4]", "trainer.epochs=1"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [*choices, f"cache_dir={tmp_path}"]), resolve=True)
    session = Session(config, {})
    first = trained(session)
    weights = load_checkpoint(first)["model"]
    written = first.stat().st_mtime_ns
    assert trained(session.derived()) == first
    assert first.stat().st_mtime_ns == written

    x = session.data.train.x.clone()
    x[0, 0, 4, 4] += 1
    other = Session(config, {})
    other.data = replace(session.data, train=replace(session.data.train, x=x))
    assert trained(other) != first

    for damage in (lambda: first.write_bytes(b""), first.unlink, lambda: again(first, first.read_bytes()[::-1])):
        manifest._digested.clear()
        damage()
        assert trained(Session(config, {})) == first
        found = load_checkpoint(first)["model"]
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert caplog.text.count("is not as it was trained") == 3
