"""A pytest plugin that writes tables of test results into a page of docs.

- Table: the docstring of the test's file, up to the colon.
- Row: what has a `name` and a `version`: the test's parameter, or the marker's second argument.
- Column: the first argument of the test's marker `column`.
- Cell: whether all tests of that row and column passed.
- Footnote: the property `remark` that a test records, or the reason of an expected failure.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLACE = re.compile(r"(<!-- tables: [^\n]* -->\n).*(<!-- end of tables -->\n)", re.DOTALL)
"""The lines of a page between which its tables are."""

RESULTS = {"passed": "yes", "skipped": "no", "failed": "**FAILED**"}
"""What a cell says, from the best result of a test to the worst."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-tables", metavar="FILE", help="write the tables into this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "column(title, row): the cell of the test's result")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("column")
        if marker is None or not isinstance(item, pytest.Function):
            continue
        subject: Any
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for subject in (*parameters, *marker.args[1:]):
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
        page, places = PLACE.subn(lambda place: f"{place[1]}\n{text}\n{place[2]}", path.read_text())
        assert places == 1, f"{file} has no place for tables"
        path.write_text(page)


def tables(reports: list[Any]) -> Iterator[str]:
    """Yields the lines of the tables, in Markdown."""
    drawn: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    columns: dict[str, dict[str, None]] = {}
    notes: dict[str, list[str]] = {}
    for report in sorted(reports, key=lambda report: str(report.location[0])):
        properties = dict(report.user_properties)
        if "cell" not in properties:
            continue
        table, name, version, column = properties["cell"]
        cell = RESULTS[report.outcome]
        if note := properties.get("remark") or getattr(report, "wasxfail", ""):
            footnotes = notes.setdefault(table, [])
            if note not in footnotes:
                footnotes.append(note)
            cell += f" ({footnotes.index(note) + 1})"
        columns.setdefault(table, {})[column] = None
        cells = drawn.setdefault(table, {}).setdefault((name, version), {})
        cells[column] = max(cells.get(column, cell), cell, key=rank)
    for table, rows in drawn.items():
        yield f"### {table}\n"
        yield f"| | version | {' | '.join(columns[table])} |"
        yield f"| --- | --- |{' --- |' * len(columns[table])}"
        for (name, version), cells in rows.items():
            shown = " | ".join(cells.get(column, "") for column in columns[table])
            yield f"| {name} | {version} | {shown} |"
        yield ""
        for number, note in enumerate(notes.get(table, []), 1):
            yield f"({number}) {note}  "
        yield ""


def rank(cell: str) -> int:
    """The place of a cell among RESULTS."""
    return next(n for n, result in enumerate(RESULTS.values()) if cell.startswith(result))
