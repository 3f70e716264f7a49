"""Neurons: hand-computed traces, SpikingJelly's own nodes as the oracle, and a contract over every YAML."""

import itertools
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from spikingjelly.activation_based import neuron as nodes
from spikingjelly.activation_based import surrogate as library

from snnexp.dynamics import if_step, lif_step
from snnexp.errors import InvalidValue
from snnexp.neuron.backend import select
from snnexp.neuron.integrate_fire import IF
from snnexp.neuron.integrator import Integrator
from snnexp.neuron.lif import LIF
from snnexp.neuron.plif import PLIF
from snnexp.neuron.spikingjelly import Wrapped
from snnexp.surrogate.power import Power
from snnexp.surrogate.sine import Sine
from snnexp.testing import NeuronContract
from snnexp.timefold import unfold

CONF = Path(__file__).parents[1] / "conf"
NEURONS = {path.stem: path for path in sorted((CONF / "neuron").rglob("*.yaml"))}
SURROGATES = {path.stem: path for path in sorted((CONF / "surrogate").rglob("*.yaml"))}
SITES = [name for name in NEURONS if name not in ("clip", "qcfs", "relu")]  # those: tests/test_activations.py
RESETS = {
    "soft": {"reset": "soft"},
    "hard": {"reset": "hard"},
    "hard to 0.25": {"reset": "hard", "reset_value": 0.25},
    "soft, detached": {"reset": "soft", "detach_reset": True},
    "hard, detached": {"reset": "hard", "detach_reset": True},
}


def compose(neuron, surrogate="sigmoid", **changes):
    cfg = OmegaConf.create(
        {"surrogate": OmegaConf.load(SURROGATES[surrogate]), "neuron": OmegaConf.load(NEURONS[neuron])}
    )
    cfg.neuron.update(changes)
    return instantiate(cfg.neuron)


def at(site, T):
    site.T = T
    return site


def currents(T=10, N=16, features=12, seed=0, dtype=torch.float32):
    """[T*N, features], around the threshold."""
    return (torch.randn(T * N, features, generator=torch.Generator().manual_seed(seed)) + 0.3).to(dtype)


# By hand --------------------------------------------------------------------------------------------------------------

CURRENT = [0.75, 0.75, 0.75, 1.5, -0.5, 1.0234375]  # dyadic: the traces below are exact
TRACES = [  # neuron, reset, spikes, potentials after the reset
    (LIF, "soft", [0, 1, 0, 1, 0, 1], [0.75, 0.125, 0.8125, 0.90625, -0.046875, 0.0]),  # the last fires at equality
    (LIF, "hard", [0, 1, 0, 1, 0, 0], [0.75, 0.0, 0.75, 0.0, -0.5, 0.7734375]),
    (LIF, "hard to 0.25", [0, 1, 0, 1, 0, 0], [0.75, 0.25, 0.875, 0.25, -0.375, 0.8359375]),
    (IF, "soft", [0, 1, 1, 1, 0, 1], [0.75, 0.5, 0.25, 0.75, 0.25, 0.2734375]),
    (IF, "hard", [0, 1, 0, 1, 0, 0], [0.75, 0.0, 0.75, 0.0, -0.5, 0.5234375]),
]


@pytest.mark.parametrize("surrogate", [library.Sigmoid(), Sine()], ids=["fused", "loop"])
@pytest.mark.parametrize(("kind", "reset", "spikes", "potentials"), TRACES)
def test_trace_by_hand(kind, reset, spikes, potentials, surrogate):
    site = at(kind(surrogate, **RESETS[reset]), len(CURRENT))
    x = torch.tensor(CURRENT).unsqueeze(1)  # [T*N, 1] with N = 1
    assert site(x).flatten().tolist() == spikes
    v, seen = None, []
    for current, expected in zip(x, spikes, strict=True):
        s, v = site.step(current.unsqueeze(0), v)
        assert s.item() == expected
        seen.append(v.item())
    assert seen == potentials


