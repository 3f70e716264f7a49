"""Time converted ResNet-20s, ours and SpikingJelly's, relative to T forward passes of the ANN.

    python bench/convert_inference.py [--T 32] [--images 64] [--rounds 5] [--threads 1] [--rows 128] [--calibrate 0]

All sides use the same images and threads and take turns in one process. Reported is processor time, the best and the
median of the rounds. The ANN has its BatchNorm folded. It is timed in torch's standard memory layout, which
SpikingJelly's network uses as well, and with channels last, which ours uses. Peak memory is measured in a separate
process for each side. With --calibrate N, the time of a calibration (adaptive threshold, bias, potential) on N images
is reported too, relative to one inference of the same images.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from snnexp.calibration.bias import Bias
from snnexp.calibration.potential import Potential
from snnexp.conversion.adaptive_threshold import AdaptiveThreshold
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.rewrite import rewrite
from snnexp.model.resnet import cifar_resnet


def sides(args: argparse.Namespace) -> tuple[Tensor, dict[str, Callable[[], Tensor]]]:
    """Return the images, and the calls to time: the ANN, our SNN, and SpikingJelly's in both of its step modes."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import FXConverter, RateCodingRecipe

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    net = cifar_resnet((3, 32, 32), 10, nn.ReLU, depth=20, width=16, shortcut="B", readout="current").eval()
    x, some = torch.randn(args.images, 3, 32, 32), torch.randn(32, 3, 32, 32)
    fast, _ = rewrite(net, some[:2])
    ann = copy.deepcopy(fast)
    for parameter in ann.parameters():
        parameter.data = parameter.data.contiguous()
    snn = Converted(convert(net, some, MaxThreshold(), args.T)[0].network, args.T, args.rows)
    theirs = FXConverter(RateCodingRecipe([(some, None)], mode="Max"), device="cpu").convert(copy.deepcopy(net)).eval()

    def single() -> Tensor:
        functional.set_step_mode(theirs, "s")
        functional.reset_net(theirs)
        total = theirs(x)
        for _ in range(args.T - 1):
            total = total + theirs(x)
        return total / args.T  # type: ignore[no-any-return]

    def multi() -> Tensor:
        functional.set_step_mode(theirs, "m")
        parts = []
        for part in x.split(8):  # the whole batch would not fit into memory
            functional.reset_net(theirs)
            parts.append(theirs(part.expand(args.T, *part.shape)).mean(0))
        return torch.cat(parts)

    return x, {
        "ANN": lambda: ann(x),
        "ANN, channels last": lambda: fast(x),
        "snnexp": lambda: snn(x),
        "SpikingJelly, single-step": single,
        "SpikingJelly, multi-step": multi,
    }


def peak(args: argparse.Namespace, name: str, queue: multiprocessing.Queue[float]) -> None:
    _, made = sides(args)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (Linux)
    before = status("VmRSS")
    with torch.inference_mode():
        made[name]()
    queue.put((status("VmHWM") - before) / 1024)


def status(key: str) -> int:
    """Return a value from /proc/self/status, in KiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1])


def memory(args: argparse.Namespace, name: str) -> float:
    """Return the MiB that one call adds to the peak memory of a process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=peak, args=(args, name, queue))
    child.start()
    found = queue.get()
    child.join()
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("T", 32), ("images", 64), ("rounds", 5), ("threads", 1), ("rows", 128), ("calibrate", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    x, made = sides(args)
    with torch.inference_mode():
        ours, other = made["snnexp"](), made["SpikingJelly, single-step"]()
        print(f"outputs of the two SNNs differ by at most {float((ours - other).abs().max()):.1e}", file=sys.stderr)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(args.rounds):
            for name, run in made.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
    print(f"ResNet-20, 32 x 32, T = {args.T}, {args.images} images, {args.threads} thread(s), {args.rounds} rounds\n")
    print(
        "| side | ms an image and step | over T x ANN, best | median | the ANN with channels last, best | median | "
        "peak memory, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, times in seconds.items():
        steps = 1 if name.startswith("ANN") else args.T
        ratios = []
        for ann in (seconds["ANN"], seconds["ANN, channels last"]):
            pairs = [t / steps / a for t, a in zip(times, ann, strict=True)]
            ratios += [min(times) / steps / min(ann), statistics.median(pairs)]
        print(
            f"| {name} | {1000 * min(times) / steps / len(x):.3f} | {' | '.join(f'{r:.2f}' for r in ratios)} | "
            f"{memory(args, name):.0f} |"
        )
    if args.calibrate:
        print(
            f"\ncalibration over inference, {args.calibrate} images, by round: "
            f"{', '.join(f'{calibrated(args):.2f}' for _ in range(args.rounds))}"
        )


def calibrated(args: argparse.Namespace) -> float:
    """Return the time of one calibration divided by that of one inference of the same images."""
    net = cifar_resnet((3, 32, 32), 10, nn.ReLU, depth=20, width=16, shortcut="B", readout="current").eval()
    x = torch.randn(args.calibrate, 3, 32, 32)
    start = time.process_time()
    snn, _ = convert(net, x, AdaptiveThreshold(), args.T, [Bias(), Potential()])
    middle = time.process_time()
    snn(x)
    return (middle - start) / (time.process_time() - middle)


if __name__ == "__main__":
    main()
