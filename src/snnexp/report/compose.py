"""Compose runs into a document: a section for each experiment, with one for each sweep and each setting run alone."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from snnexp.analysis import seeds
from snnexp.errors import UserError
from snnexp.report.document import Figure, Link, Name, Paragraph, Section, Table, Words, shown
from snnexp.report.finding import finding
from snnexp.report.lab import lab
from snnexp.report.results import Result, accuracy_tables, at_best_epoch, results, seeds_of, what_was_run
from snnexp.tracking import Store, Stored

Block = Paragraph | Table | Figure | Section


@dataclass(frozen=True)
class Source:
    """Access to what runs left: records, artifacts, the UI's address, run directories by run id, a scratch folder.

    `lacking` collects, as text, what cannot be shown because it cannot be read.
    """

    store: Store
    ui: str
    folders: Mapping[str, Link]
    scratch: Path
    lacking: list[str] = field(default_factory=list)

    def link(self, run: Stored) -> str:
        return f"{self.ui}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def places(self, run: Stored) -> list[str | Link]:
        """Return links to the run, as words."""
        words: list[str | Link] = [Link("MLflow", self.link(run))]
        if folder := self.folders.get(run.run_id):
            words += [", ", Link("run directory", folder.href)]
        return words

    def shown(self, run: Stored) -> list[Block]:
        """Return the run's own tables and figures."""
        to = self.scratch / run.run_id
        to.mkdir(exist_ok=True)
        made: list[Block] = []
        for folder, suffix, read in (("tables", ".csv", _table), ("figures", ".png", _figure)):
            try:
                paths = [path for path in self.store.files(run, folder, to) if path.suffix == suffix]
            except UserError as error:
                self.lacking.append(str(error))
                continue
            for path in paths:
                try:
                    made.append(read(path, run))
                except (OSError, ValueError, csv.Error) as error:
                    self.lacking.append(f"{folder}/{path.name} of run {run.run_id}: {error}")
        return made


def compose(name: str, runs: Sequence[Stored], source: Source) -> Section:
    """Return the report on these runs; with a single experiment, its section is the report."""
    names = list(dict.fromkeys(run.experiment for run in runs))
    sections = [_experiment(each, [run for run in runs if run.experiment == each], source) for each in names]
    colophon = Paragraph(
        f"Made on {datetime.now():%Y-%m-%d} by snnexp {version('snnexp')}{_commits(runs)}. "
        "Links to MLflow open while `snnexp task=ui` runs."
    )
    if len(sections) == 1:
        (only,) = sections
        contents: list[str | Link | Name] = []
        for part in (block for block in only.blocks if isinstance(block, Section)):
            contents += [*([" · "] if contents else []), part.link]
        return Section(only.name, only.title, [Paragraph(contents, "Contents."), *only.blocks, colophon])
    texts = lab(name)
    blocks: list[Block] = [*_texts(texts.question, texts.set_up), _overview(sections, runs), *sections, colophon]
    return Section(name, texts.title, blocks)


def _commits(runs: Sequence[Stored]) -> str:
    commits = dict.fromkeys(run.tags["git_commit"][:7] for run in runs if "git_commit" in run.tags)
    return f" from runs of commit {', '.join(commits)}" if commits else ""


def _texts(question: str, set_up: str) -> list[Block]:
    return [Paragraph(text, label) for label, text in (("Question.", question), ("Set-up.", set_up)) if text]


def _overview(sections: Sequence[Section], runs: Sequence[Stored]) -> Table:
    rows: list[Sequence[Words]] = []
    for section in sections:
        found = _single(runs, section.name)
        data = dict.fromkeys(run.tags["dataset"] for run in found if "dataset" in run.tags)
        count = len({seed for run in found for seed in seeds_of(run)})
        rows.append([[section.link], ", ".join(data), str(count), str(len(found))])
    return Table("What was run", ["experiment", "data", "seeds", "runs"], rows)


def _single(runs: Sequence[Stored], experiment: str) -> list[Stored]:
    """Return the finished runs of an experiment that are not sweeps."""
    return [run for run in runs if run.experiment == experiment and run.status == "finished" and not _sweep(run)]


def _sweep(run: Stored) -> bool:
    return run.tags.get("task") == "sweep"


