"""Weights of other people's files: every form is read, what does not fit is named, no code is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based.surrogate import Sigmoid
from torch import nn

from conftest import Done
from snnexp.checkpoint import load_into
from snnexp.checkpoint import read_weights as read
from snnexp.errors import UserError
from snnexp.neuron.lif import LIF
from snnexp.surrogate.dspike_adaptive import AdaptiveDspike
from snnexp.surrogate.power import Power
from snnexp.timefold import Normalize, TimeFold


def adaptive(b: float) -> AdaptiveDspike:
    return AdaptiveDspike(
        b,
        db=1.0,
        low=1.0,
        high=20.0,
        temperature="shared",
        every=None,
        moves=1,
        layer=None,
        subset="all",
        weights=2,
        batch=4,
        eps=0.5,
    )


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def folded() -> TimeFold:
    return TimeFold(network(), 1, temporal=False, front=Normalize((0.5,), (0.5,)))


SOURCE = network().state_dict()
PREFIXED = {f"module.{k}": v for k, v in SOURCE.items()}
FORMS = {
    "plain": SOURCE,
    "under state_dict": {"state_dict": SOURCE, "epoch": 3, "best": 0.9},
    "under model": {"model": SOURCE, "optimizer": {"state": {}}},
    "under both": {"state_dict": {"model": SOURCE}},
    "DataParallel": PREFIXED,
    "DataParallel under state_dict": {"state_dict": PREFIXED},
    "compiled": {f"_orig_mod.{k}": v for k, v in SOURCE.items()},
    "compiled DataParallel": {f"module._orig_mod.{k}": v for k, v in SOURCE.items()},
    "without counters": {k: v for k, v in SOURCE.items() if "num_batches" not in k},
    "with numbers beside": SOURCE | {"note": "mine", "epoch": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, tmp_path):
    torch.save(FORMS[form], tmp_path / "w.pth")
    net = folded()
    load_into(net, tmp_path / "w.pth")
    assert all(torch.equal(v, SOURCE[k]) for k, v in net.network.state_dict().items() if "num_batches" not in k)
    assert net.front.mean.item() == 0.5  # the file says nothing of it


def test_our_own_files_bring_their_normalisation(tmp_path):
    ours = folded()
    ours.front = Normalize((0.25,), (2.0,))
    torch.save({"epoch": 1, "metrics": {}, "model": ours.state_dict()}, tmp_path / "best.pt")
    net = folded()
    load_into(net, tmp_path / "best.pt")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(net.eval()(x), ours.eval()(x))


def test_what_does_not_fit_is_named(tmp_path):
    wrong = dict(SOURCE)
    del wrong["0.weight"], wrong["4.bias"]
    wrong["4.weight"] = torch.zeros(10, 16)
    wrong |= {f"extra.{k}": torch.zeros(1) for k in range(5)}
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_into(folded(), tmp_path / "w.pth")
    assert str(error.value) == (
        f"checkpoint={tmp_path / 'w.pth'} does not fit the network: missing: 0.weight, 4.bias; unexpected: extra.0, "
        "extra.1, extra.2 and 2 more; of another shape: 4.weight 10 x 16 in the file, 3 x 16 in the network; "
        "the file has: 0.bias, 1.weight, 1.bias and 9 more"
    )


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "into", [lambda: Sigmoid(4.0), lambda: Power(0.5), lambda: adaptive(10.0)], ids=["sigmoid", "power", "adaptive"]
)
@pytest.mark.parametrize(
    "of", [lambda: Sigmoid(4.0), lambda: Power(0.5), lambda: adaptive(3.0)], ids=["sigmoid", "power", "adaptive"]
)
def test_what_a_surrogate_has_come_to_is_no_weight(of, into, tmp_path):
    """Weights go from each surrogate to each other, which starts as its settings say."""
    first, second = (
        TimeFold(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), LIF(make(), 0.5)), 3, temporal=True)
        for make in (of, into)
    )
    first(torch.ones(1, 3, 1, 2, 2)).sum().backward()
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    load_into(second, tmp_path / "weights.pt")
    assert torch.equal(second.network[1].weight, first.network[1].weight)
    surrogate = second.network[2].surrogate
    assert getattr(surrogate, "b", 10.0) == 10.0
    assert getattr(surrogate, "seen", 0) == 0


def test_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pth")
    Path("pickle.pth").write_bytes(pickle.dumps(Evil()))
    torch.save(network(), "module.pth")
    Path("empty.pth").write_bytes(b"")
    Path("text.pth").write_text("hello")
    for name in ("evil.pth", "pickle.pth", "module.pth", "empty.pth", "text.pth"):
        with pytest.raises(UserError, match=rf"checkpoint={name} cannot be read as weights: it "):
            read(name)
    assert not Path("evil").exists()


def test_files_that_hold_no_weights(tmp_path):
    for content in ({}, {"state_dict": {}}, [1, 2], {"epoch": 1}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match="holds no weights"):
            read(tmp_path / "w.pth")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.pth")


def test_on_the_command_line(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    quick = (
        "dataset=digits",
        "model=convnet",
        "model.width=8",
        "neuron=qcfs",
        "loss=cross_entropy",
        "optimizer.lr=0.01",
        "trainer.threads=1",
        "tracking=none",
        "trainer.epochs=2",
    )
    first = snnexp(*quick)
    assert first.code == 0, first.err
    (folder,) = first.runs()
    second = snnexp(*quick, "trainer.epochs=1", "optimizer.lr=1e-9", f"checkpoint={folder / 'best.pt'}", "seed=5")
    assert second.code == 0, second.err
    (other,) = set(second.runs()) - {folder}
    old, new = (torch.load(f / "best.pt", weights_only=True)["model"] for f in (folder, other))
    assert all(torch.allclose(old[k], new[k], atol=1e-6) for k in old if "running" not in k and "batches" not in k)
    third = snnexp(*quick, "model.width=4", f"checkpoint={folder / 'best.pt'}")
    assert third.code == 1
    assert "does not fit the network: of another shape: 0.weight 8 x 1 x 3 x 3 in the file, 4 x 1" in third.err
    assert len(third.runs()) == 2


@pytest.mark.slow
def test_weights_of_a_run_in_mlflow(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    quick = (
        "dataset=digits",
        "model=convnet",
        "model.width=8",
        "neuron=qcfs",
        "loss=cross_entropy",
        "trainer.threads=1",
        "trainer.epochs=1",
        f"cache_dir={tmp_path / 'cache'}",
    )
    early = snnexp(*quick, "checkpoint=runs:/0123")
    assert early.code == 1
    assert "checkpoint=runs:/0123: there is no MLflow store" in early.err
    assert snnexp(*quick).code == 0

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{early.outputs}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("snnexp").experiment_id])
    taken = snnexp(*quick, "optimizer.lr=1e-9", "seed=5", f"checkpoint=runs:/{run.info.run_id}")
    assert taken.code == 0, taken.err
    old, new = (torch.load(folder / "best.pt", weights_only=True)["model"] for folder in taken.runs())
    assert all(torch.allclose(old[k], new[k], atol=1e-6) for k in old if "running" not in k and "batches" not in k)

    bare = client.create_run(run.info.experiment_id).info.run_id
    count = len(taken.runs())
    for arguments, said in (
        ([f"checkpoint=runs:/{bare}"], "that run keeps no weights"),
        (["checkpoint=runs:/0123"], "there is no such run in sqlite:///"),
        (["checkpoint=runs:/0123/model"], "no such file, and it is not runs:/<run id>"),
        ([f"checkpoint=runs:/{bare}", "tracking=none"], "tracking=none has no runs"),
    ):
        done = snnexp(*quick, *arguments)
        assert done.code == 1
        assert said in done.err
        assert "Traceback" not in done.err
        assert len(done.runs()) == count
    assert [p.name for p in (tmp_path / "cache/weights").iterdir() if p.is_dir()] == [run.info.run_id]
