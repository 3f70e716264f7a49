"""Search spaces in Hydra's grammar: from text to Optuna distributions, and from sampled values to overrides."""

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

EACH = ".*"  # of a key of the space: all parameters of a group for which the file of the chosen option has a range
Own = Callable[[str, str], Mapping[str, str]]  # a group and its option: {parameter: range}


@dataclass(frozen=True)
class Dimension:
    """A parameter of the space. `labels` maps each choice of a categorical to its override text; `when` is another
    key and its values for which this parameter is sampled.

    A key with commas stands for several keys whose values belong together; `rows` maps its choices to these values.
    """

    key: str
    distribution: BaseDistribution
    labels: Mapping[Any, str] = field(default_factory=dict)
    when: tuple[str, tuple[str, ...]] | None = None
    rows: Mapping[Any, Sequence[Any]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The keys that it sets, without a leading + or ~."""
        return [_bare(key) for key in _split(self.key)]

    @property
    def name(self) -> str:
        """The name in Optuna. Each branch is a separate parameter: values of different branches are not comparable."""
        if self.when is None:
            return _bare(self.key)
        other, values = self.when
        named = values if len(values) <= 3 else (*values[:2], "...")  # it appears in figures
        return f"{_bare(self.key)} ({other}={','.join(named)})"

    def values(self, value: Any) -> dict[str, str]:
        """Return {key: value as text}."""
        return dict(zip(self.keys, map(str, self.rows[value] if self.rows else [value]), strict=True))

    def texts(self, value: Any) -> list[str]:
        """Return the overrides that set this value."""
        if self.rows:
            return [f"{key}={quoted(part)}" for key, part in zip(_split(self.key), self.rows[value], strict=True)]
        return [f"{self.key}={self.labels[value] if self.labels else quoted(value)}"]


@dataclass(frozen=True)
class Space:
    """The dimensions of a search space, sorted so that a condition comes after the parameter that it depends on.

    `context(key)` is the value of a key that is not sampled: that of an override, or else of the config.
    """

    dimensions: tuple[Dimension, ...]
    context: Callable[[str], str]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Sample the parameters whose conditions hold; return {parameter name: value}."""
        return self.walk(lambda d: trial._suggest(d.name, d.distribution))

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return the overrides that give a job these values."""
        return [text for d in self.dimensions if d.name in params for text in d.texts(params[d.name])]

    def shown(self, params: Mapping[str, Any]) -> str:
        """Return the values as a short text, for the name of a run."""
        return " ".join(f"{_bare(d.key)}={_brief(params[d.name])}" for d in self.dimensions if d.name in params)

    def branches(self) -> Iterator[dict[str, Any]]:
        """Yield sets of values that together cover every branch and every choice of every categorical."""
        for d in self.dimensions:
            other, allowed = d.when or ("", ())
            for value in d.labels or [_lowest(d.distribution)]:
                parents = [o for o in self.dimensions if other in o.keys]
                forced = {d.name: value} | {
                    o.name: v for o in parents for v in o.labels if o.values(v)[other] in allowed
                }
                yield self.walk(lambda o, forced=forced: forced.get(o.name, _lowest(o.distribution)))  # type: ignore[misc]

    def grid(self) -> dict[str, list[Any]]:
        """Return the search space for a GridSampler. Raises UserError for an interval, which has no list of values."""
        return {d.name: _listed(d) for d in self.dimensions}

    def size(self) -> int:
        """Return the number of points. Raises UserError for an interval, which has no list of values."""
        conditions = {d.when[0] for d in self.dimensions if d.when}

        def count(left: Sequence[Dimension], known: Mapping[str, str]) -> int:
            if not left:
                return 1
            d, rest = left[0], left[1:]
            if d.when and not self._holds(d.when, known):
                return count(rest, known)
            values = _listed(d)
            if conditions.isdisjoint(d.keys):
                return len(values) * count(rest, known)
            return sum(count(rest, {**known, **d.values(value)}) for value in values)

        return count(self.dimensions, {})

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield all points. Raises UserError for an interval, which has no list of values."""

        def more(
            left: Sequence[Dimension], known: Mapping[str, str], params: dict[str, Any]
        ) -> Iterator[dict[str, Any]]:
            if not left:
                yield params
                return
            d, rest = left[0], left[1:]
            if d.when and not self._holds(d.when, known):
                yield from more(rest, known, params)
                return
            for value in _listed(d):
                yield from more(rest, {**known, **d.values(value)}, {**params, d.name: value})

        yield from more(self.dimensions, {}, {})

    def described(self) -> dict[str, str]:
        """Return the space as text, for comparison with the space of an existing study."""
        return {d.name: distribution_to_json(d.distribution) for d in self.dimensions}

    def _holds(self, when: tuple[str, tuple[str, ...]], known: Mapping[str, str]) -> bool:
        other, values = when
        return (known[other] if other in known else self.context(other)) in values

    def walk(self, value: Callable[[Dimension], Any]) -> dict[str, Any]:
        """Return {parameter name: value(parameter)} of the parameters whose conditions hold."""
        known: dict[str, str] = {}
        params: dict[str, Any] = {}
        for d in self.dimensions:
            if d.when and not self._holds(d.when, known):
                continue
            params[d.name] = value(d)
            known |= d.values(params[d.name])
        return params


def space(
    given: Mapping[str, Any],
    overrides: Sequence[Override],
    parser: OverridesParser,
    context: Callable[[str], str],
    own: Own,
) -> tuple[Space, list[str]]:
    """Return the space of a sweep's YAML (`given`) and command line (`overrides`), and the overrides of every job.

    The command line has precedence: a range replaces that of the YAML, a plain value removes the key from the space.
    `GROUP.*: own` stands for the ranges that the files of the group's options give (`own`).
    Raises UserError for a range that is malformed or empty, needs the logarithm of 0, or names a value twice.
    """
    ranges: dict[str, Any] = {_bare(str(key)): (str(key), value) for key, value in given.items()}
    fixed: dict[str, str] = {}
    values: dict[str, str] = {}
    for o in overrides:
        key = _bare(o.get_key_element())
        for together in [name for name in ranges if name != key and key in map(_bare, _split(name))]:
            del ranges[together]
        if o.is_sweep_override():
            ranges[key] = (o.get_key_element(), o)
        elif o.is_delete():  # under its own name: the key may be added again
            ranges.pop(key, None)
            fixed[f"~{key}"] = str(o.input_line)
        else:
            ranges.pop(key, None)
            fixed[key] = str(o.input_line)
            values[key] = str(_plain(o.value()))

    def known(key: str) -> str:
        return values[key] if key in values else context(key)

    def options(group: str) -> list[str]:
        """Return the options of a group that are sampled; [] if it is not."""
        sampled = [d for k, v in ranges.values() if group in map(_bare, _split(k)) for d in _dimensions(k, v, parser)]
        return list(dict.fromkeys(d.values(label)[group] for d in sampled for label in d.labels))

    for every in [key for key in ranges if key.endswith(EACH)]:
        if ranges[every][1] != "own":
            raise UserError(f"space: {every}={ranges[every][1]} is not allowed: it must be own")
        group = every.removesuffix(EACH)
        sampled = options(group)
        found = _own_ranges(group, sampled, "" if sampled else known(group), own)
        del ranges[every]
        ranges |= {key: (key, value) for key, value in found.items() if key not in {**ranges, **values}}
    dimensions = _ordered([d for key, value in ranges.values() for d in _dimensions(key, value, parser)])
    return Space(tuple(dimensions), known), list(fixed.values())


def _own_ranges(group: str, options: Sequence[str], now: str, own: Own) -> dict[str, Any]:
    """Return the ranges in the files of these options, as conditions, or else those in the file of the option `now`."""
    if not options:
        return {f"{group}.{name}": text for name, text in own(group, now).items()}
    found: dict[str, dict[str, list[str]]] = {}
    for option in options:
        for name, text in own(group, option).items():
            found.setdefault(f"{group}.{name}", {}).setdefault(text, []).append(option)
    return {key: {group: {",".join(names): text for text, names in texts.items()}} for key, texts in found.items()}


def _ordered(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Sort conditions after their parameters. Raises UserError for a cycle, or a condition that can never hold."""
    left, done = list(dimensions), list[Dimension]()
    while left:
        keys = {key for d in left for key in d.keys}
        free = [d for d in left if d.when is None or d.when[0] not in keys]
        if not free:
            raise UserError(f"space: the conditions of {', '.join(sorted(keys))} depend on each other")
        for d in free:
            others = [o for o in done if d.when and d.when[0] in o.keys]
            if d.when and others and all(o.labels for o in others):
                there = {o.values(label)[d.when[0]] for o in others for label in o.labels}
                named = {v for o in dimensions if o.key == d.key and o.when for v in o.when[1]}
                if not named & there:  # one unreachable branch is allowed; if all are, it is a typo
                    never, known = (", ".join(sorted(values)) for values in (named, there))
                    raise UserError(f"space of {_bare(d.key)}: {d.when[0]} is never {never}; it is one of {known}")
        done += free
        left = [d for d in left if d not in free]
    return done


def _dimensions(key: str, value: Any, parser: OverridesParser) -> Iterator[Dimension]:
    """Yield one parameter or, for {other: {value: range}}, one per branch."""
    if not isinstance(value, Mapping):
        yield _dimension(key, value, parser)
        return
    for other, branches in value.items():
        if not isinstance(branches, Mapping):
            raise UserError(f"space of {_bare(key)}: a condition has the form {{other key: {{its value: range}}}}")
        for values, branch in branches.items():
            names = tuple(part.strip() for part in str(values).split(","))
            yield _dimension(key, branch, parser, when=(str(other), names))


def _dimension(
    key: str, value: Any, parser: OverridesParser, when: tuple[str, tuple[str, ...]] | None = None
) -> Dimension:
    try:
        if len(_split(key)) > 1:
            return _together(key, value, when)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return Dimension(key, *_choice(list(value)), when)
        override = value if isinstance(value, Override) else parser.parse_override(f"{key}={value}")
        if not override.is_sweep_override():
            raise ValueError("it is one value, not a range; give e.g. interval(0.1,1) or choice(1,2)")
        if override.is_choice_sweep():
            return Dimension(key, *_choice(list(override.sweep_iterator())), when)
        return Dimension(key, _numbers(override.value()), {}, when)
    except (ValueError, HydraException) as error:
        text = value.get_value_string() if isinstance(value, Override) else value
        raise UserError(f"space: {_bare(key)}={text} is not allowed: {error}") from error


def _together(key: str, value: Any, when: tuple[str, tuple[str, ...]] | None) -> Dimension:
    """Return the dimension of several keys, whose value is a list with a list of values per choice."""
    names = _split(key)
    rows = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not rows or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise ValueError(f"{len(names)} keys together need a list of lists of {len(names)} values")
    distribution, labels = _choice(rows)
    return Dimension(key, distribution, labels, when, dict(zip(labels, rows, strict=True)))


def _numbers(sweep: Any) -> BaseDistribution:
    """Return the distribution of interval(a,b), int(interval(a,b)) or range(a,b) (without b), also in tag(log, ...)."""
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
        raise ValueError(f"tag {', '.join(sorted(unknown))} is unknown; the only tag is log")
    if log and low <= 0:
        raise ValueError(f"with tag(log, ...) its start must be above 0: there is no logarithm of {low}")
    if not all(math.isfinite(float(bound)) for bound in (low, high)):
        raise ValueError("its bounds must be finite")
    if all(isinstance(bound, int) for bound in (low, high, step or 0)):
        return IntDistribution(int(low), int(high), log, int(step or 1))
    if log and step is not None:
        raise ValueError("tag(log, ...) cannot have steps, and a range of fractions has: use an interval")
    return FloatDistribution(float(low), float(high), log, None if step is None else float(step))


def _choice(values: list[Any]) -> tuple[CategoricalDistribution, dict[Any, str]]:
    """Return a categorical and its labels: the values, or the text of a list or dict, which no storage accepts."""
    plain = [_plain(value) for value in values]
    if not plain:
        raise ValueError("it has no values")
    labels = {}
    for value in plain:
        label = quoted(value) if isinstance(value, list | dict) else value
        if label in labels:  # 1, 1.0 and true are the same key
            raise ValueError(f"{value} is there twice")
        labels[label] = quoted(value)
    return CategoricalDistribution(list(labels)), labels


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
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
    raise UserError(f"a GridSampler needs a list of values for {dimension.name}: give a range or a choice")


def _split(key: str) -> list[str]:
    return [part.strip() for part in key.split(",")]


def _bare(key: str) -> str:
    return key.lstrip("+~")


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
