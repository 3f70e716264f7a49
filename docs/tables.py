"""Write the tables of options in README.md and docs/*.md from the header lines of the YAML files (`make tables`).

A page marks the place of a table with a pair of comments, and everything between them is replaced:

    <!-- groups -->         a row for each config group: its options by name
    <!-- options: task -->  a row for each option of a group: what its YAML file's first comment line says
    <!-- end -->

`python docs/tables.py --check` writes nothing and fails if a page differs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- (groups|options: (\w+)) -->\n).*?(<!-- end -->)", re.S)


def groups() -> dict[str, str]:
    """Return {group: description} from the comments of the defaults list in conf/config.yaml."""
    lines = (ROOT / "conf" / "config.yaml").read_text().partition("defaults:")[2].splitlines()
    found = (re.fullmatch(r"  - (\w+): \S+ +# (.+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def options(group: str) -> dict[str, str]:
    """Return {option: header line} of a group; an option without a header line is an error."""
    found = {}
    for path in sorted((ROOT / "conf" / group).glob("*.yaml"), key=_naturally):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @")]
        if not lines[0].startswith("# "):
            raise SystemExit(f"{path} has no header line")
        goes_on = lines[1].startswith("#")  # then the header ends with the last whole sentence of its first line
        sentences = re.match(r".*[.?](?= |$)", lines[0]) if goes_on else None
        found[path.stem] = (sentences[0] if sentences else lines[0]).removeprefix("# ").replace("|", r"\|")
    return found


def _naturally(path: Path) -> list[str | int]:
    """Sort key by which resnet8 comes before resnet14."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def table(kind: str, group: str | None) -> str:
    """Return a table as Markdown."""
    if group:
        rows = [f"| `{option}` | {header} |" for option, header in options(group).items()]
        added = "+" * (group == "sweep")  # a group that is not in the defaults list
        return "\n".join([f"| `{added}{group}=` | |", "| --- | --- |", *rows, ""])
    names = {group: ", ".join(f"`{option}`" for option in options(group)) for group in groups()}
    rows = [f"| `{group}` | {what} | {names[group]} |" for group, what in groups().items()]
    return "\n".join(["| group | chooses | options |", "| --- | --- | --- |", *rows, ""])


def written(text: str) -> str:
    """Return a page with its tables written."""
    return MARKED.sub(lambda match: match[1] + table(match[2], match[3]) + match[4], text)


def main() -> None:
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        if (new := written(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        raise SystemExit(f"run `make tables`: the options in {', '.join(stale)} are out of date")


if __name__ == "__main__":
    main()
