"""The sentence of finding: the best by validation, and what it can and cannot be told apart from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from snnexp.report.document import Name
from snnexp.report.finding import finding
from snnexp.report.results import Result


def results(surrogate: str, test: Sequence[float], val: float) -> list[Result]:
    metrics = [{"test/accuracy": value, "val/accuracy": val} for value in test]
    return [Result(cast(Any, None), {"surrogate": surrogate, "seed": str(i)}, each) for i, each in enumerate(metrics)]


def said(*found: list[Result]) -> str:
    (paragraph,) = finding([result for group in found for result in group], "Finding.")
    return "".join(word.text if isinstance(word, Name) else str(word) for word in paragraph.words).strip()


SINE, SAME, WORSE = (0.90, 0.92, 0.94), (0.91, 0.91, 0.94), (0.80, 0.83, 0.84)


def test_what_can_and_what_cannot_be_told_apart() -> None:
    assert said(results("sine", SINE, 0.9), results("erf", SAME, 0.8), results("atan", WORSE, 0.7)) == (
        "By validation the best is surrogate=sine: test/accuracy 0.92 (mean of 3 seeds, "
        "95 % interval 0.8703 to 0.9697). In the test it cannot be told apart from surrogate=erf. "
        "In the test it is better than surrogate=atan."
    )


def test_the_best_by_validation_may_be_worse_in_the_test() -> None:
    assert said(results("sine", SINE, 0.7), results("atan", WORSE, 0.9)).endswith("it is worse than surrogate=sine.")


def test_one_seed_says_nothing_of_a_difference() -> None:
    assert said(results("sine", (0.9,), 0.9), results("atan", (0.5,), 0.8)) == (
        "By validation the best is surrogate=sine: test/accuracy 0.9 (one seed). "
        "With fewer than two common seeds nothing can be said of its difference to surrogate=atan."
    )


def test_more_comparisons_need_larger_differences() -> None:
    near = results("erf", (0.88, 0.91, 0.91), 0.8)  # differences 0.02, 0.01, 0.03: t = 3.46 against 4.30
    clear = results("erf", (0.89, 0.90, 0.925), 0.8)  # 0.01, 0.02, 0.015: t = 5.2
    assert "cannot be told apart" in said(results("sine", SINE, 0.9), near)
    assert "better than surrogate=erf" in said(results("sine", SINE, 0.9), clear)
    many = [results(f"other{i}", (0.89, 0.90, 0.925), 0.8) for i in range(3)]
    assert "cannot be told apart" in said(results("sine", SINE, 0.9), *many)


def test_many_settings_are_not_all_named() -> None:
    many = [results(f"s{i}", WORSE, 0.8) for i in range(8)]
    assert said(results("sine", SINE, 0.9), *many).endswith("surrogate=s4, surrogate=s5 and 2 other settings.")


def test_without_a_comparison_nothing_is_said() -> None:
    assert finding(results("sine", SINE, 0.9), "Finding.") == []
    assert finding([], "Finding.") == []


def test_the_interval_of_an_accuracy_ends_at_0_and_1() -> None:
    assert "interval 0 to 1)" in said(results("sine", (0.3, 0.6), 0.9), results("atan", (0.2, 0.3), 0.8))
