"""Surrogates: a contract over every YAML, closed forms for ours (S, P, Dspike), and what is refused."""

import copy
import inspect
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from spikingjelly.activation_based import surrogate as library

from snnexp.errors import InvalidValue
from snnexp.neuron.backend import FUSED
from snnexp.surrogate import check_arguments, checked_surrogate, curve, primitive
from snnexp.surrogate.dspike import Dspike
from snnexp.surrogate.limits import LIBRARY, NOT_HEAVISIDE
from snnexp.surrogate.power import Power
from snnexp.surrogate.sine import Sine
from snnexp.testing import SurrogateContract

GROUP = Path(__file__).parents[1] / "conf" / "surrogate"
FILES = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(GROUP.rglob("*.yaml"))}
NO_PRIMITIVE = {"super_spike", "fake_numerical_gradient"}
# SpikingJelly's S2NN adds 1e-5 inside the logarithm of its primitive (against log 0) and not in its backward:
# beta/(x+1) against beta/(x+1+1e-5), so the largest difference is beta * 1e-5, at x = 0.
DEVIATES = {"s2nn": (0.5e-5, 3e-5)}
STEP = 1e-3
# Off every corner (0, 1/2, 1/alpha, ...) by far more than the finite difference below reaches.
GRID = torch.arange(-3, 3, STEP, dtype=torch.float64) + 0.00037


def made(target, arguments):
    """As the runner makes one: refused by the table of limits, or by the constructor."""
    check_arguments(target, arguments)
    return get_class(target)(**arguments)


def build(name, **changes):
    return instantiate({**FILES[name], **changes})


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def varied(name):
    """The same surrogate at other parameters than its YAML's."""
    numbers = {key: value for key, value in FILES[name].items() if is_number(value)}
    return build(name, **{k: v + 2 if isinstance(v, int) else v * 1.5 for k, v in numbers.items()})


def test_none_is_missing():
    assert len(FILES) >= 24
    assert {"sine", "power", "dspike", "dspike_adaptive", "atan", "sigmoid"} <= set(FILES)


def test_every_class_of_spikingjelly_is_offered_or_refused_with_a_reason():
    classes = {
        name
        for name, kind in vars(library).items()
        if isinstance(kind, type) and issubclass(kind, library.SurrogateFunctionBase)
    }
    offered = {cfg["_target_"].removeprefix(LIBRARY) for cfg in FILES.values() if cfg["_target_"].startswith(LIBRARY)}
    assert classes - {"SurrogateFunctionBase"} == offered | set(NOT_HEAVISIDE)


def test_the_classes_that_the_kernels_know():
    from spikingjelly._ops.surrogate import _SURROGATE_IDS

    assert {kind.__name__ for kind in FUSED} == set(_SURROGATE_IDS)


class TestEverySurrogate(SurrogateContract):
    """Each YAML as it is, and with other parameters."""

    @pytest.fixture(
        autouse=True,
        params=[(name, make) for name in FILES for make in (build, varied)],
        ids=lambda p: p[0] + p[1].__name__,
    )
    def _option(self, request):
        self.name, self.factory = request.param
        self.least, self.tolerance = DEVIATES.get(self.name, (0.0, 1e-6))

    def make(self):
        return self.factory(self.name)

    def slope(self, surrogate, x):
        slope = super().slope(surrogate, x)
        cap = getattr(surrogate, "max_gradient", math.inf)  # P: the cap where it applies
        return None if slope is None else slope.clamp(max=cap)

    def test_backward_is_finite(self):
        super().test_backward_is_finite()
        if self.factory is build:
            x = torch.cat([torch.linspace(-3, 3, 6001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30])])
            assert curve(self.make(), x).derivative.abs().max() <= 10

    def test_the_deviation_of_spikingjelly_is_as_large_as_stated(self):
        if self.least:
            surrogate = self.make()
            assert (curve(surrogate, GRID).derivative - self.slope(surrogate, GRID)).abs().max() >= self.least


