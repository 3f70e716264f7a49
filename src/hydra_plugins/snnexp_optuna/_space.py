"""Search spaces in Hydra's own grammar: from text to Optuna's distributions, from sampled values back to overrides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import Trial

from snnexp.config import quoted
from snnexp.errors import UserError


@dataclass(frozen=True)
class Dimension:
    """One parameter of the space. `labels` are an Optuna categorical's choices with the override text of each;
    `when` names another parameter and the values of it for which this one is sampled at all.
    """

    key: str
    distribution: BaseDistribution
    labels: Mapping[Any, str] = field(default_factory=dict)
    when: tuple[str, tuple[str, ...]] | None = None

    @property
    def name(self) -> str:
        """Optuna's name. Ranges of other branches are other parameters: their values cannot be compared."""
        if self.when is None:
            return _bare(self.key)
        other, values = self.when
        named = values if len(values) <= 3 else (*values[:2], "...")  # it stands in figures
        return f"{_bare(self.key)} ({other}={','.join(named)})"

    def text(self, value: Any) -> str:
        return f"{self.key}={self.labels[value] if self.labels else quoted(value)}"


@dataclass(frozen=True)
class Space:
    """The dimensions, in an order in which each condition is known before it is asked for.

    `context(key)` is the value of a key that is not sampled (an override, else the config's own).
    """

    dimensions: tuple[Dimension, ...]
    context: Callable[[str], str]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Sample what applies; {parameter name: value}."""
        return self._walk(lambda d: trial._suggest(d.name, d.distribution))

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides that give a job these values."""
        return [d.text(params[d.name]) for d in self.dimensions if d.name in params]

    def shown(self, params: Mapping[str, Any]) -> str:
        """The values in a few words, as a run's name."""
        return " ".join(f"{_bare(d.key)}={_brief(params[d.name])}" for d in self.dimensions if d.name in params)

    def branches(self) -> Iterator[dict[str, Any]]:
        """Values that between them show every branch, and every choice of every categorical."""
        for d in self.dimensions:
            for value in d.labels or [_lowest(d.distribution)]:
                forced = {d.name: value}
                if d.when and any(_bare(o.key) == d.when[0] for o in self.dimensions):
                    forced |= {
                        o.name: v
                        for o in self.dimensions
                        if _bare(o.key) == d.when[0]
                        for v in [*o.labels]
                        if str(v) in d.when[1]
                    }
                yield self._walk(lambda o, forced=forced: forced.get(o.name, _lowest(o.distribution)))  # type: ignore[misc]

    def grid(self) -> dict[str, list[Any]]:
        """What a GridSampler wants. Raises UserError for an interval, whose values cannot be counted."""
        return {d.name: _listed(d) for d in self.dimensions}

    def described(self) -> dict[str, str]:
        """The space as plain text, to be compared with that of a study."""
        return {d.name: distribution_to_json(d.distribution) for d in self.dimensions}

    def _walk(self, value: Callable[[Dimension], Any]) -> dict[str, Any]:
        known: dict[str, str] = {}
        params: dict[str, Any] = {}
        for d in self.dimensions:
            if d.when:
                other, values = d.when
                if (known[other] if other in known else self.context(other)) not in values:
                    continue
            params[d.name] = value(d)
            known[_bare(d.key)] = str(params[d.name])
        return params


def space(
    given: Mapping[str, Any], overrides: Sequence[Override], parser: OverridesParser, context: Callable[[str], str]
) -> tuple[Space, list[str]]:
    """The space of a sweep's YAML (`given`) and command line (`overrides`), and the overrides that are the same for
    every job. The command line wins: there, a range replaces the YAML's, and a plain value takes a key out of it.

    Raises UserError for a range that is none, is empty, has the logarithm of 0 in it, or names a value twice.
    """
    ranges: dict[str, Any] = {_bare(str(key)): (str(key), value) for key, value in given.items()}
    fixed: dict[str, str] = {}
    values: dict[str, str] = {}
    for o in overrides:
        key = _bare(o.get_key_element())
        if o.is_sweep_override():
            ranges[key] = (o.get_key_element(), o)
        else:
            ranges.pop(key, None)
            fixed[key] = str(o.input_line)
            values[key] = str(_plain(o.value()))

    def known(key: str) -> str:
        return values[key] if key in values else context(key)

    dimensions = _ordered([d for key, value in ranges.values() for d in _dimensions(key, value, parser)])
    if not dimensions:
        raise UserError("this sweep has no search space: give one, e.g. surrogate.alpha='interval(0.5,4)'")
    return Space(tuple(dimensions), known), list(fixed.values())