@pytest.mark.parametrize("reset", ["soft", "hard", "hard to 0.25"])
@pytest.mark.parametrize(
    ("site", "step"),
    [
        (IF, if_step),
        (LIF, lambda c, v, theta, r: lif_step(c, v, 0.5, theta, r)),
        (PLIF, lambda c, v, theta, r: lif_step(c, v, 0.5, theta, r)),
    ],
    ids=["if", "lif", "plif"],
)
def test_the_step_functions_agree_on_a_grid(site, step, reset):
    site = at(site(library.ATan(), threshold=0.5, v_init=0.25, **RESETS[reset]), 12)
    x = ((currents(12) * 16).round() / 16).double()  # dyadic
    v, out = torch.full((16, 12), 0.25, dtype=torch.float64), []
    for current in unfold(x, 12):
        s, v = step(current, v, 0.5, site.v_reset)
        out.append(s)
    with torch.no_grad():
        assert torch.equal(site.double()(x), torch.cat(out))


# SpikingJelly as the oracle -------------------------------------------------------------------------------------------

PAIRS = {
    "if": (
        lambda s, r, d: IF(s, reset=r, detach_reset=d),
        lambda s, r, d: nodes.IFNode(v_reset=r, surrogate_function=s, detach_reset=d, step_mode="m"),
    ),
    "lif": (
        lambda s, r, d: LIF(s, alpha=0.75, reset=r, detach_reset=d),
        lambda s, r, d: nodes.LIFNode(4.0, False, v_reset=r, surrogate_function=s, detach_reset=d, step_mode="m"),
    ),
    "plif": (
        lambda s, r, d: PLIF(s, alpha=0.75, reset=r, detach_reset=d),
        lambda s, r, d: nodes.ParametricLIFNode(
            4.0, False, v_reset=r, surrogate_function=s, detach_reset=d, step_mode="m"
        ),
    ),
}