def test_the_surrogates_without_a_primitive():
    assert {name for name in FILES if primitive(build(name), GRID) is None} == NO_PRIMITIVE
    torch.testing.assert_close(curve(build("super_spike"), GRID).derivative, (1 + GRID.abs()) ** -2)
    torch.testing.assert_close(
        curve(build("fake_numerical_gradient"), GRID).derivative, (GRID.sign() / GRID).clamp(max=0.3)
    )


def test_fake_numerical_gradient_at_minus_zero_is_spikingjellys_own_infinity():
    # 1/-0 slips under the cap; v - theta is never -0 in IEEE arithmetic, so no neuron meets it.
    assert curve(build("fake_numerical_gradient"), torch.tensor([-0.0])).derivative.item() == -math.inf
    v = torch.rand(1000)
    assert not torch.signbit(v - v).any()


def test_curve_is_without_side_effects():
    surrogate = Power()
    before = copy.deepcopy(surrogate.__dict__)
    x = torch.zeros(7, 3)
    forward, smooth, derivative = curve(surrogate, x)
    assert forward.shape == smooth.shape == derivative.shape == (7, 3)
    assert not forward.requires_grad
    assert not derivative.requires_grad
    assert not x.requires_grad
    assert surrogate.__dict__.keys() == before.keys()
    assert (surrogate.seen, surrogate.capped, surrogate.spiking) == (0, 0, True)


