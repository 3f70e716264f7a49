"""Names and configs of somebody else: reports show them as they are, and configs of runs name known classes only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from conftest import SMALL, Done
from snnexp.errors import UserError
from snnexp.report import html, markdown
from snnexp.report.document import Link, Name, Paragraph, Section, Table
from snnexp.report.lab import Lab, lab
from snnexp.sweep import summary
from snnexp.task.compare_surrogates import _settings
from snnexp.trust import PACKAGES, allowed, check_targets

BAD = 'a|b ` [x](http://evil) <img src=x onerror=alert(1)> &lt;b&gt; $x$ ~~y~~ "q"\n\n# head\n- item'
SHOWN = " ".join(BAD.split())


class Seen(HTMLParser):
    """The text, the tags and the addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.links, self.anchors = "", set[str](), list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for key, value in attributes if key == "href"]
        self.anchors += [str(value) for key, value in attributes if key == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


def document() -> Section:
    inner = Section(BAD, BAD, [Table(BAD, [BAD], [[BAD], [[Link(BAD, "../a (b)|c")]]])])
    return Section("top", BAD, [Paragraph(["best: ", Name(BAD), " with `code`"]), Paragraph([inner.link]), inner])


def test_a_page_shows_names_as_they_are() -> None:
    seen = Seen(html.written(document()))
    assert not seen.tags & {"img", "i"}
    assert seen.text.count(BAD) == 9
    assert set(seen.links) == {f"#{seen.anchors[1]}", "../a (b)|c"}
    assert re.fullmatch(r"[\w%.~-]+", seen.anchors[1])


def test_markdown_shows_names_as_they_are() -> None:
    text = markdown.written(document(), "figures")
    shown = re.sub(r'<a id="[^"]*"></a>|\]\([^()]*\)', "", text)  # without anchors and addresses
    marks = re.sub(r"\\[^\w\s]", "", shown)  # what is left after an escape is read as Markdown
    assert not re.search(r"<img|onerror=alert\(1\)>|&lt;|~~|\$|evil\)\]", marks)
    assert marks.count("`") == 2  # of `code`
    assert not [line for line in text.splitlines() if line.startswith(("# head", "- item"))]
    unescaped = re.sub(r"\\([^\w\s])", r"\1", text)
    assert unescaped.count(SHOWN) == 8
    assert "](../a%20%28b%29%7Cc)" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 2 for row in rows)


def test_an_experiment_names_no_file_elsewhere() -> None:
    assert lab("../../../../conf/task/report") == Lab("../../../../conf/task/report")


def test_the_table_of_a_sweep_keeps_its_columns() -> None:
    text = summary.markdown([{"surrogate": "a|b\nc", "n": 1}])
    assert text == "| surrogate | n |\n| --- | --- |\n| a\\|b c | 1 |\n"


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another package": ({"_target_": "joblib.load", "filename": "x"}, "names joblib.load, which is not allowed"),
    "pandas": ({"_target_": "pandas.read_pickle"}, "names pandas.read_pickle, which is not allowed"),
    "a function of torch": ({"_target_": "torch.load", "f": "x"}, "names torch.load, which is not allowed"),
    "a class of another kind": ({"_target_": "torch.nn.Linear"}, "must be a SurrogateFunctionBase class of snnexp"),
    "a package that begins alike": ({"_target_": "torchevil.A"}, "names torchevil.A"),
    "nested": (
        {"_target_": "snnexp.surrogate.sine.Sine", "alpha": [{"a": {"_target_": "os.system"}}]},
        "names os.system",
    ),
    "an interpolation": (
        {"_target_": "snnexp.surrogate.sine.Sine", "alpha": "${oc.decode:'{_target_: os.system}'}"},
        "configs of runs have plain values only",
    ),
    "a program": ({"_target_": "snnexp.__main__.main"}, "not allowed"),
}


def sweep_of(folder: Path, surrogate: dict[str, Any]) -> Path:
    """A sweep of one finished run, with this surrogate."""
    run = folder / "sweep" / "0"
    run.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"seed": 0, "surrogate": surrogate}), run / "config.yaml")
    torch.save({"history": []}, run / "last.pt")
    for name, content in {"result.json": {}, "job.json": {"folder": "."}}.items():
        (run / name).write_text(json.dumps(content))
    return folder / "sweep"


@pytest.mark.parametrize("case", HOSTILE)
def test_a_run_of_somebody_else_names_known_surrogates_only(case: str, tmp_path: Path) -> None:
    surrogate, message = HOSTILE[case]
    sweep = sweep_of(tmp_path, surrogate)
    with pytest.raises(UserError, match=rf"{sweep}/0/config\.yaml") as refused:
        _settings(sweep, [])
    assert message in str(refused.value)


def test_the_refusal_reaches_the_user(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"_target_": "joblib.load", "filename": "x"})
    done = snnexp(*SMALL, "task=compare_surrogates", f"task.sweep={sweep}", "tracking=none")
    assert (done.code, done.runs()) == (1, [])
    assert "names joblib.load, which is not allowed: it must be a SurrogateFunctionBase class of snnexp" in done.err
    assert "add it to task.trusted_packages" in done.err
    assert "Traceback" not in done.err


class Mine(nn.Module):
    """A class of the user's own package."""


def test_the_user_may_trust_more_packages() -> None:
    config = {"_target_": "test_faults_trust.Mine", "alpha": 1.0}
    with pytest.raises(UserError, match=r"names test_faults_trust.Mine.*add it to task.trusted_packages"):
        check_targets(config, nn.Module, "config.yaml", PACKAGES, "task.trusted_packages")
    check_targets(config, nn.Module, "config.yaml", (*PACKAGES, "test_faults_trust"), "task.trusted_packages")
    assert allowed("torch.nn.ReLU", nn.Module, "config.yaml", PACKAGES, "") is nn.ReLU
