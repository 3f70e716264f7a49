"""The report of a small store with known numbers holds these numbers, as HTML and as Markdown."""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import stored
from conftest import ROOT, Done
from snnexp.config import fingerprint
from snnexp.errors import UserError
from snnexp.report import html, markdown
from snnexp.report.document import Figure, Link, Paragraph, Section, Table, shown
from snnexp.report.results import at_best_epoch, results, told_apart
from snnexp.tracking import Nothing, Store, Stored
from stored import report

LABS = sorted((ROOT / "src" / "snnexp" / "report" / "labs").glob("*.yaml"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder)
    return folder, stored.fill(folder)


@pytest.fixture
def outputs(store: tuple[Path, str]) -> Path:
    return store[0]


@pytest.fixture
def parent(store: tuple[Path, str]) -> str:
    """The run id of the sweep."""
    return store[1]


class Page(HTMLParser):
    """What a reader sees of a page: headings, tables as rows of cells, paragraphs, figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.paragraphs: list[str] = []
        self.captions: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [str(value) for key, value in attributes if key in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th", "p", "caption", "h1", "h2", "h3", "figcaption"):
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._text)
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(self._text)
        elif tag == "p":
            self.paragraphs.append(self._text)
        elif tag in ("caption", "figcaption"):
            self.captions.append(self._text)


def plain(text: str) -> str:
    """Markdown as it is read."""
    text = re.sub(r"(?<!\\)\[(.*?)(?<!\\)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\)[`*]", "", text))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, header first."""
    found: list[list[list[str]]] = [[]]
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            found[-1].append([plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [[head, *body] for head, _, *body in found[:-1]]


def made(outputs: Path, name: str) -> tuple[Page, str, str]:
    """The page, its source, and the Markdown."""
    page, text = ((outputs / "reports" / f"{name}.{suffix}").read_text() for suffix in ("html", "md"))
    return Page(page), page, text


def test_the_tables_hold_the_stored_numbers(snnexp: Callable[..., Done], outputs: Path) -> None:
    done = snnexp("task=report", f"outputs_dir={outputs}", "task.experiments=[lab]")
    assert done.code == 0, done.err
    assert f"report on 12 runs: {outputs}/reports/lab.html" in done.out
    page, source, text = made(outputs, "lab")
    ran, converted, ranking, swept, every = page.tables
    assert ran[1:] == [
        ["train", "digits", "mlp", "lif", "10", "0, 1, 2", "6"],
        ["convert", "digits", "mlp", "relu", "[1, 4, 16]", "0, 1", "2"],
        ["compare_surrogates", "digits", "mlp", "lif", "10", "0, 1, 4", "1"],
    ]

    sigmoid, atan = stored.rows(swept)  # best first
    assert [sigmoid["surrogate"], sigmoid["seeds"], sigmoid["runs, by seed"]] == ["sigmoid", "3", "0, 1, 2"]
    assert [atan["surrogate"], atan["seeds"]] == ["atan", "3"]
    assert sigmoid["test/accuracy"] == "0.92 ± 0.02"
    assert atan["test/accuracy"] == f"{statistics.fmean(stored.ATAN):.4g} ± {statistics.stdev(stored.ATAN):.2g}"
    assert atan["val/accuracy"] == "0.8 ± 0.017"
    assert "surrogate.alpha" not in sigmoid  # an option brings it with it

    (at_t,) = stored.rows(converted)
    assert at_t == {
        "seeds": "2",
        "ANN": "0.97 ± 0",
        "T = 1": "0.3 ± 0.071",
        "T = 4": "0.8 ± 0.071",
        "T = 16": "0.95 ± 0",
        "runs, by seed": "0, 1",
    }
    assert ranking == [list(stored.RANKING[0]), ["atan", "0.1235", "123457"], ["sigmoid", "1e-07", "12"]]

    states = [row["status"] for row in stored.rows(every)]
    assert states == ["finished", "finished, repeated later", *["finished"] * 6, "failed", *["finished"] * 3]
    assert page.headings == [
        "lab",
        "compare surrogates: mlp-digits-lif",
        "Sweep: surrogate x seed",
        "convert: mlp-digits-relu-qcfs",
        "Runs",
    ]
    assert "8 runs (7 finished, 1 failed); best by validation: sigmoid seed=2." in page.paragraphs[3]
    assert page.paragraphs[1].startswith(
        "Finding. By validation the best is surrogate=sigmoid: test/accuracy 0.92 (mean"
    )
    assert page.paragraphs[0] == f"Contents. {' · '.join(page.headings[1:])}"
    assert source.count("<img ") == 3, "of the comparison, the sweep and the first seed, none of the children"
    assert page.captions.count("val accuracy") == 3

    assert markdown_tables(text) == page.tables
    assert [plain(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")] == page.headings
    for paragraph in page.paragraphs:
        assert paragraph in plain(text)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (outputs / "reports" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else_and_links_to_the_runs(outputs: Path) -> None:
    report(outputs, name="all", port=5077)
    page, source, _ = made(outputs, "all")
    assert page.headings[0] == "all"
    assert page.tables[0] == [
        ["experiment", "data", "seeds", "runs"],
        ["lab", "digits", "4", "10"],
        ["other", "digits", "1", "1"],
    ]
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "default-src 'none'" in source
    kinds = {address.split("/")[0].split(";")[0] for address in page.addresses}
    assert {kind for kind in kinds if not kind.startswith("#")} == {"data:image", "http:", ".."}
    runs = [address for address in page.addresses if address.startswith("http:")]
    assert all(re.fullmatch(r"http://127\.0\.0\.1:5077/#/experiments/\d+/runs/\w{32}", address) for address in runs)
    folders = {address for address in page.addresses if address.startswith("..")}
    assert len(folders) == 13
    assert all((outputs / "reports" / folder / "tracking.json").is_file() for folder in folders)
    assert "&lt;b&gt;x|y&lt;/b&gt; &amp; *z*" in source
    assert "<b>x" not in source


def test_runs_are_chosen_by_sweep_and_by_filter(outputs: Path, parent: str) -> None:
    report(outputs, sweep=parent)
    page, _, _ = made(outputs, parent)
    assert page.headings == ["lab", "Sweep: surrogate x seed", "Runs"]
    assert len(page.tables[-1]) == 1 + 9
    report(outputs, name="atan", filter="tags.surrogate = 'atan' and metrics.`test/accuracy` < 0.82")
    page, _, _ = made(outputs, "atan")
    (row,) = stored.rows(page.tables[1])
    assert [row["seeds"], row["test/accuracy"]] == ["2", "0.8 ± 0"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"experiments": ["lab", "lab9"]},
            "task.experiments: there is no experiment lab9; there are Default, lab, other",
        ),
        ({"filter": "metrics.x >"}, "task.filter=metrics.x > is not allowed: it must be in MLflow's search syntax ("),
        ({"experiments": "lab", "filter": "tags.a = 'b'"}, "no run to report on in lab: task.filter=tags.a = 'b'"),
        ({"sweep": "0123"}, "no run to report on in Default, lab, other: task.sweep=0123"),
        ({"name": 2026, "port": 0}, "task.port=0"),
        ({"name": "a/b"}, "task.name=a/b is not allowed"),
        ({"port": 0}, "task.port=0 is not allowed: it must be an integer >= 1"),
    ],
)
def test_what_cannot_be_reported_is_told(outputs: Path, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        report(outputs, **keys)


def test_without_a_store_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"nothing was logged yet in {tmp_path}"):
        report(tmp_path)
    with pytest.raises(UserError, match="task=report shows results from MLflow: it needs tracking=mlflow"):
        Store(Nothing(), "task=report")
    assert not list(tmp_path.iterdir())


def run(seed: int, status: str = "finished", tags: dict[str, str] | None = None, **params: object) -> Stored:
    settings = {"seed": str(seed)} | {key.replace("__", "."): str(value) for key, value in params.items()}
    return Stored(f"{seed}", "1", "lab", "a", status, 0.0, 1.0, settings, tags or {}, {"test/accuracy": seed / 10})


def test_runs_are_told_apart_by_options_and_by_keys_within_them() -> None:
    adam, sgd = {"optimizer___target_": "torch.optim.Adam"}, {"optimizer___target_": "torch.optim.SGD"}
    runs = [run(0, **adam, optimizer__lr=1), run(1, **adam, optimizer__lr=2), run(0, **sgd, optimizer__lr=9)]
    assert told_apart(runs) == [
        {"optimizer": "Adam", "optimizer.lr": "1", "seed": "0"},
        {"optimizer": "Adam", "optimizer.lr": "2", "seed": "1"},
        {"optimizer": "SGD", "optimizer.lr": "9", "seed": "0"},
    ]
    # places, tracking and seeds of parts are no settings; the same values under two keys are one
    runs = [
        run(s, outputs_dir=s, dataset__seed=s, dataset__root=s, model__width=w, model__copy__width=w)
        for s in (0, 1)
        for w in (8, 16)
    ]
    assert told_apart(runs) == [{"model.width": w, "seed": s} for s in "01" for w in ("8", "16")]
    assert told_apart([]) == []


def test_the_newest_finished_run_of_a_seed_counts() -> None:
    runs = [run(1), run(2), run(1), run(1, status="failed"), run(3, status="running")]
    counted = [result.run for result in results(runs)]
    assert sorted(map(id, counted)) == sorted([id(runs[1]), id(runs[2])])


def test_a_training_is_shown_at_its_best_epoch() -> None:
    """As its test result is; MLflow's newest value is the last epoch's."""
    curves = {"val/accuracy": {1: 0.7, 2: 0.9, 3: 0.8}, "val/loss": {1: 0.5, 2: 0.1, 3: 0.3}}
    store: Any = SimpleNamespace(curve=lambda run, metric: curves[metric])
    last = {"val/accuracy": 0.8, "val/loss": 0.3, "test/accuracy": 0.85, "best_epoch": 2.0}
    assert at_best_epoch(replace(run(1), metrics=last), store) == last | {"val/accuracy": 0.9, "val/loss": 0.1}


def test_folders_of_images_are_data_not_places() -> None:
    images = {"dataset___target_": "snnexp.dataset.image_folder.image_folder"}
    runs = [run(0, **images, dataset__root="a"), run(0, **images, dataset__root="b")]
    assert told_apart(runs) == [{"dataset.root": "a", "seed": "0"}, {"dataset.root": "b", "seed": "0"}]
    config = {"seed": 0, "dataset": {"_target_": images["dataset___target_"], "root": "a"}}
    other = {"seed": 0, "dataset": {"_target_": "snnexp.dataset.nmnist.nmnist", "root": "a"}}
    for one, same in ((config, False), (other, True)):
        moved = one | {"dataset": one["dataset"] | {"root": "b"}}
        assert (fingerprint(one) == fingerprint(moved)) is same


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("0.123456", "0.1235"),
        ("12345.678", "12346"),
        ("1234567", "1234567"),
        ("-1e-9", "-1e-09"),
        ("nan", "nan"),
        ("0.5 ± 0.1", "0.5 ± 0.1"),
        ("2026-11-22", "2026-11-22"),
        ("", ""),
        ("[1, 2]", "[1, 2]"),
        ("1.0", "1"),
        ("99999.5", "100000"),
        ("-0.00001234", "-1.234e-05"),
        ("inf", "inf"),
    ],
)
def test_numbers_are_shortened_and_nothing_else(text: str, short: str) -> None:
    assert shown(text) == short


def test_both_formats_escape_what_they_are_given() -> None:
    bad = "<script>alert(1)</script> | a_b *c* \"d\" 'e' `x < y`"
    table = Table(bad, [bad, "n"], [[bad, "1"], [[Link(bad, 'http://h/?a=1&b="><i>')], "2"]])
    assert [table.numeric(0), table.numeric(1)] == [False, True]
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1200).to_bytes(4, "big") + (600).to_bytes(4, "big")
    document = Section("a", bad, [Paragraph(bad, "Question."), table, Figure("f", bad, png)])
    page = html.written(document)
    read = Page(page)
    assert not read.tags & {"script", "i"}
    assert read.headings == [bad]
    assert read.paragraphs == [f"Question. {bad.replace('`', '')}"]
    assert read.tables == [[[bad, "n"], [bad, "1"], [bad, "2"]]]
    assert 'width="960" height="480"' in page
    text = markdown.written(document, "a")
    assert markdown_tables(text) == read.tables
    assert "<script>" not in re.sub(r"\\<", "", text)


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_every_lab_is_a_target_and_says_what_it_asks(path: Path) -> None:
    targets = re.search(r"^LABS := (.*)", (ROOT / "Makefile").read_text().replace("\\\n", " "), re.MULTILINE)
    assert targets
    assert path.stem in ["labs", *targets[1].split()]
    texts = yaml.safe_load(path.read_text())
    assert {"title", "question", "set_up"} == set(texts)
    assert all(isinstance(text, str) and len(text.split()) > 1 for text in texts.values())
