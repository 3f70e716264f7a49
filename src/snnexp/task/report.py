"""`task=report`: one page, as HTML and as Markdown, from what was logged."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from snnexp.config import listed
from snnexp.errors import InvalidValue, UserError, integer
from snnexp.journal import JOURNAL, Journal
from snnexp.report import html, markdown
from snnexp.report.compose import Source, compose
from snnexp.report.document import Figure, Link, Section
from snnexp.session import Session
from snnexp.tracking import PARENT_TAG, Store, Stored
from snnexp.training import Metrics


def report(
    session: Session,
    experiments: str | Sequence[str] | None,
    sweep: str | None,
    filter: str | None,
    name: str | None,
    port: int,
) -> Metrics:
    """Write `<outputs_dir>/reports/<name>.html` and `.md` on the runs of `experiments` (None: of all) that meet
    `filter`, in MLflow's search syntax, or belong to the `sweep` of that run id. Links to runs lead to `port` of this
    machine, or to the server that has them.

    Raises UserError if nothing was logged, an experiment or a run does not exist, or no run is left.
    """
    store = Store(session.tracker, "task=report")
    names = _experiments(store, listed(experiments))
    try:
        integer("port", port, at_least=1)
        runs = _chosen(store, names, sweep, filter)
    except InvalidValue as error:
        raise error.told(f"task.{error.name}") from error
    of = {run.experiment for run in runs}
    title = str(name or sweep or (of.pop() if len(of) == 1 else "report"))
    if not re.fullmatch(r"[\w.+-]+", title):
        raise UserError(f"task.name={title} is not allowed: it must be a file name without folder or suffix")
    folder = Path(session.config["outputs_dir"]) / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    ui = store.uri if store.uri.startswith("http") else f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as scratch:
        document = compose(title, runs, Source(store, ui, _folders(folder.parent), Path(scratch)))
    (folder / f"{title}.html").write_text(html.written(document))
    (folder / f"{title}.md").write_text(markdown.written(document, title))
    for figure in _figures(document):
        (folder / title).mkdir(exist_ok=True)
        (folder / title / f"{figure.name}.png").write_bytes(figure.png)
    print(f"report on {len(runs)} runs: {folder / title}.html\n  as Markdown: {folder / title}.md")
    return {"runs": float(len(runs))}


def _experiments(store: Store, asked: Sequence[str]) -> list[str]:
    for name in asked:
        if name not in store.experiments:
            raise UserError(
                f"task.experiments: there is no experiment {name}; there are {', '.join(sorted(store.experiments))}"
            )
    return list(asked or store.experiments)


def _chosen(store: Store, names: Sequence[str], sweep: str | None, filter: str | None) -> list[Stored]:
    """The runs, oldest first."""
    runs = store.runs(names, filter or "")
    if sweep:
        runs = [run for run in runs if sweep in (run.run_id, run.tags.get(PARENT_TAG))]
    if not runs:
        asked = [f"task.sweep={sweep}"] * bool(sweep) + [f"task.filter={filter}"] * bool(filter)
        raise UserError(f"no run to report on in {', '.join(names)}{': ' * bool(asked)}{', '.join(asked)}")
    return [run for name in names for run in runs if run.experiment == name]


def _folders(outputs: Path) -> dict[str, Link]:
    """{run id: its run directory} of all runs under `outputs`, as seen from a report."""
    journals = [Journal(path.parent) for path in outputs.rglob(JOURNAL)]
    return {
        run_id: Link(path := journal.folder.relative_to(outputs).as_posix(), f"../{path}")
        for journal in journals
        if (run_id := journal.state.get("run_id"))
    }


def _figures(section: Section) -> list[Figure]:
    return [
        figure
        for block in section.blocks
        for figure in (_figures(block) if isinstance(block, Section) else [block] if isinstance(block, Figure) else [])
    ]