def _experiment(name: str, runs: Sequence[Stored], source: Source) -> Section:
    """Put settings with tables of their own first, because these hold the answer; then sweeps, then other runs."""
    texts, sweeps = lab(name), [run for run in runs if _sweep(run)]
    inside = {sweep.run_id for sweep in sweeps}
    alone = results([run for run in runs if not _sweep(run) and run.parent not in inside])
    whole = sorted(sweeps, key=lambda sweep: (sweep.status == "finished", sweep.start))
    counted = results([run for run in runs if not _sweep(run)])
    kept, done = {result.run.parent for result in counted}, {run.parent for run in runs if run.status == "finished"}
    newest = [sweep for sweep in whole if sweep.run_id in kept or sweep.run_id not in done]  # without those repeated
    groups = [(group, source.shown(group[0].run)) for group in seeds.grouped(alone)]
    telling = [(group, own) for group, own in groups if _has_table(own)]
    others = [(group, own) for group, own in groups if not _has_table(own)]
    reached = [result.run for group, _ in others for result in group]
    blocks: list[Block] = _texts(texts.question, texts.set_up)
    for sweep in newest:
        label = "Finding." if len(newest) == 1 else f"Finding ({sweep.name})."
        children = results([run for run in runs if run.parent == sweep.run_id])
        blocks += finding([replace(c, metrics=at_best_epoch(c.run, source.store)) for c in children], label)
    blocks += what_was_run(counted)
    blocks += accuracy_tables(reached, [], source.store, source.link)
    blocks += [_group(group, own, source) for group, own in telling]
    blocks += [_swept(sweep, [run for run in runs if run.parent == sweep.run_id], source) for sweep in newest]
    blocks += [_group(group, own, source) for group, own in others]
    return Section(name, texts.title, [*blocks, _list(name, runs, {result.run.run_id for result in counted}, source)])


def _has_table(blocks: Sequence[Block]) -> bool:
    return any(isinstance(block, Table) for block in blocks)


def _swept(sweep: Stored, children: Sequence[Stored], source: Source) -> Section:
    """Return a section on a sweep: its own tables and figures, and its runs as a table."""
    states = [run.status for run in children]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    best: list[str | Link | Name] = ["; best by validation: ", Name(sweep.tags["best"])] if "best" in sweep.tags else []
    objective = [metric.removeprefix("best/") for metric in sweep.metrics if metric.startswith("best/")]
    told = Paragraph([f"{len(children)} runs (", Name(counts), ")", *best, ". ", *source.places(sweep)])
    tables = accuracy_tables(children, objective, source.store, source.link)
    return Section(sweep.run_id, f"Sweep: {sweep.name}", [told, *tables, *source.shown(sweep)])


def _group(group: Sequence[Result], own: Sequence[Block], source: Source) -> Section:
    """Return a section on runs that differ only in their seed, with `own`, the tables and figures of the first."""
    first, *others = (result.run for result in group)
    title = f"{first.tags.get('task', 'run').replace('_', ' ')}: {re.sub(r'-s[0-9]+$', '', first.name)}"
    words: list[str | Link | Name] = ["Seed ", Name(group[0].seed), ": ", *source.places(first)]
    for result, run in zip(group[1:], others, strict=True):
        words += ["; seed ", Name(result.seed), ": ", *source.places(run)]
    return Section(first.run_id, title, [Paragraph(words), *own])


def _list(name: str, runs: Sequence[Stored], counted: set[str], source: Source) -> Section:
    """Return a section that lists every run with its status, including those that do not count."""
    rows: list[Sequence[Words]] = []
    for run in runs:
        repeated = run.status == "finished" and not _sweep(run) and run.run_id not in counted
        folder = source.folders.get(run.run_id)
        seed = "" if _sweep(run) else run.params.get(seeds.SEED, "")
        status = run.status + (", repeated later" if repeated else "")
        times = f"{datetime.fromtimestamp(run.start):%Y-%m-%d %H:%M}", _took(run)
        rows.append([[Link(run.name, source.link(run))], seed, status, *times, [folder] if folder else ""])
    columns = ["run (in MLflow)", "seed", "status", "started", "took", "folder"]
    return Section(f"{name}-runs", "Runs", [Table(f"All {len(runs)} runs", columns, rows)])


def _took(run: Stored) -> str:
    if run.end is None:
        return ""
    seconds = run.end - run.start
    size, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    return f"{seconds / size:.0f} {unit}"


def _figure(path: Path, run: Stored) -> Figure:
    """Return the figure in a file. Raises ValueError unless it is a PNG."""
    png = path.read_bytes()
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise ValueError("it is not a PNG image")
    return Figure(f"{run.run_id[:8]}-{path.stem}", path.stem.replace("_", " "), png)


def _table(path: Path, run: Stored) -> Table:
    """Return the table in a file. Raises ValueError if it has no header, or is not text."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restval="")
        if not (columns := reader.fieldnames):
            raise ValueError("it has no header")
        return Table(path.stem.replace("_", " "), columns, [[shown(row[name]) for name in columns] for row in reader])