@pytest.mark.parametrize("surrogate", [library.ATan, library.Rect, Sine])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("name", PAIRS)
def test_spikes_and_gradients_are_those_of_spikingjellys_node(name, reset, detach, surrogate):
    ours, theirs = PAIRS[name]
    site = at(ours(surrogate(), reset, detach), 10)
    node = theirs(surrogate(), {"soft": None, "hard": 0.0}[reset], detach)
    x, weight = currents().requires_grad_(), torch.rand(160, 12)
    spikes = site(x)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), x)
    reference = node(unfold(x, 10)).flatten(0, 1)
    (expected,) = torch.autograd.grad((reference * weight).sum(), x)
    assert torch.equal(spikes, reference)
    assert 0.1 < spikes.mean() < 0.6
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("surrogate", [library.ATan(), Power()], ids=["fused", "loop"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", [IF, LIF, PLIF])
def test_gradients_are_autograd_through_the_equations(kind, reset, surrogate):
    site, x = at(kind(surrogate, **RESETS[reset]), 6).double(), currents(6, dtype=torch.float64).requires_grad_()
    weight = torch.rand(96, 12, dtype=torch.float64)
    parameters = [x, *site.parameters()]
    got = torch.autograd.grad((site(x) * weight).sum(), parameters)
    v, out = torch.zeros(16, 12, dtype=torch.float64), []
    for current in unfold(x, 6):
        v = site.decay * v + current
        s = surrogate(v - 1.0)
        r = s.detach() if site.detach_reset else s
        v = v - r if site.reset == "soft" else v * (1 - r) + site.reset_value * r
        out.append(s)
    expected = torch.autograd.grad((torch.cat(out) * weight).sum(), parameters)
    torch.testing.assert_close(got, expected)


def test_a_reset_value_does_not_attract_the_potential_as_it_does_in_spikingjelly():
    site = LIF(library.Sigmoid(), alpha=0.5, reset="hard", reset_value=0.5)
    node = nodes.LIFNode(2.0, False, v_reset=0.5)
    node.v, v = torch.zeros(1), None
    for ours, theirs in ((0.25, 0.5), (0.375, 0.75)):  # the page decays toward 0, SpikingJelly toward v_reset
        _, v = site.step(torch.tensor([0.25]), v)
        node(torch.tensor([0.25]))
        assert (v.item(), node.v.item()) == (ours, theirs)


# The contract ---------------------------------------------------------------------------------------------------------


def test_none_is_missing():
    assert set(NEURONS) >= {"clip", "if", "lif", "plif", "qcfs", "relu", "spikingjelly"}


class TestEveryNeuron(NeuronContract):
    @pytest.fixture(autouse=True, params=SITES)
    def _option(self, request):
        self.name, self.surrogate = request.param, "sigmoid"

    def make(self):
        return compose(self.name, self.surrogate)

    def test_nothing_is_kept_between_calls(self):
        super().test_nothing_is_kept_between_calls()
        site = self.make()
        assert set(site.state_dict()) == {name for name, _ in site.named_parameters()}


class TestEveryNeuronWithEverySurrogate(TestEveryNeuron):
    test_nothing_is_kept_between_calls = test_any_shape_and_layout = None  # the same for every surrogate

    @pytest.fixture(autouse=True, params=itertools.product(SITES, SURROGATES), ids=" ".join)
    def _option(self, request):
        self.name, self.surrogate = request.param


@pytest.mark.parametrize("surrogate", ["sigmoid", "sine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["if", "lif", "plif"])
def test_reduced_precision_keeps_the_potential_in_float32(name, dtype, surrogate):
    site = at(compose(name, surrogate), 4)
    x = currents(4, 8, 3, dtype=dtype).requires_grad_()
    spikes = site(x)
    assert spikes.dtype == dtype
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert gradient.dtype == dtype
    s, v = site.step(x[:8], None)
    assert (s.dtype, v.dtype) == (dtype, torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(spikes.float(), site(x.float()))


def test_a_fresh_surrogate_per_site():
    assert compose("lif", "power").surrogate is not compose("lif", "power").surrogate


@pytest.mark.parametrize("reset", ["soft", "hard", "hard to 0.25"])
@pytest.mark.parametrize("kind", [IF, LIF, PLIF])
def test_charged_potentials_are_those_that_fire(kind, reset):
    site, x = at(kind(Power(), threshold=0.75, v_init=0.125, **RESETS[reset]), 6), currents(6)
    charged = site.charged(x)
    assert charged.shape == x.shape
    assert not charged.requires_grad
    assert torch.equal((charged >= 0.75).float(), site(x))
    assert site.surrogate.seen == 0


def test_v_init_is_where_every_call_starts():
    site = at(IF(library.Sigmoid(), v_init=0.5), 2)
    assert site(torch.tensor([[0.5], [0.5]])).flatten().tolist() == [1, 0]
    assert at(IF(library.Sigmoid()), 2)(torch.tensor([[0.5], [0.5]])).flatten().tolist() == [0, 1]


def test_plif_starts_at_alpha_and_learns_it():
    site, x = at(PLIF(library.ATan(), alpha=0.9), 4), currents(4)
    assert site.decay.item() == pytest.approx(0.9)
    assert torch.equal(site(x), at(LIF(library.ATan(), alpha=0.9), 4)(x))
    site(x).sum().backward()
    assert site.w.grad.abs() > 0


def test_integrator_is_a_leaky_sum():
    x = torch.tensor([[1.0], [1.0], [-2.0]], requires_grad=True)
    out = at(Integrator(alpha=0.5), 3)(x)
    assert out.flatten().tolist() == [1.0, 1.5, -1.25]
    out.sum().backward()
    assert x.grad.flatten().tolist() == [1.75, 1.5, 1.0]
    assert at(Integrator(alpha=1.0), 3)(x.detach()).flatten().tolist() == [1, 2, 0]


# Any neuron of SpikingJelly -------------------------------------------------------------------------------------------

LIBRARY_NODES = [
    "ActivationAwareIFNode",
    "CUBALIFNode",
    "ComplementaryLIFNode",
    "EIFNode",
    "IFNode",
    "ILIFNode",
    "IzhikevichNode",
    "KLIFNode",
    "LIFNode",
    "ParametricLIFNode",
    "QIFNode",
    "RAFNode",
    "SLTTLIFNode",
    "SimpleIFNode",
    "TernaryIFNode",
    "TernaryLIFNode",
]


@pytest.mark.parametrize("name", LIBRARY_NODES)
def test_wrapped_node_is_the_node_without_its_memory(name):
    kind = getattr(nodes, name)
    site, x = at(Wrapped(kind()), 5), currents(5, 4, 3) * 2
    first = site(x)
    node = kind()
    node.step_mode = "m" if "m" in node.supported_step_mode() else "s"
    x_seq = unfold(x, 5)
    reference = node(x_seq) if node.step_mode == "m" else torch.stack([node(c) for c in x_seq])
    torch.testing.assert_close(first, reference.flatten(0, 1))
    assert torch.equal(site(x), first)
    state, out = None, []
    for current in x_seq:
        s, state = site.step(current, state)
        out.append(s)
    assert torch.equal(torch.cat(out), first)


def test_wrapped_refuses_a_node_that_changes_the_shape():
    site = at(Wrapped(nodes.GatedLIFNode(T=4)), 4)  # SpikingJelly's adds dimensions to [T, N, C]
    with pytest.raises(InvalidValue, match="GatedLIFNode"):
        site(torch.rand(8, 3))


def test_wrapped_refuses():
    for node, name in (
        (torch.nn.ReLU(), "node"),
        (nodes.NonSpikingIFNode(), "node"),
        (nodes.LIFNode(surrogate_function=library.Sigmoid(-1.0)), "surrogate.alpha"),
    ):
        with pytest.raises(InvalidValue) as error:
            Wrapped(node)
        assert error.value.name == name


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IF, LIF, PLIF])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0),
        ("threshold", -1.0),
        ("threshold", math.inf),
        ("threshold", "1"),
        ("reset", "medium"),
        ("reset", None),
        ("v_init", math.nan),
        ("detach_reset", "yes"),
        ("backend", "cupy"),
        ("backend", None),
    ],
)
def test_refused(kind, name, value):
    with pytest.raises(InvalidValue) as error:
        kind(library.Sigmoid(), **{name: value})
    assert (error.value.name, error.value.value) == (name, value)


