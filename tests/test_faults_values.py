"""Values that are NaN or infinite, and tensors that are no weights, end in a sentence, never in a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from conftest import SMALL, Done
from snnexp.checkpoint import load_into, read_weights
from snnexp.config import conf_dir
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import convert
from snnexp.dataset.base import Data, Split
from snnexp.errors import UserError
from snnexp.finite import nonfinite
from snnexp.neuron.lif import LIF
from snnexp.session import Session
from snnexp.surrogate.sine import Sine
from snnexp.timefold import TimeFold
from snnexp.training import Fit, Trainer, load_checkpoint

NAN, INF = torch.nan, torch.inf
INFINITE = 1e300  # as float32


def test_values_that_are_not_finite_are_named() -> None:
    large = torch.full((3,), 3e38)  # their sum is not finite
    tensors = {
        "large": large,
        "nan": torch.tensor([1.0, NAN]),
        "half": torch.tensor([INF], dtype=torch.float16),
        "complex": torch.tensor([complex(0, NAN)]),
        "float8": torch.tensor([NAN]).to(torch.float8_e4m3fn),
        "empty": torch.empty(0),
        "whole": torch.tensor([1]),
        "sparse": torch.tensor([NAN]).to_sparse(),
        "lazy": nn.LazyLinear(2).weight,
    }
    assert nonfinite(tensors) == ["nan", "half", "complex", "float8"]
    assert nonfinite({}) == []


def test_the_lab_that_diverges_fails_with_advice(snnexp: Callable[..., Done]) -> None:
    """A NaN potential does not spike, so the loss alone stays finite."""
    done = snnexp(*SMALL, "dataset=digits", "tracking=none", "optimizer=sgd", "optimizer.lr=1e6")
    assert done.code == 1
    assert "linear1.weight" in done.err
    assert "became NaN or infinite in epoch 1: try a smaller optimizer.lr (now 1e+06) or trainer.gradient_clip=1" in (
        done.err
    )
    (run,) = done.runs()
    assert json.loads((run / "run.json").read_text())["status"] == "FAILED"
    assert not (run / "best.pt").exists()
    assert not (run / "result.json").exists()


class Strange(nn.Module):
    """Cross-entropy of the mean output, infinite for networks in evaluation."""

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs.mean(0), y)
        return loss if torch.is_grad_enabled() else loss + INF


def data() -> Data:
    x = torch.randint(0, 2, (40, 3, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split(x, torch.arange(40) % 2, torch.arange(40))
    return Data("toy", split, split, split, (6,), ("a", "b"), temporal=True)


def training(folder: Path, before_step: Callable[..., None], loss: nn.Module | None = None, every: float = 60) -> Fit:
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), LIF(Sine(1.0), 0.5), nn.Linear(4, 2))
    inside[0].register_buffer("mask", torch.tensor([-INF, 0.0]))  # as attention has: not a fault
    net = TimeFold(inside, 3, temporal=True)
    trainer = Trainer(4, 8, 8, "val/loss", None, None, "cpu", 1, "32-true", 1, every, False, False, False)
    return Fit(
        trainer.fabric(),
        net,
        data(),
        loss or Mean(),
        partial(torch.optim.Adam, lr=1e-3),
        partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0),
        trainer,
        seed=0,
        folder=folder,
        on_step=lambda progress, steps: None,
        on_epoch=lambda progress: None,
        before_step=before_step,
    )


class Mean(nn.Module):
    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.nan_to_num().mean(0), y)


def weight(fit: Fit) -> None:
    fit.watch.net.network[0].weight.data[0, 0] = NAN


def buffer(fit: Fit) -> None:
    fit.watch.net.network[1].running_var[2] = INF


def moment(fit: Fit) -> None:
    """An infinite second moment makes every step 0: the weight would never change again."""
    fit.watch.optimizer.state[fit.watch.net.network[3].bias]["exp_avg_sq"][0] = INF


@pytest.mark.parametrize(
    ("poison", "named"),
    [(weight, "0.weight"), (buffer, "1.running_var"), (moment, "the optimizer's exp_avg_sq of 3.bias")],
)
@pytest.mark.parametrize("every", [60.0, 1e-9])
def test_the_last_good_checkpoint_stays(poison, named, every, tmp_path):
    """Poisoned in epoch 3, step 2; with a checkpoint after each step, the good one is that of step 1."""

    def before_step(progress, steps):
        if (progress.epoch, progress.step) == (2, 1):
            poison(fit)

    fit = training(tmp_path, before_step, every=every)
    with pytest.raises(UserError) as error:
        fit.run()
    assert str(error.value).startswith(named)
    assert str(error.value).endswith(
        "became NaN or infinite in epoch 3: try a smaller optimizer.lr (now 0.001) or trainer.gradient_clip=1. "
        "The last good checkpoint stays"
    )
    state, best = (load_checkpoint(tmp_path / name) for name in ("last.pt", "best.pt"))
    assert (state["epoch"], state["step"]) == (2, 0 if every == 60 else 1)
    assert best["epoch"] < 2
    assert nonfinite(state["model"]) == nonfinite(best["model"]) == ["network.0.mask"]
    resumed = training(tmp_path, lambda progress, steps: None)
    assert resumed.run().epoch == 4


def test_an_infinite_validation_loss_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="the validation loss became inf in epoch 1"):
        training(tmp_path, lambda progress, steps: None, loss=Strange()).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda folder: torch.save({"epoch": 1}, folder / "last.pt"), r"last.pt does not continue this training \(Key"),
        (lambda folder: torch.save([1], folder / "last.pt"), "last.pt does not continue this training"),
        (lambda folder: (folder / "last.pt").write_bytes(b""), "cannot read the checkpoint .*last.pt"),
        (lambda folder: (folder / "best.pt").unlink(), "best.pt is missing"),
    ],
)
def test_a_broken_checkpoint_of_a_run_is_a_sentence(broken, words, tmp_path):
    training(tmp_path, lambda progress, steps: None).run()
    broken(tmp_path)
    with pytest.raises(UserError, match=words):
        training(tmp_path, lambda progress, steps: None).run()


def network() -> TimeFold:
    return TimeFold(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 1, temporal=False)


SOURCE = network().network.state_dict()
LOOP: dict[str, object] = {}
LOOP["model"] = LOOP
CYCLE: dict[str, object] = {"model": {}}
CYCLE["model"]["state_dict"] = CYCLE
W = SOURCE["1.weight"]
TENSORS = {
    "integer keys": ({3: W}, "the key 3 of a tensor is not text, as those of a state_dict are"),
    "key of a tuple": ({(1, 2): W}, r"the key (1, 2) of a tensor is not text, as those of a state_dict are"),
    "itself": (LOOP, "it holds no weights"),
    "a cycle": (CYCLE, "it holds no weights"),
    "sparse": (SOURCE | {"1.weight": W.to_sparse()}, "1.weight is a sparse_coo tensor"),
    "meta": (SOURCE | {"1.weight": W.to("meta")}, "1.weight is a meta tensor"),
    "quantised": (SOURCE | {"1.weight": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)}, "1.weight is a quantised"),
    "complex": (SOURCE | {"1.weight": W.to(torch.complex64)}, "of another type: 1.weight torch.complex64 in the file"),
    "whole": (SOURCE | {"1.weight": W.to(torch.int8)}, "of another type: 1.weight torch.int8 in the file"),
    "flags": (SOURCE | {"1.weight": W > 0}, "of another type: 1.weight torch.bool in the file"),
    "NaN": (SOURCE | {"1.weight": W * NAN}, "does not fit the network: NaN or infinite: 1.weight"),
    "too large": (SOURCE | {"1.bias": torch.full((3,), INFINITE, dtype=torch.float64)}, "NaN or infinite: 1.bias"),
    "all NaN": ({k: v * NAN for k, v in SOURCE.items()}, "NaN or infinite: 1.weight, 1.bias, 3.weight and 1 more"),
    "a number": (SOURCE | {"1.weight": 3.0}, "missing: 1.weight"),
    "no end": (SOURCE | {"1.weight": W[:1, :1].expand(10**9, 10**9)}, "of another shape: 1.weight 1000000000 x"),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_weights_are_named(name, tmp_path):
    content, words = TENSORS[name]
    path = tmp_path / "w.pt"
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        load_into(network(), path)
    assert str(error.value).startswith(f"checkpoint={path}")
    assert words in str(error.value)


def test_the_key_that_names_the_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"^model.weights=.*none.pt: there is no such file"):
        read_weights(tmp_path / "none.pt", "model.weights")


def test_a_mask_is_no_fault(tmp_path):
    def masked() -> TimeFold:
        net = network()
        net.network.register_buffer("mask", torch.tensor([-INF, 0.0]))
        return net

    torch.save(masked().state_dict(), tmp_path / "w.pt")
    load_into(masked(), tmp_path / "w.pt")


def broken(shape: tuple[int, ...], classes: int) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    net[1].weight.data[0, 0] = NAN
    return net


def test_a_model_that_brings_broken_weights_is_refused() -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        made = compose("config", ["dataset=digits", "model=custom", f"model._target_={__name__}.broken"])
    config = OmegaConf.to_container(made, resolve=True)
    with pytest.raises(
        UserError, match=rf"model \({__name__}.broken\) gives weights that are NaN or infinite: 1.weight"
    ):
        Session(config, {}).network()


def test_a_network_to_convert_is_watched() -> None:
    x = torch.rand(8, 4)
    net = network().network
    net[1].weight.data[0, 0] = NAN
    with pytest.raises(UserError, match=r"the weights 1\.weight of the network are NaN or infinite"):
        convert(net, x, MaxThreshold(), 4)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.weight, 1e30)
    nn.init.zeros_(net[4].weight)
    with pytest.raises(UserError, match="the network's answers are NaN or infinite"):
        convert(net, x, MaxThreshold(), 4)
    x[:2] = 0  # shown to the network before the walk
    with pytest.raises(UserError, match="the output of layer 2 is NaN or infinite on the calibration images"):
        convert(net, x, MaxThreshold(), 4)
