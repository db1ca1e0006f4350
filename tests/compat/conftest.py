"""Writes the tables of docs/compat.md from the test results: each test is one cell.

- Table: the docstring of the test's file, up to the colon.
- Row: the test's parameter that has a `name` and a `version`.
- Column: the argument of the test's marker `column`.
- Footnote: the property `remark` that a test records, or the reason of an expected failure.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BEGIN, END = "<!-- tables: written by make compat -->\n", "<!-- end of tables -->\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-tables", metavar="FILE", help="write the tables into this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "column(title): the table column of the test's result")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("column")
        if marker is None or not isinstance(item, pytest.Function):
            continue
        subject: Any
        for subject in item.callspec.params.values():
            if hasattr(subject, "version"):
                table = (item.module.__doc__ or "").partition(":")[0]
                cell = (table, subject.name, subject.version, marker.args[0])
                item.user_properties.append(("cell", cell))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [
        report
        for outcome in ("passed", "failed", "xfailed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" or outcome == "failed"
    ]
    text = "\n".join(tables(reports))
    if (file := config.getoption("--write-tables")) is None:
        terminalreporter.write_line(f"\n{text}")
    else:
        path = Path(file)
        before, _, rest = path.read_text().partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def tables(reports: list[Any]) -> Iterator[str]:
    """Yields the lines of the tables, in Markdown."""
    drawn: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    notes: dict[str, list[str]] = {}
    for report in sorted(reports, key=lambda report: str(report.location[0])):
        properties = dict(report.user_properties)
        if "cell" not in properties:
            continue
        table, name, version, column = properties["cell"]
        cell = {"passed": "yes", "failed": "**FAILED**", "skipped": "no"}[report.outcome]
        if note := properties.get("remark") or getattr(report, "wasxfail", ""):
            footnotes = notes.setdefault(table, [])
            if note not in footnotes:
                footnotes.append(note)
            cell += f" ({footnotes.index(note) + 1})"
        drawn.setdefault(table, {}).setdefault((name, version), {})[column] = cell
    for table, rows in drawn.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        yield f"### {table}\n"
        yield f"| | version | {' | '.join(columns)} |"
        yield f"| --- | --- |{' --- |' * len(columns)}"
        for (name, version), cells in rows.items():
            shown = " | ".join(cells.get(column, "") for column in columns)
            yield f"| {name} | {version} | {shown} |"
        yield ""
        for number, note in enumerate(notes.get(table, []), 1):
            yield f"({number}) {note}  "
        yield ""
