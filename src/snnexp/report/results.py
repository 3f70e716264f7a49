"""Runs as results: what distinguishes them, which of them count, and tables of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from snnexp.analysis import seeds
from snnexp.analysis.seeds import SEED
from snnexp.config import NOT_THE_EXPERIMENT, TAGS, is_place
from snnexp.report.document import Link, Table, Words, shown
from snnexp.tracking import Store, Stored
from snnexp.training import METRICS as BY_EPOCH

METRICS = ("val/accuracy", "test/accuracy", "test/spikes_per_sample")
ANN, AT_T = "test/ann_accuracy", {"before calibration": "test/plain_accuracy", "SNN": "test/snn_accuracy"}


@dataclass(frozen=True)
class Result:
    """A finished run: what distinguishes it from those it is shown with (and its seed), and its final metrics."""

    run: Stored
    varied: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def seed(self) -> str:
        return self.varied[SEED]


def results(runs: Sequence[Stored]) -> list[Result]:
    """Return the finished runs; of runs repeated with the same seed, the newest."""
    finished = [run for run in runs if run.status == "finished"]
    found = [Result(run, varied, run.metrics) for run, varied in zip(finished, told_apart(finished), strict=True)]
    return list({tuple(result.varied.items()): result for result in found}.values())


def at_best_epoch(run: Stored, store: Store) -> dict[str, float]:
    """Return the run's metrics, with validation metrics of the tested (best) epoch instead of the last."""
    metrics = dict(run.metrics)
    if "best_epoch" in metrics:
        curves = {name: store.curve(run, name) for name in BY_EPOCH if name in metrics}
        metrics |= {name: c[epoch] for name, c in curves.items() if (epoch := int(metrics["best_epoch"])) in c}
    return metrics


def told_apart(runs: Sequence[Stored]) -> list[dict[str, str]]:
    """Return for each run what distinguishes it: its seed, the options that differ, and the keys that differ between
    runs with the same options. (Keys that come with an option, such as a surrogate's own alpha, are left out.)"""
    if not runs:
        return []
    chosen = {tag: of_all for tag in TAGS if len(set(of_all := _column(tag, [run.tags for run in runs]))) > 1}
    every = {key: _column(key, [run.params for run in runs]) for key in _keys(runs)}
    for key, of_all in every.items():  # options of groups without a tag
        if key.endswith("._target_") and _adds(of_all, chosen):
            chosen[key.removesuffix("._target_")] = [target.split(".")[-1] for target in of_all]
    options = dict(chosen)
    for key, of_all in every.items():
        if _adds(of_all, options) and of_all not in chosen.values():
            chosen[key] = of_all
    chosen[SEED] = _column(SEED, [run.params for run in runs])
    return [{key: of_all[i] for key, of_all in chosen.items()} for i in range(len(runs))]


def _keys(runs: Sequence[Stored]) -> list[str]:
    """Return the parameters that determine a result, except seeds; those near the root come first."""
    keys = {key for run in runs for key in run.params}
    own = [key for key in keys if key.split(".")[0] not in NOT_THE_EXPERIMENT and key.split(".")[-1] != SEED]
    kept = [key for key in own if not all(is_place(key, run.params) for run in runs)]
    return sorted(kept, key=lambda key: (key.count("."), key))


def _column(key: str, of_all: Sequence[Mapping[str, str]]) -> list[str]:
    return [values.get(key, "") for values in of_all]


def _adds(column: Sequence[str], known: Mapping[str, Sequence[str]]) -> bool:
    """Return whether the column distinguishes runs that the known columns do not."""
    before = list(zip(*known.values(), strict=True)) or [()] * len(column)
    return len(set(zip(before, column, strict=True))) > len(set(before))