def test_the_package_imports_no_torch():
    code = (
        "import sys, snnexp.surrogate as s; s.check_arguments('spikingjelly.activation_based.surrogate.Sigmoid', "
        "{'alpha': 4.0}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Ours -----------------------------------------------------------------------------------------------------------------

OURS = {
    "sine": Sine(),
    "sine wide": Sine(2.5),
    "power": Power(),
    "power 0.9": Power(0.9),
    "dspike": Dspike(),
    "dspike flat": Dspike(1e-3),
    "dspike steep": Dspike(1e3),
}


@pytest.mark.parametrize("name", OURS)
def test_primitive_rises_from_0_through_a_half_to_1(name):
    x = torch.cat([torch.tensor([-1e6, -3.0]), GRID, torch.tensor([3.0, 1e6])]).double()
    g = OURS[name].primitive(x)
    torch.testing.assert_close(g[[0, 1, -2, -1]], torch.tensor([0.0, 0, 1, 1], dtype=torch.float64), rtol=0, atol=1e-15)
    assert (g.diff() >= -1e-15).all()
    assert OURS[name].primitive(torch.zeros(1)).item() == 0.5
    torch.testing.assert_close(g, 1 - OURS[name].primitive(-x))


@pytest.mark.parametrize("name", OURS)
def test_derivative_is_even_and_zero_outside(name):
    surrogate = OURS[name]
    x = torch.linspace(0, 3, 3001, dtype=torch.float64)
    assert torch.equal(surrogate.derivative(x), surrogate.derivative(-x))
    support = {"sine": 1, "sine wide": 2.5, "power": 1, "power 0.9": 1}.get(name, 0.5)
    assert (surrogate.derivative(x[x > support]) == 0).all()
    assert (surrogate.derivative(x[x < min(support, 0.01)]) > 0).all()
    assert torch.equal(surrogate.derivative(torch.tensor([math.inf, -math.inf])), torch.zeros(2))


def test_at_the_corners_the_closed_interval_holds():
    corner = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        x = corner.to(dtype)
        assert (Sine(1.0).derivative(x) == 0).all()  # pi/4 cos(pi/2)
        assert (Sine(0.3).derivative(0.3 * x) == 0).all()
        assert (Power(0.5).derivative(x) == 0.25).all()  # alpha/2
        torch.testing.assert_close(
            Dspike(3.0).derivative(x / 2), torch.full_like(x, 3 / (2 * math.tanh(1.5)) / math.cosh(1.5) ** 2)
        )


def test_values_by_hand():
    assert Sine(1.0).derivative(torch.zeros(1)).item() == pytest.approx(math.pi / 4)
    assert Sine(2.0).primitive(torch.ones(1)).item() == pytest.approx(0.5 * math.sin(math.pi / 4) + 0.5)
    assert Power(0.5).derivative(torch.tensor([0.25])).item() == pytest.approx(0.5)
    assert Power(0.5).primitive(torch.tensor([-0.25])).item() == pytest.approx(0.25)
    assert Dspike(3.0).derivative(torch.zeros(1)).item() == pytest.approx(1.657187, abs=1e-6)


@given(alpha=st.floats(0.01, 100))
def test_the_sine_bump_has_area_1(alpha):
    x = torch.linspace(-alpha, alpha, 2001, dtype=torch.float64)
    assert torch.trapezoid(Sine(alpha).derivative(x), x).item() == pytest.approx(1, abs=1e-6)


@given(alpha=st.floats(0.05, 0.95), cap=st.floats(1, 100))
def test_power_at_zero_is_the_cap_and_the_cap_acts_where_the_closed_form_says(alpha, cap):
    surrogate = Power(alpha, max_gradient=cap)
    assert surrogate.derivative(torch.zeros(1)).item() == pytest.approx(cap)
    edge = (2 * cap / alpha) ** (1 / (alpha - 1))  # alpha/2 |x|^(alpha-1) = cap
    if edge > 1e-300:
        x = torch.tensor([0.99 * edge, 1.01 * edge], dtype=torch.float64)
        below, above = surrogate.derivative(x)
        assert below == cap
        assert above.item() == pytest.approx(alpha / 2 * (1.01 * edge) ** (alpha - 1))
        assert above < cap


def test_power_counts_what_its_cap_cuts():
    surrogate = Power(0.5, max_gradient=1.0)  # acts where |x| < 1/16
    x = torch.tensor([-2.0, -0.1, -0.0625, -0.05, 0.0, 0.05, 0.1, 0.5]).requires_grad_()
    for run in (1, 2):
        surrogate(x).sum().backward()
        assert (surrogate.capped, surrogate.seen) == (3 * run, 8 * run)
    surrogate.derivative(x.detach())  # for figures: counts nothing
    with torch.no_grad():
        surrogate(x)  # neither does evaluation
    assert (surrogate.capped, surrogate.seen) == (6, 16)
    surrogate.reset_counts()
    assert (surrogate.capped, surrogate.seen) == (0, 0)
    assert surrogate.state_dict()["counts"].tolist() == [0, 0], "part of the state: a resumed run goes on counting"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("b", [10.0**k for k in range(-3, 4)])
def test_dspike_is_stable_over_six_decades_of_temperature(b, dtype):
    x = torch.cat([GRID, torch.tensor([0.0, 0.5, -0.5, 1e30])]).to(dtype)
    g, slope = Dspike(b).primitive(x), Dspike(b).derivative(x)
    assert g.isfinite().all()
    assert slope.isfinite().all()
    assert (slope >= 0).all()
    exact = b * (1 - torch.tanh(b * x.double()) ** 2) / (2 * math.tanh(b / 2)) * (x.abs() <= 0.5)
    torch.testing.assert_close(slope.double(), exact, rtol=1e-5, atol=1e-7 * b)


def test_dspike_limits():
    rectangle = curve(build("rectangle"), GRID).derivative
    torch.testing.assert_close(Dspike(1e-3).derivative(GRID), rectangle, rtol=0, atol=1e-6)
    torch.testing.assert_close(Dspike(1e-3).primitive(GRID), (GRID + 0.5).clamp(0, 1), rtol=0, atol=1e-6)
    away = GRID[GRID.abs() > 0.01]
    torch.testing.assert_close(Dspike(1e3).primitive(away), (away > 0).double(), rtol=0, atol=1e-6)


def test_sine_and_power_limits():
    away = GRID[GRID.abs() > 0.01]
    assert torch.equal(Sine(1e-3).primitive(away), (away > 0).double())  # alpha -> 0: the step
    torch.testing.assert_close(Power(1e-6).primitive(away), (away > 0).double(), rtol=0, atol=1e-5)  # the step
    torch.testing.assert_close(Power(1 - 1e-6).primitive(away), (away / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sine", "power", "dspike"])
def test_not_spiking_emits_the_primitive_with_the_same_derivative(name):
    surrogate, x = build(name, spiking=False), GRID.clone().requires_grad_()
    y = surrogate(x)
    assert torch.equal(y, surrogate.primitive(x))
    (derivative,) = torch.autograd.grad(y.sum(), x)
    cap = getattr(surrogate, "max_gradient", math.inf)
    torch.testing.assert_close(derivative.clamp(max=cap), surrogate.derivative(GRID))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: Sine(alpha=0), "alpha", 0),
        (lambda: Sine(alpha=-1.0), "alpha", -1.0),
        (lambda: Sine(alpha=math.nan), "alpha", math.nan),
        (lambda: Sine(alpha="1"), "alpha", "1"),
        (lambda: Power(alpha=1.0), "alpha", 1.0),
        (lambda: Power(alpha=0.0), "alpha", 0.0),
        (lambda: Power(max_gradient=0), "max_gradient", 0),
        (lambda: Power(max_gradient=math.inf), "max_gradient", math.inf),
        (lambda: Dspike(b=0.0), "b", 0.0),
        (lambda: Dspike(b=True), "b", True),
        (
            lambda: check_arguments("snnexp.surrogate.power.Power", {"alpha": 1.0}),
            "alpha",
            1.0,
        ),  # before torch is imported
    ],
)
def test_ours_refuse(make, name, value):
    with pytest.raises(InvalidValue) as error:
        make()
    assert error.value.name == name
    assert error.value.value is value
    assert error.value.allowed.startswith("a number")


