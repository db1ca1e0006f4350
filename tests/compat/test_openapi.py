"""The OpenAPI document: Schemathesis sends requests of all kinds to a server that runs."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compat.described import KEY
from tests.support.servers import free_port, server_process

ST = Path(sys.prefix) / "schemathesis/bin/st"
SECONDS = 300

# All that it checks by default is on, but for these.
CONFIG = """\
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 410]

[[operations]]  # A model's source refuses fields for which it has no parameter.
include-path-regex = "^/v1/"
checks.positive_data_acceptance.enabled = false

[[operations]]  # 1.0 is an integer in JSON Schema, and in a body it is none for msgspec.
include-operation-id = "post_streams_job"
checks.positive_data_acceptance.expected-statuses = ["2xx", 410, 422]
"""

# Their streams have no end.
ENDLESS = ("get_streams_news", "post_streams_news")

# A header has precedence over them, so an invalid one is accepted beside it.
INSTEAD_OF_A_HEADER = ("last_event_id", "lastEventId", "idempotency_key")


def without_precedence(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the parameters that are there for clients without headers."""
    references = [{"$ref": f"#/components/parameters/{name}"} for name in INSTEAD_OF_A_HEADER]
    for operations in document["paths"].values():
        for operation in operations.values():
            given = operation.get("parameters", [])
            operation["parameters"] = [p for p in given if p not in references]
    return document


async def tried(app: str, folder: Path, *options: str) -> tuple[int, str]:
    """The exit code and the output of Schemathesis, for an app of tests/compat/described.py."""
    port = free_port()
    headers = {"Authorization": f"Bearer {KEY}"}
    with server_process(port, app=f"tests.compat.described:{app}"):
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(headers=headers) as client:
            document = (await client.get(f"{url}/openapi.json")).json()
        (folder / "config.toml").write_text(CONFIG)
        (folder / "openapi.json").write_text(json.dumps(without_precedence(document)))
        process = await asyncio.create_subprocess_exec(
            *(ST, "--config-file", "config.toml", "run", "openapi.json", "--url", url),
            *("--header", f"Authorization: {headers['Authorization']}", "--seed", "1"),
            *("--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
            *("--generation-database", "none", "--no-color", "--warnings", "off"),
            *("--max-examples", "20", "--request-timeout", "30", *options),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.timeout(SECONDS + 60)
async def test_schemathesis_finds_no_answer_that_is_not_as_described(tmp_path: Path) -> None:
    excluded = [option for name in ENDLESS for option in ("--exclude-operation-id", name)]
    code, output = await tried("app", tmp_path, *excluded)
    assert code == 0, output
    assert "Tested: " in output


@pytest.mark.timeout(SECONDS + 60)
async def test_schemathesis_finds_a_fault(tmp_path: Path) -> None:
    code, output = await tried("faulty", tmp_path, "--include-operation-id", "get_streams_ready")
    assert code == 1, output
    assert "SSE event violates schema" in output
