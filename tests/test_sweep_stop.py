"""When a study ends before it has all its trials, what its progress says, and pruning by several objectives."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from conftest import Done  # before plugins, which Hydra finds in it
from hydra_plugins.snnexp_optuna import _report
from hydra_plugins.snnexp_optuna._progress import of_study
from hydra_plugins.snnexp_optuna._stop import Stop
from snnexp.sweep.progress import Progress, State, duration
from snnexp.trial.dominated import Dominated, dominates
from test_sweeps import GRID, INTERVAL, TINY, app, calls, states, study

UP, DOWN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
BEGAN = datetime(2026, 1, 1)


def trials(*values: float | list[float] | TrialState, hours: float = 1.0) -> list[FrozenTrial]:
    """Trials that ended one after the other; a state in place of a value is that of a trial without one."""
    made = []
    for number, value in enumerate(values):
        state = value if isinstance(value, TrialState) else TrialState.COMPLETE
        given = None if isinstance(value, TrialState) else value if isinstance(value, list) else [value]
        trial = create_trial(state=state, values=given)
        trial.number, trial.datetime_start = number, BEGAN + number * timedelta(hours=hours)
        trial.datetime_complete = BEGAN + (number + 1) * timedelta(hours=hours)
        made.append(trial)
    return made


def test_a_target_is_reached_in_the_direction_of_the_objective() -> None:
    up, down = Stop([0.9], None, None, [UP]), Stop([0.1], None, None, [DOWN])
    assert up.reason(trials(0.5, 0.8)) is None
    assert up.reason(trials(0.5, 0.9)) == "trial 1 has reached hydra.sweeper.target=0.9 with 0.9"
    assert down.reason(trials(0.5)) is None
    assert down.reason(trials(0.5, 0.05)) == "trial 1 has reached hydra.sweeper.target=0.1 with 0.05"
    both = Stop([0.9, None], None, None, [UP, DOWN])
    assert both.reason(trials([0.8, 1.0])) is None
    assert both.reason(trials([0.95, 7.0])) == "trial 0 has reached hydra.sweeper.target=[0.9,null] with 0.95, 7"


def test_patience_counts_the_trials_after_the_best_one() -> None:
    stop, pruned, failed = Stop(None, 2, None, [UP]), TrialState.PRUNED, TrialState.FAIL
    assert stop.reason(trials(pruned, pruned, 0.1, 0.2, 0.15)) is None, "before the first one, nothing is better"
    assert stop.reason(trials(0.2, failed, 0.2)) is None, "a failed trial says nothing of the space"
    said = "none of 2 trials was better than trial 1 (hydra.sweeper.patience=2)"
    assert stop.reason(trials(0.1, 0.2, 0.2, pruned)) == said
    front = Stop(None, 2, None, [UP, DOWN])
    assert front.reason(trials([1.0, 1.0], [0.5, 2.0], [0.9, 0.5])) is None, "a new point of the Pareto front"
    assert front.reason(trials([1.0, 1.0], [0.5, 2.0], [0.9, 1.5])) is not None


def test_a_budget_of_hours_is_that_of_all_trials_together() -> None:
    stop = Stop(None, None, 3.0, [UP])
    assert stop.reason(trials(0.1, 0.2, hours=1.4)) is None
    assert stop.reason(trials(0.1, TrialState.PRUNED, hours=1.5)) is not None
    assert stop.reason(trials(0.1, TrialState.FAIL, hours=1.5)) is None
    (running,) = trials(TrialState.RUNNING)
    running.datetime_start, running.datetime_complete = datetime.now() - timedelta(hours=4), None
    assert stop.reason([running]) == "the trials have taken 4 hours together (hydra.sweeper.hours=3)"


@pytest.mark.parametrize(
    ("arguments", "ran", "words"),
    [
        (["x=range(0,5)", "hydra.sweeper.target=-0.5"], None, "has reached hydra.sweeper.target=-0.5 with 0"),
        (["x=choice(2,1,3,0)", "kind=plain,other", "hydra.sweeper.patience=2"], None, "none of 2 trials was better"),
        (["x=range(0,5)", "hydra.sweeper.hours=1e-9"], 1, "(hydra.sweeper.hours=1e-09)"),
    ],
)
def test_a_study_that_has_what_it_wanted_ends_and_stays_ended(
    tmp_path: Path, arguments: list[str], ran: int | None, words: str
) -> None:
    for _ in range(2):  # the second time, nothing is run
        done = app(tmp_path, *arguments, "hydra.sweeper.n_trials=100", GRID)
        found = study(tmp_path).trials
        ran = ran or len(found)
        assert states(found) == {"COMPLETE": ran}
        assert ran < 5
        assert len(calls(tmp_path)) == ran
        assert words in done.out
        assert "ended early: " in done.out


def state(found: list[FrozenTrial], **more: Any) -> State:
    return of_study(optuna.create_study(**more), found, lambda params: f"x={params['x']}" if params else "")


def progress(found: list[FrozenTrial], wanted: int, console: Console | None = None, **more: Any) -> Progress:
    made = Progress(wanted, "trials", console)
    made.update(state(found, **more))
    return made


def test_progress_counts_names_the_best_and_says_what_is_left() -> None:
    assert progress([], 4, direction="maximize").line == "0 of 4 trials"
    found = trials(0.1, 0.3, TrialState.PRUNED, TrialState.FAIL, hours=0.5)
    found[1].params, found[3].user_attrs = {"x": 7}, {"replaced": True}
    said = "3 of 8 trials (1 pruned, 1 failed); best 0.3: x=7 (trial 1); about 2 h 30 min left"
    assert progress(found, 8, direction="maximize").line == said
    assert progress(found, 8, direction="minimize").line.split("; ")[1] == "best 0.1:  (trial 0)"
    assert progress(found[:2], 2, direction="maximize").line == "2 of 2 trials; best 0.3: x=7 (trial 1)"
    assert [duration(s) for s in (0.4, 75, 18600)] == ["0 s", "1 min 15 s", "5 h 10 min"]


def test_simultaneous_trials_share_the_time_that_is_left() -> None:
    found = trials(0.1, TrialState.RUNNING, TrialState.RUNNING, hours=1.0)
    for trial in found[1:]:
        trial.datetime_start, trial.datetime_complete = datetime.now() - timedelta(minutes=30), None
    # two half-done trials, and four more of an hour: 5 hours of two at a time
    assert progress(found, 7, direction="maximize").line.endswith(
        "(2 running); best 0.1:  (trial 0); about 2 h 30 min left"
    )


def test_on_a_terminal_the_line_renews_itself_below_other_output() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    shown = progress(trials(0.1), 3, console, direction="maximize")
    with shown:
        shown.update(state(trials(0.1, 0.2), direction="maximize"))
        console.print("something else")
    first, second = "1 of 3 trials; best 0.1:  (trial 0); about 2 h 0 min left", "2 of 3 trials; best 0.2:  (trial 1)"
    text = screen.getvalue()
    assert text.index(first) < text.index(second) < text.index("something else\n")
    assert "\x1b[2K" in text[text.index(first) : text.index(second)], "the old line is erased"
    assert text.count(second) >= 2, "it is drawn again below"
    assert text.endswith("\x1b[2K"), "nothing is left of it"


def test_where_there_is_no_terminal_each_trial_has_its_lines(tmp_path: Path) -> None:
    grid = "hydra.sweeper.sampler={_target_:optuna.samplers.BruteForceSampler,seed:0}"
    done = app(tmp_path, "x=choice(1,2)", "y=choice(0,1,2)", "hydra.sweeper.n_trials=100", grid)
    lines = re.findall(r"\d of 6 trials.*", done.out)
    assert [line[0] for line in lines] == ["1", "2", "3", "4", "5", "6"], "a brute-force study knows its end"
    assert re.fullmatch(r"6 of 6 trials; best 0: x=2 y=0 \(trial \d\)", lines[-1])
    assert "\r" not in done.out + done.err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("patience=0", "hydra.sweeper.patience=0 is not allowed: it must be an integer >= 1"),
        ("hours=-1", "hydra.sweeper.hours=-1.0 is not allowed: it must be a number of hours > 0, or null"),
        ("target=high", "hydra.sweeper.target='high' is not allowed: it must be a value of the objective"),
        ("target=[1,2]", "hydra.sweeper.target=[1,2] is not allowed: it must be a value for each of the 1 objectives"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, setting: str, words: str) -> None:
    done = app(tmp_path, INTERVAL, "hydra.sweeper.n_trials=2", f"hydra.sweeper.{setting}", check=False)
    assert done.code == 1
    assert words in done.err
    assert not calls(tmp_path)


def test_a_point_dominates_if_it_is_better_somewhere_and_worse_nowhere() -> None:
    directions = [UP, DOWN]
    assert dominates([2, 1], [1, 1], directions)
    assert dominates([2, 0], [1, 1], directions)
    assert not dominates([1, 1], [1, 1], directions)
    assert not dominates([2, 2], [1, 1], directions)
    assert dominates([1, 1], [math.nan, 1], directions)


def test_a_trial_that_enough_others_dominate_at_the_same_epoch_is_pruned() -> None:
    made = optuna.create_study(directions=["maximize", "minimize"])
    for values in ([0.5, 10.0], [0.6, 9.0], [0.9, 99.0]):
        attrs = {"epoch 1": values, "epoch 2": [values[0] / 10, values[1]]}
        made.add_trial(create_trial(values=values, user_attrs=attrs))

    def pruned(by: int, *epochs: list[float], warmup: int = 0) -> bool:
        trial = create_trial(
            state=TrialState.RUNNING, user_attrs={f"epoch {n}": values for n, values in enumerate(epochs, 1)}
        )
        trial.number = 3
        return Dominated(by, warmup).prune(made, trial)

    assert pruned(2, [0.4, 11.0])
    assert not pruned(3, [0.4, 11.0]), "the third has more spikes"
    assert not pruned(1, [0.4, 8.0])
    assert not pruned(1, [0.4, 11.0], [0.4, 11.0]), "only the same epoch counts"
    assert not pruned(1, [0.4, 11.0], warmup=1)
    assert not pruned(1), "nothing was reported"


def test_several_objectives_prune(tmp_path: Path) -> None:
    done = app(
        tmp_path,
        "x=range(2,6)",
        "epochs=3",
        "objective=[val/value,val/other]",
        "hydra.sweeper.direction=[maximize,minimize]",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.pruner={_target_:snnexp.trial.dominated.Dominated,by:1,warmup:1}",
        GRID.replace("seed:0", "seed:1"),
    )
    found = study(tmp_path).trials
    tried = [t.params["x"] for t in found]  # a smaller x is better in both
    worse = [any(other < x for other in tried[:i]) for i, x in enumerate(tried)]
    assert [t.state.name for t in found] == ["PRUNED" if is_worse else "COMPLETE" for is_worse in worse]
    assert any(worse)
    assert all(("epoch 3" in t.user_attrs) is not is_worse for t, is_worse in zip(found, worse, strict=True))
    assert "pruned after 2 epochs" in done.out


def test_a_pruner_of_one_objective_is_refused_for_several(tmp_path: Path) -> None:
    several = ("objective=[val/value,val/other]", "hydra.sweeper.direction=[maximize,minimize]")
    median = "hydra.sweeper.pruner={_target_:optuna.pruners.MedianPruner}"
    done = app(tmp_path, INTERVAL, *several, median, "hydra.sweeper.n_trials=2", check=False)
    assert done.code == 1
    assert "hydra.sweeper.pruner=MedianPruner is not allowed" in done.err
    assert "{_target_:snnexp.trial.dominated.Dominated,by:3}" in done.err


def test_spikes_are_known_after_each_epoch_if_a_pruner_compares_them(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    done = snnexp(
        "-m",
        *TINY,
        "trainer.epochs=2",
        "tracking=none",
        "objective=[val/accuracy,val/spikes_per_sample]",
        "hydra.sweeper.direction=[maximize,minimize]",
        "neuron.threshold=choice(0.5,1.0)",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.pruner={_target_:snnexp.trial.dominated.Dominated,by:9}",
        GRID,
    )
    assert done.code == 0, done.err
    for trial in study(done.outputs.parent).trials:
        epochs = [trial.user_attrs["epoch 1"], trial.user_attrs["epoch 2"]]
        assert trial.values in epochs, "the values of a trial are those of its best epoch"
