"""Search spaces: each form of the grammar to its distribution, and every value back into a config as it was."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution as C
from optuna.distributions import FloatDistribution as F
from optuna.distributions import IntDistribution as I

from hydra_plugins.snnexp_optuna._space import Space, quoted, space
from snnexp.errors import UserError

PARSER = OverridesParser.create()


def made(yaml: dict[str, Any], *overrides: str, **context: str) -> Space:
    return space(yaml, PARSER.parse_overrides(list(overrides)), PARSER, lambda key: context[key], lambda *_: {})[0]


FORMS = [
    ("interval(1,8)", F(1.0, 8.0)),
    ("interval(0.5,2)", F(0.5, 2.0)),
    ("int(interval(1,8))", I(1, 8)),
    ("tag(log,interval(1e-4,1))", F(1e-4, 1.0, log=True)),
    ("tag(log,int(interval(1,100)))", I(1, 100, log=True)),
    ("range(1,9)", I(1, 8)),
    ("range(0,10,5)", I(0, 5, step=5)),
    ("range(0,1,0.25)", F(0.0, 0.75, step=0.25)),
    ("choice(a,b)", C(["a", "b"])),
    ("a,b", C(["a", "b"])),
    ("2.5,7,x", C([2.5, 7, "x"])),
    ("'1',1", C(["1", 1])),
    ("'a,b',c", C(["a,b", "c"])),
    ("[1,2],[3]", C(["[1,2]", "[3]"])),
    ("{a:1,b:[x]},{}", C(["{a:1,b:['x']}", "{}"])),
]


@pytest.mark.parametrize(("text", "distribution"), FORMS, ids=[form[0] for form in FORMS])
@pytest.mark.parametrize("where", ["yaml", "command line"])
def test_each_form_is_a_distribution(text: str, distribution: Any, where: str) -> None:
    searched = made({"k": text}) if where == "yaml" else made({}, f"k={text}")
    (dimension,) = searched.dimensions
    assert dimension.distribution == distribution
    assert type(dimension.distribution) is type(distribution)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("interval(2,2)", "empty"),
        ("interval(3,1)", "empty"),
        ("int(interval(1.2,1.8))", "empty"),
        ("range(5,5)", "empty"),
        ("range(5,1)", "empty"),
        ("tag(log,interval(0,1))", "logarithm of 0"),
        ("tag(log,interval(-1,1))", "logarithm of -1"),
        ("choice(a,b,a)", "a is there twice"),
        ("1,2,1", "1 is there twice"),
        ("tag(lgo,interval(1,2))", "lgo"),
        ("0.5", "one value"),
        ("interval(1", "interval"),
    ],
)
def test_what_cannot_be_sampled_is_refused(text: str, named: str) -> None:
    with pytest.raises(UserError) as refused:
        made({"group.k": text})
    assert named in str(refused.value)
    assert "group.k" in str(refused.value)


def test_conditions_choose_the_branch() -> None:
    yaml = {
        "surrogate.alpha": {"surrogate": {"sine, atan": "interval(1,2)", "power": "interval(0.1,0.9)"}},
        "surrogate": "choice(sine,power,dspike)",
    }
    searched = made(yaml)
    assert [d.name for d in searched.dimensions] == [
        "surrogate",
        "surrogate.alpha (surrogate=sine,atan)",
        "surrogate.alpha (surrogate=power)",
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        params = searched.suggest(trial)
        overrides = searched.overrides(params)
        surrogate = params["surrogate"]
        seen.add(surrogate)
        alphas = [float(o.split("=")[1]) for o in overrides if o.startswith("surrogate.alpha")]
        assert len(alphas) == (surrogate != "dspike")
        assert all((1 <= a <= 2) if surrogate == "sine" else (0.1 <= a <= 0.9) for a in alphas)
        study.tell(trial, 0.0)
    assert seen == {"sine", "power", "dspike"}
    fixed = made(yaml, "surrogate=power")
    assert list(fixed.suggest(study.ask())) == ["surrogate.alpha (surrogate=power)"]
    from_config = made({"surrogate.alpha": yaml["surrogate.alpha"]}, surrogate="atan")
    assert list(from_config.suggest(study.ask())) == ["surrogate.alpha (surrogate=sine,atan)"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])).filter(lambda s: s != "???"),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@given(values)
def test_any_value_survives_the_way_from_the_study_to_the_config(value: Any) -> None:
    override = PARSER.parse_override(f"k={quoted(value)}")
    assert not override.is_sweep_override()
    config = OmegaConf.create({"k": None})
    OmegaConf.update(config, "k", override.value())
    back = OmegaConf.to_container(config, resolve=True)["k"]  # type: ignore[index, call-overload]
    assert back == value
    assert type(back) is type(value)


text = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda s: s != "???")


@given(st.lists(text, min_size=1, unique=True))
def test_a_choice_of_any_strings_is_sampled_as_these_strings(strings: list[str]) -> None:
    searched = made({"k": strings})
    for label in strings:
        (text,) = searched.overrides({"k": label})
        parsed = PARSER.parse_override(text)
        config = OmegaConf.create({"k": parsed.value()})
        assert config.k == label


def test_a_float_keeps_every_bit() -> None:
    for value in (0.1 + 0.2, 1e-310, math.pi, 1e300, -0.0):
        assert repr(PARSER.parse_override(f"k={quoted(value)}").value()) == repr(value)
