"""A short run of the fuzzer: a few hundred odd requests, on each log and HTTP parser."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.fuzz.harness import fuzz, server
from tests.fuzz.requests import request

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "300"))
SEED = os.environ.get("SEED", "1")


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_no_odd_request_gets_more_than_a_refusal(log: str, http: str, tmp_path: Path) -> None:
    url = None if log == "memory" else f"sqlite:{tmp_path}/runs.db"
    with server(url, http) as (port, failures):
        requests = (request(f"{SEED}/{log}/{http}", number) for number in range(REQUESTS))
        asyncio.run(fuzz(port, failures, requests))