@pytest.mark.parametrize("alpha", [0, 1, 1.5, -0.5, "0.5", math.nan])
@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_decay_outside_0_and_1_is_refused(kind, alpha):
    with pytest.raises(InvalidValue, match="between 0 and 1") as error:
        kind(library.Sigmoid(), alpha=alpha)
    assert error.value.name == "alpha"


def test_reset_values_that_make_no_sense_are_refused():
    with pytest.raises(InvalidValue, match="reset=hard"):
        LIF(library.Sigmoid(), reset="soft", reset_value=0.2)
    with pytest.raises(InvalidValue, match="below the threshold"):
        LIF(library.Sigmoid(), reset="hard", reset_value=1.0)


def test_the_surrogate_is_checked_by_the_neuron():
    with pytest.raises(InvalidValue) as error:
        LIF(library.Sigmoid(alpha=-1.0))
    assert error.value.name == "surrogate.alpha"


# Backends: no GPU here, so what is tested is the choice, not the kernels ----------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """As if torch saw a GPU and SpikingJelly had used no operator yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("SJ_")})
    for operator in ("if_", "lif", "plif"):
        monkeypatch.delitem(sys.modules, f"spikingjelly._ops.{operator}", raising=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backends_are_refused_on_a_cpu(backend):
    with pytest.raises(InvalidValue, match="no NVIDIA GPU"):
        IF(library.Sigmoid(), backend=backend)
    assert IF(library.Sigmoid(), backend="torch").backend == "torch"


def test_backend_sets_what_spikingjelly_reads(gpu):
    assert select("triton", library.ATan()) == "triton"
    assert {k: v for k, v in os.environ.items() if k.startswith("SJ_")} == {
        f"SJ_{n}_CUDA_IMPLEMENTATION": "triton" for n in ("IF", "LIF", "PLIF")
    }
    assert select("cuda", library.ATan()) == "cuda"  # nothing used yet: still free to change
    assert select("auto", library.ATan()) == "auto"
    assert os.environ["SJ_LIF_CUDA_IMPLEMENTATION"] == "cuda"


def test_backend_cannot_change_once_used(gpu, monkeypatch):
    select("triton", library.ATan())
    monkeypatch.setitem(sys.modules, "spikingjelly._ops.lif", object())
    assert select("triton", library.ATan()) == "triton"
    with pytest.raises(InvalidValue, match="triton in this process"):
        select("torch", library.ATan())


def test_kernels_that_do_not_know_the_surrogate_are_refused(gpu):
    with pytest.raises(InvalidValue, match="Sine"):
        select("triton", Sine())