@pytest.mark.parametrize("name", FILES)
def test_every_parameter_of_every_yaml_is_checked(name):
    target = FILES[name]["_target_"]
    parameters = inspect.signature(type(build(name))).parameters.items()
    arguments = [argument for argument, p in parameters if argument != "spiking" and p.kind is not p.VAR_KEYWORD]
    assert set(arguments) == {key for key in FILES[name] if not key.startswith("_")}, "the YAML names every parameter"
    check_arguments(target, FILES[name])
    for argument in filter(lambda argument: is_number(FILES[name][argument]), arguments):
        for value in (-1, -0.5, math.nan, math.inf, "2", None, True):
            with pytest.raises(InvalidValue) as error:
                made(target, {argument: value})
            assert error.value.name == argument


@pytest.mark.parametrize(
    ("surrogate", "name"),
    [
        (library.Sigmoid(alpha=-1.0), "surrogate.alpha"),
        (library.ATan(alpha="2"), "surrogate.alpha"),
        (library.QPseudoSpike(alpha=1.0), "surrogate.alpha"),
        (library.SquarewaveFourierSeries(n=1), "surrogate.n"),
        (library.LeakyKReLU(leak=-0.1), "surrogate.leak"),
        (library.SuperSpike(spiking=False), "surrogate.spiking"),
        (library.Sigmoid(spiking="no"), "surrogate.spiking"),
        (library.PoissonPass(), "surrogate._target_"),
        (library.MultiLevelSpikeCount(4), "surrogate._target_"),
        (torch.nn.ReLU(), "surrogate"),
        (None, "surrogate"),
    ],
)
def test_checked_refuses(surrogate, name):
    with pytest.raises(InvalidValue) as error:
        checked_surrogate(surrogate)
    assert error.value.name == name


def test_asserts_of_spikingjelly_are_met_before_it_raises_them():
    for kind, argument in (("SoftSign", "alpha"), ("PiecewiseLeakyReLU", "w"), ("SquarewaveFourierSeries", "T_period")):
        with pytest.raises(AssertionError):
            getattr(library, kind)(**{argument: -1.0})
        with pytest.raises(InvalidValue):
            check_arguments(LIBRARY + kind, {argument: -1.0})


def test_the_users_own_surrogate_is_taken_as_it_is():
    class Own(library.SurrogateFunctionBase):
        def __init__(self):
            super().__init__(spiking=True, beta=-3)

        spiking_function = staticmethod(lambda x, beta: library.sigmoid.apply(x, -beta))

    own = Own()
    assert checked_surrogate(own) is own
    check_arguments("my_package.Own", {"beta": -3})
