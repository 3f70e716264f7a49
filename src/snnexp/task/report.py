"""`task=report`: write one page about the logged runs, as HTML and as Markdown."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from snnexp.config import listed
from snnexp.errors import UserError, require, told
from snnexp.files import replace
from snnexp.journal import JOURNAL, Journal
from snnexp.record import Record
from snnexp.report import html, markdown
from snnexp.report.compose import Source, compose
from snnexp.report.document import Figure, Link, Section
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.task.ui import checked_port
from snnexp.tracking import Store, Stored
from snnexp.training import Metrics

NAME = r"[\w.+-]+"  # of a file


class Report(Task):
    """Write `<outputs_dir>/reports/<name>.html` and `.md` about the runs of `experiments` (None: of all). `filter`, in
    MLflow's search syntax, and `sweep`, the run id of a sweep, restrict the runs. Links to runs lead to the MLflow UI
    on `port` of this machine, or to the server that has the runs. Raises InvalidValue.

    `run` raises UserError if nothing was logged, an experiment or a run does not exist, or no run is left; also, after
    writing the report without it, if something of a run cannot be read.
    """

    recorded = False

    def __init__(
        self,
        experiments: str | Sequence[str] | None = None,
        sweep: str | None = None,
        filter: str | None = None,
        name: str | None = None,
        port: int = 5000,
    ) -> None:
        self.experiments, self.sweep, self.filter = listed(experiments), sweep, filter
        named = name is None or re.fullmatch(NAME, str(name)) is not None
        require(named, "name", name, "a file name without folder or suffix")
        self.name, self.port = name, checked_port(port)

    def run(self, session: Session, record: Record) -> Metrics:
        store = Store(session.tracker, "task=report")
        names = _experiments(store, self.experiments)
        with told("task."):
            runs = _chosen(store, names, self.sweep, self.filter)
        of = {run.experiment for run in runs}
        title = str(self.name or self.sweep or (of.pop() if len(of) == 1 else "report"))
        if not re.fullmatch(NAME, title):  # an experiment's own name
            raise UserError(f"task.name={title} is not allowed: it must be a file name without folder or suffix")
        folder = Path(session.config["outputs_dir"]) / "reports"
        folder.mkdir(parents=True, exist_ok=True)
        ui = store.uri if store.uri.startswith("http") else f"http://127.0.0.1:{self.port}"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            links, lacking = _folders(folder.parent)
            document = compose(title, runs, Source(store, ui, links, Path(scratch), lacking))
        replace(folder / f"{title}.html", html.written(document))
        replace(folder / f"{title}.md", markdown.written(document, title))
        for figure in _figures(document):
            (folder / title).mkdir(exist_ok=True)
            replace(folder / title / f"{figure.name}.png", figure.png)
        print(f"report on {len(runs)} runs: {folder / title}.html\n  as Markdown: {folder / title}.md")
        if lacking:
            raise UserError("the report lacks what could not be read:\n  " + "\n  ".join(lacking))
        return {"runs": float(len(runs))}


def _experiments(store: Store, asked: Sequence[str]) -> list[str]:
    known = ", ".join(sorted(store.experiments))
    for name in asked:
        if name not in store.experiments:
            raise UserError(f"task.experiments: there is no experiment {name}; there are {known}")
    return list(asked or store.experiments)


def _chosen(store: Store, names: Sequence[str], sweep: str | None, filter: str | None) -> list[Stored]:
    """Return the runs to report on, oldest first."""
    found = store.runs(names, filter or "")
    runs = [run for run in found if run.tags.get("task") != "trial"]  # their seeds are reported
    if sweep:
        runs = [run for run in runs if sweep in (run.run_id, run.parent)]
    if not runs:
        asked = [f"task.sweep={sweep}"] * bool(sweep) + [f"task.filter={filter}"] * bool(filter)
        raise UserError(f"no run to report on in {', '.join(names)}{': ' * bool(asked)}{', '.join(asked)}")
    return [run for name in names for run in runs if run.experiment == name]


def _folders(outputs: Path) -> tuple[dict[str, Link], list[str]]:
    """Return {run id: link to its run directory}, relative to the reports, and what is wrong with unreadable ones."""
    links, broken = {}, []
    for journal in (Journal(path.parent) for path in outputs.rglob(JOURNAL)):
        try:
            if run_id := journal.state.get("run_id"):
                path = journal.folder.relative_to(outputs).as_posix()
                links[run_id] = Link(path, f"../{quote(path)}")
        except UserError as error:
            broken.append(str(error))
    return links, broken


def _figures(section: Section) -> list[Figure]:
    found = [block for block in section.blocks if isinstance(block, Figure)]
    return found + [figure for part in section.blocks if isinstance(part, Section) for figure in _figures(part)]