def by_setting(found: Sequence[Result], metrics: Sequence[str], caption: str, link: Callable[[Stored], str]) -> Table:
    """Return a row for each setting, the best by the first metric first, with a link to the run of each seed."""
    rows = seeds.table(found, metrics)
    columns = seeds.columns(rows)
    members = {tuple(seeds.setting(group[0]).values()): group for group in seeds.grouped(found)}
    settings = list(seeds.setting(found[0]))
    cells: list[list[Words]] = []
    for row in rows:
        runs = _links(members[tuple(row[key] for key in settings)], link)
        cells.append([*(shown(seeds.cell(row, key)) for key in columns), runs])
    return Table(caption, ["seeds" if column == "n" else column for column in [*columns, "runs, by seed"]], cells)


def _links(members: Sequence[Result], link: Callable[[Stored], str]) -> Words:
    words: list[str | Link] = []
    for member in members:
        words += [*([", "] if words else []), Link(member.seed, link(member.run))]
    return words


def accuracy_tables(
    runs: Sequence[Stored], objective: Sequence[str], store: Store, link: Callable[[Stored], str]
) -> list[Table]:
    """Return tables of what these runs reached: final accuracies and, for converted networks, those against T."""
    spread = "mean ± standard deviation over the seeds"
    trained = results([run for run in runs if ANN not in run.metrics])
    trained = [replace(result, metrics=at_best_epoch(result.run, store)) for result in trained]
    metrics = [m for m in dict.fromkeys([*objective, *METRICS]) if any(m in result.metrics for result in trained)]
    tables = []
    if metrics:
        tables.append(by_setting(trained, metrics, f"What the runs reached: {spread}", link))
    if converted := _against_t(results([run for run in runs if ANN in run.metrics]), store):
        at = sorted({name for network in converted for name in network.metrics} - {"ANN"}, key=lambda t: int(t[4:]))
        tables.append(by_setting(converted, ["ANN", *at], f"Test accuracy after T time steps: {spread}", link))
    return tables


def _against_t(found: Sequence[Result], store: Store) -> list[Result]:
    """Return a result for each tested network, whose metrics are the accuracies of the ANN and after T steps."""
    networks = {network: metric for network, metric in AT_T.items() if any(metric in r.metrics for r in found)}
    tested = []
    for result in found:
        for network in (network for network, metric in networks.items() if metric in result.metrics):
            curve = {f"T = {t}": value for t, value in store.curve(result.run, networks[network]).items()}
            named = {"network": network} if len(networks) > 1 else {}
            tested.append(Result(result.run, {**result.varied, **named}, {"ANN": result.metrics[ANN], **curve}))
    return tested


def seeds_of(run: Stored) -> list[str]:
    """Return the run's seed, or the several seeds of one run (`task.seeds`)."""
    return re.findall(r"\d+", run.params.get("task.seeds", "")) or [run.params.get(SEED, "")]


def what_was_run(found: Sequence[Result]) -> list[Table]:
    """Return a table of tasks, data and networks, with the seeds and the number of runs of each."""
    rows: dict[tuple[str, ...], list[Stored]] = {}
    for result in found:
        task, model, neuron = (result.run.tags.get(group, "") for group in ("task", "model", "neuron"))
        row = task, _data(result.run), model, neuron, result.run.params.get("timesteps", "")
        rows.setdefault(row, []).append(result.run)
    cells = []
    for told, runs in rows.items():
        used = sorted({seed for run in runs for seed in seeds_of(run)}, key=_numerically)
        cells.append([*told, ", ".join(used), str(len(runs))])
    return [Table("What was run", ["task", "data", "model", "neuron", "T", "seeds", "runs"], cells)] if cells else []


def _data(run: Stored) -> str:
    samples = {split: run.params.get(f"dataset.{split}_samples", "None") for split in ("train", "test")}
    limits = [f"{count} {split}" for split, count in samples.items() if count != "None"]
    return run.tags.get("dataset", "") + (f" (the first {', '.join(limits)})" if limits else "")


def _numerically(text: str) -> tuple[int, str]:
    return (int(text) if text.isdigit() else 0, text)
