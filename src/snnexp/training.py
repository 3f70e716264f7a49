"""One training loop for ANN and SNN, on Lightning Fabric, with exact resume.

Everything random is a function of (seed, epoch) or saved in the checkpoint, so a run that is killed at any moment and
resumed ends with the same weights as one that was not.
"""

import ctypes
import gc
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from snnexp.dataset.base import Data, Split
from snnexp.errors import InvalidValue, UserError, boolean, choice, integer, integer_or_none, number, require
from snnexp.files import replace_by
from snnexp.finite import Watch
from snnexp.signals import collected, handled, interrupt, interrupting

Metrics = dict[str, float]
METRICS = ("val/accuracy", "val/loss")  # metrics that can choose an epoch, or a run of a sweep
THREADS = torch.get_num_threads()  # torch's default; a job may change its own
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true")


@dataclass(frozen=True)
class Trainer:
    """Settings of the training loop; see conf/trainer/default.yaml for their meaning. Raises InvalidValue."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    monitor: str
    patience: int | None
    gradient_clip: float | None
    accelerator: str
    devices: int
    precision: str
    threads: int | None
    checkpoint_every_s: float
    channels_last: bool
    compile: bool
    data_on_device: bool

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size", "devices"):
            integer(name, getattr(self, name), at_least=1)
        for name in ("patience", "threads"):
            integer_or_none(name, getattr(self, name), at_least=1)
        if self.gradient_clip is not None:
            number("gradient_clip", self.gradient_clip, "a number > 0, or null", above=0)
        for name in ("channels_last", "compile", "data_on_device"):
            boolean(name, getattr(self, name))
        number("checkpoint_every_s", self.checkpoint_every_s, "a number of seconds > 0", above=0)
        choice("precision", self.precision, PRECISIONS)
        choice("accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise InvalidValue("accelerator", self.accelerator, "cpu or auto on this machine: torch finds no GPU")
        if self.precision == "16-mixed" and self._kind == "cpu":
            raise InvalidValue("precision", self.precision, "bf16-mixed, 32-true or 64-true on a CPU")
        require(not self.compile or self.devices == 1, "compile", self.compile, "false with several devices")
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # chosen as torch does
        if self.compile and self._kind == "cpu" and shutil.which(compiler) is None:
            why = f"torch compiles for a CPU with {compiler}, which is not installed"
            raise InvalidValue("compile", self.compile, f"false on this machine: {why}")
        choice("monitor", self.monitor, METRICS)

    @property
    def _kind(self) -> str:
        """The accelerator; auto is a GPU if there is one, never another kind, because others are untested."""
        return self.accelerator if self.accelerator != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    def fabric(self) -> Fabric:
        """Return a Fabric on the requested devices; several are spawned here, never by rerunning the command."""
        strategy = "ddp_spawn" if self.devices > 1 else "auto"
        warnings.filterwarnings("ignore", "The `srun` command is available")  # a sweep's jobs do not need it
        plugins = LightningEnvironment()  # one process, whatever a cluster's variables say
        settings: dict[str, Any] = {"devices": self.devices, "precision": self.precision, "plugins": plugins}
        return Fabric(accelerator=self._kind, strategy=strategy, **settings)

    def better(self, new: Metrics, old: Metrics | None) -> bool:
        """Return whether `new` is a better epoch than `old` by `monitor`; the validation loss breaks ties."""

        def rank(m: Metrics) -> tuple[float, float]:
            return (-m[self.monitor] if "loss" in self.monitor else m[self.monitor], -m["val/loss"])

        return old is None or rank(new) > rank(old)


class Interrupted(KeyboardInterrupt):
    """Raised at the end of a step after Ctrl-C, SIGTERM or SIGHUP, once a checkpoint is written."""


@dataclass
class Progress:
    """The position of a run: the next (epoch, step), and everything reported so far."""

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss * n, correct, n of the current epoch
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1
    pruned: bool = False

    @property
    def best(self) -> Metrics | None:
        return self.history[self.best_epoch] if self.best_epoch >= 0 else None


StepHook = Callable[[Progress, int], None]  # called before or after each step with the epoch's number of steps
Prune = Callable[[list[Metrics]], bool]  # called after each epoch with the metrics of all epochs; true stops the run


class Fit:
    """Train `net` on `data.train` and choose the best epoch on `data.val`; `run()` returns the Progress.

    `folder` holds `last.pt` (everything that resuming needs) and `best.pt` (weights of the best epoch), each written
    atomically. If `prune(history)`, called by rank 0 after each epoch, returns true, all ranks stop with `pruned` set.
    `before_step` may change the network, alike on all ranks; the result of rank 0's `measure()` after an epoch is added
    to the epoch's metrics.
    """

    def __init__(
        self,
        fabric: Fabric,
        net: nn.Module,
        data: Data,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        trainer: Trainer,
        *,
        seed: int,
        folder: Path,
        on_step: StepHook,
        on_epoch: Callable[[Progress], None],
        prune: Prune = lambda history: False,
        before_step: StepHook = lambda progress, steps: None,
        measure: Callable[[], Metrics] = dict,
    ) -> None:
        self.fabric, self.loss, self.trainer, self.seed = fabric, loss, trainer, seed
        self.data = data.to(fabric.device) if trainer.data_on_device else data
        self.folder, self.on_step, self.on_epoch, self.prune = folder, on_step, on_epoch, prune
        self.before_step, self.measure = before_step, measure
        if trainer.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # affects convolutions' weights
        plain = optimizer(net.parameters())
        self.scheduler = scheduler(plain)
        # Compile a wrapper, not `net` itself: hooks on a compiled network's modules are not called. Compile a graph for
        # each batch size: a resumed run meets the sizes in another order, and must run the same graphs.
        trained = cast(nn.Module, torch.compile(net, dynamic=False)) if trainer.compile else net
        self.net, self.optimizer = fabric.setup(trained, plain)
        self.watch = Watch(net, plain, trainer.gradient_clip, gradients=trainer.precision != "16-mixed")
        self.progress = Progress()

    def run(self) -> Progress:
        """Train to the end. Raises UserError for values that are not finite and for an unwritable folder, Interrupted
        after Ctrl-C."""
        self._load()
        p, saved = self.progress, time.monotonic()
        with collected() as stop:
            while self._goes_on():
                order = self._order(p.epoch)
                steps = -(-len(order) // self.trainer.batch_size)
                if p.step == 0:
                    torch.manual_seed(mix(self.seed, p.epoch, self.fabric.global_rank))
                self.net.train()
                for x, y in self.data.train.batches(self.trainer.batch_size, order[p.step * self.trainer.batch_size :]):
                    self.before_step(p, steps)
                    self._step(x, y)
                    self.on_step(p, steps)
                    due = stop or time.monotonic() - saved > self.trainer.checkpoint_every_s
                    # ranks that stop at different steps would wait forever: several ranks stop at an epoch's end
                    if due and p.step < steps and self.fabric.world_size == 1:
                        self.watch.check("training", float(p.sums[0]), p.epoch)
                        self._save("last.pt", self._state())
                        saved = time.monotonic()
                        if stop:
                            raise Interrupted
                self._end_epoch()
                saved = time.monotonic()
                if self.fabric.broadcast(bool(stop)):
                    raise Interrupted
                hopeless = bool(self.fabric.broadcast(self.fabric.is_global_zero and self.prune(p.history)))
                p.pruned = hopeless and self._goes_on()  # after its last epoch there is nothing left to save
                if p.pruned:
                    break
        return p

    def _goes_on(self) -> bool:
        return self.progress.epoch < self.trainer.epochs and not self._out_of_patience()

    def _step(self, x: Tensor, y: Tensor) -> None:
        x, y = self.fabric.to_device(x), self.fabric.to_device(y)
        if self.data.augment:
            where = self.progress.epoch, self.progress.step, self.fabric.global_rank
            x = self.data.augment(x, mix(self.seed, *where))
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.net(x)
        loss = self.loss(outputs, y)
        self.fabric.backward(loss)
        if self.trainer.gradient_clip is not None:
            limit = self.trainer.gradient_clip
            self.fabric.clip_gradients(self.net, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        p, n = self.progress, len(y)
        p.sums[0] += loss.detach() * n  # tensors until the epoch's end, so as not to wait for the device
        p.sums[1] += (outputs.detach().mean(0).argmax(1) == y).sum()
        p.sums[2] += n
        p.step += 1

    def _end_epoch(self) -> None:
        p = self.progress
        sums = self.fabric.to_device(torch.tensor([float(s) for s in p.sums], dtype=torch.float64))
        loss, correct, n = cast(Tensor, self.fabric.all_reduce(sums, reduce_op="sum")).tolist()
        metrics = {"train/loss": loss / n, "train/accuracy": correct / n, "lr": self.optimizer.param_groups[0]["lr"]}
        self.watch.check("training", loss, p.epoch)
        metrics |= self._of_modules()
        metrics |= self.measure() if self.fabric.is_global_zero else {}
        metrics |= validate(self.net, self.data.val, self.loss, self.trainer.eval_batch_size, self.fabric.device)
        self.watch.check("validation", metrics["val/loss"], p.epoch)
        metrics = self.fabric.broadcast(metrics)  # ranks must agree on the best epoch and on when to stop
        self.scheduler.step()
        if self.trainer.better(metrics, p.best):
            p.best_epoch = p.epoch
            # before last.pt: a run killed between the two repeats the epoch and writes the same best.pt again
            self._save("best.pt", {"epoch": p.epoch, "metrics": metrics, "model": self._weights()})
        p.history.append(metrics)
        p.epoch, p.step, p.sums = p.epoch + 1, 0, [0.0, 0.0, 0.0]
        self._save("last.pt", self._state())
        self.on_epoch(p)

    def _of_modules(self) -> Metrics:
        """Return `epoch_metrics()` of all modules that have it (e.g. surrogates), averaged over them."""
        said: dict[str, list[float]] = {}
        for module in self.net.modules():
            for name, value in getattr(module, "epoch_metrics", dict)().items():
                said.setdefault(f"train/{name}", []).append(value)
        return {name: sum(values) / len(values) for name, values in said.items()}

    def _out_of_patience(self) -> bool:
        p = self.progress
        return self.trainer.patience is not None and p.epoch - 1 - p.best_epoch >= self.trainer.patience

    def _order(self, epoch: int) -> Tensor:
        """Return this rank's share of the epoch's order; all ranks have equally many samples."""
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(mix(self.seed, epoch)))
        world = self.fabric.world_size
        return order[: len(order) // world * world][self.fabric.global_rank :: world] if world > 1 else order

    def _weights(self) -> dict[str, Tensor]:
        return {key: value.detach().cpu() for key, value in self.net.state_dict().items()}

    def _parts(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, "precision": self.fabric.strategy.precision}

    def _state(self) -> dict[str, Any]:
        p = self.progress
        return {
            "epoch": p.epoch,
            "step": p.step,
            "sums": [float(s) for s in p.sums],
            "history": p.history,
            "best_epoch": p.best_epoch,
            "model": self._weights(),
            **{name: part.state_dict() for name, part in self._parts().items()},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "threads": torch.get_num_threads(),
        }

    def _save(self, name: str, state: Mapping[str, Any]) -> None:
        if self.fabric.is_global_zero:
            save(self.folder / name, state)

    def _load(self) -> None:
        if not (self.folder / "last.pt").exists():
            return
        state = load_checkpoint(self.folder / "last.pt")
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            said = f"{self.folder / 'last.pt'} does not continue this training ({error!r})"
            raise UserError(f"{said}: start a new run with resume=false, or remove that folder") from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["model"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        torch.set_num_threads(state["threads"])  # the rounding of sums depends on it
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.progress = Progress(**{k: state[k] for k in ("epoch", "step", "sums", "history", "best_epoch")})
        if self.progress.best and not (self.folder / "best.pt").exists():
            raise ValueError("best.pt is missing")


@torch.inference_mode()
def validate(
    net: nn.Module, split: Split, loss: nn.Module, batch_size: int, device: torch.device, prefix: str = "val"
) -> Metrics:
    """Return mean loss and accuracy of `net` (output [T, N, K]) on `split` as {prefix}/loss and {prefix}/accuracy."""
    net.eval()
    total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    for x, y in split.batches(batch_size):
        x, y = x.to(device), y.to(device)
        outputs = net(x)
        total += loss(outputs, y) * len(y)
        correct += (outputs.mean(0).argmax(1) == y).sum()
    return {f"{prefix}/loss": float(total) / len(split), f"{prefix}/accuracy": float(correct) / len(split)}


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` atomically: to a temporary name, synced, then renamed.

    Raises UserError if that fails (disk full, folder not writable); an existing file then stays intact.
    """
    try:
        replace_by(path, partial(torch.save, dict(state)))
    except OSError as error:
        kept = "the last good checkpoint is intact" if path.exists() else "there is no earlier one"
        raise UserError(f"cannot write the checkpoint {path}: {error.strerror}; {kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints (tensors and plain values only). Raises UserError if it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # torch raises many types for a broken file
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error


def mix(*parts: int) -> int:
    """Combine several seeds into one, without collisions between neighbours (one splitmix64 round per part)."""
    x = 0
    for part in parts:
        x = (x ^ part) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019 & (1 << 64) - 1
        x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return x >> 1


def launched(trainer: Trainer, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run `function(fabric, *arguments)` on the requested devices; with several, in one spawned process each.

    Returns rank 0's value. Ranks end with this process, however it ends. Raises what `function` raises.
    """
    fabric = trainer.fabric()
    if trainer.devices == 1:
        return function(fabric, *arguments)
    try:
        with handled(_interrupt):
            return fabric.launch(_Rank(function, os.getpid()), *arguments)
    except ProcessRaisedException as error:
        # the rank's exception arrives as text
        if said := re.search(r"snnexp\.errors\.UserError: (.*)", str(error), re.DOTALL):
            raise UserError(said[1].strip()) from error
        raise
    except ProcessExitedException as error:
        cause = f"killed by {error.signal_name}" if error.signal_name else f"exit status {error.exit_code}"
        raise UserError(
            f"rank {error.error_index} of the {trainer.devices} ranks died ({cause}), so the others were stopped. "
            "SIGKILL is often the system's answer to too little memory. Continue with resume=true"
        ) from error
    finally:
        with handled(_to_ranks):
            for rank in active_children():
                rank.join(timeout=60)  # after Ctrl-C, ranks stop at their epoch's end: no resumed run may overlap them


@dataclass(frozen=True)
class _Rank:
    """The function that a spawned rank calls."""

    function: Callable[..., Any]
    parent: int

    def __call__(self, fabric: Fabric, *arguments: Any) -> Any:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when the parent ends
            if os.getppid() != self.parent:
                os._exit(1)
        with interrupting():
            result = self.function(fabric, *arguments)
        gc.collect()  # the wrapped network, no longer used, refers to the process group
        torch.distributed.destroy_process_group()  # joins its threads: one still running at exit aborts the process
        return result


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Answer a signal in the parent of ranks."""
    _to_ranks(number, frame)
    interrupt(number, frame)


def _to_ranks(number: int, frame: FrameType | None) -> None:
    for rank in active_children():
        if rank.pid:
            os.kill(rank.pid, signal.SIGTERM)