def _ordered(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Conditions after what they depend on. Raises UserError for a circle, or a value that the other never has."""
    left, done = list(dimensions), list[Dimension]()
    while left:
        keys = {_bare(d.key) for d in left}
        free = [d for d in left if d.when is None or d.when[0] not in keys]
        if not free:
            raise UserError(f"space: the conditions of {', '.join(sorted(keys))} depend on each other")
        for d in free:
            others = [o for o in done if d.when and _bare(o.key) == d.when[0]]
            if others and all(o.labels for o in others) and d.when:  # one branch may never hold, all of them are a typo
                there = {str(label) for o in others for label in o.labels}
                named = {v for o in dimensions if o.key == d.key and o.when for v in o.when[1]}
                if not named & there:
                    raise UserError(
                        f"space of {_bare(d.key)}: {d.when[0]} is never {', '.join(sorted(named))}; it is "
                        f"one of {', '.join(sorted(there))}"
                    )
        done += free
        left = [d for d in left if d not in free]
    return done


def _dimensions(key: str, value: Any, parser: OverridesParser) -> Iterator[Dimension]:
    """One parameter; or, for {other: {value: range}}, one per branch."""
    if not isinstance(value, Mapping):
        yield _dimension(key, value, parser)
        return
    for other, branches in value.items():
        if not isinstance(branches, Mapping):
            raise UserError(f"space of {_bare(key)}: a condition is written {{other key: {{its value: range}}}}")
        for values, branch in branches.items():
            names = tuple(part.strip() for part in str(values).split(","))
            yield _dimension(key, branch, parser, when=(str(other), names))


def _dimension(
    key: str, value: Any, parser: OverridesParser, when: tuple[str, tuple[str, ...]] | None = None
) -> Dimension:
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return Dimension(key, *_choice(list(value)), when)
        override = value if isinstance(value, Override) else parser.parse_override(f"{key}={value}")
        if not override.is_sweep_override():
            raise ValueError("it is one value, not a range; write e.g. interval(0.1,1) or choice(1,2)")
        if override.is_choice_sweep():
            return Dimension(key, *_choice(list(override.sweep_iterator())), when)
        return Dimension(key, _numbers(override.value()), {}, when)
    except (ValueError, HydraException) as error:
        text = value.get_value_string() if isinstance(value, Override) else value
        raise UserError(f"space: {_bare(key)}={text} is not allowed: {error}") from error


def _numbers(sweep: Any) -> BaseDistribution:
    """interval(a,b): floats; int(interval(a,b)), range(a,b): integers, without b; tag(log, ...): by their logarithm."""
    low: Any
    high: Any
    step: Any
    if isinstance(sweep, RangeSweep):
        low, step = sweep.start, sweep.step
        if not step > 0 or low is None or sweep.stop is None or not low < sweep.stop:
            raise ValueError("the range is empty")
        count = math.ceil((sweep.stop - low) / step)
        high = low + (count - 1) * step
    elif isinstance(sweep, IntervalSweep):
        low, high, step = sweep.start, sweep.end, None
        if low is None or high is None or not low < high:
            raise ValueError("the interval is empty: its start must be below its end")
    else:
        raise ValueError("it is neither a choice, nor a range, nor an interval")
    log = "log" in sweep.tags
    if unknown := sweep.tags - {"log"}:
        raise ValueError(f"tag {', '.join(sorted(unknown))} is unknown; there is log")
    if log and low <= 0:
        raise ValueError(f"with tag(log, ...) it must begin above 0: there is no logarithm of {low}")
    if not all(math.isfinite(float(bound)) for bound in (low, high)):
        raise ValueError("its bounds must be finite")
    if all(isinstance(bound, int) for bound in (low, high, step or 0)):
        return IntDistribution(int(low), int(high), log, int(step or 1))
    if log and step is not None:
        raise ValueError("a range of fractions has steps, which tag(log, ...) cannot have: take an interval")
    return FloatDistribution(float(low), float(high), log, None if step is None else float(step))


def _choice(values: list[Any]) -> tuple[CategoricalDistribution, dict[Any, str]]:
    """Optuna's labels are the values themselves, or, for lists, which no storage takes, their text."""
    plain = [_plain(value) for value in values]
    if not plain:
        raise ValueError("there is nothing to choose from")
    labels = {}
    for value in plain:
        label = quoted(value) if isinstance(value, list | dict) else value
        if label in labels:  # 1, 1.0 and true are one key
            raise ValueError(f"{value} is there twice")
        labels[label] = quoted(value)
    return CategoricalDistribution(list(labels)), labels


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _lowest(distribution: BaseDistribution) -> Any:
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low  # type: ignore[attr-defined]


def _listed(dimension: Dimension) -> list[Any]:
    d = dimension.distribution
    if isinstance(d, CategoricalDistribution):
        return list(d.choices)
    if isinstance(d, IntDistribution) or (isinstance(d, FloatDistribution) and d.step is not None):
        step = d.step or 1
        return [d.low + i * step for i in range(round((d.high - d.low) / step) + 1)]
    raise UserError(f"a GridSampler cannot list the values of {dimension.name}: give a range or a choice")


def _bare(key: str) -> str:
    return key.lstrip("+~")


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
