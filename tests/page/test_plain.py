"""The mock's answer as a plain response: who may have it, how many, and how it ends."""

from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest

from streams import Streams, source
from streams.page.plain import MAX_PLAIN
from streams.sources import counter, tokens
from tests.support.servers import client_of, serving

FAST = {"tokens_per_second": 10_000, "first_token": 0, "reply": "One two."}
STALLED = {**FAST, "stall_after": 1}
URL = "/plain/tokens"


async def test_it_has_the_events_of_the_source_and_nothing_else() -> None:
    async with client_of(Streams([tokens])) as client:
        response = await client.post(URL, json=FAST)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.splitlines()
    assert [line.partition(":")[0] for line in lines if line] == ["data"] * 4
    assert '"content":"One"' in lines[0]
    assert '"done":true' in lines[-2]


async def test_only_the_mock_has_one() -> None:
    @source(name="tokens")
    async def own() -> Any:
        """Somebody's own source, which may cost something."""
        yield 1

    async with client_of(Streams([counter, tokens])) as client:
        assert (await client.post("/plain/counter", json={})).status_code == 404
        assert (await client.get(URL)).status_code == 405
        assert (await client.get("/page/about.json")).json() == {"plain": ["tokens"]}
    for app in (Streams([counter, own]), Streams([tokens], page=False)):
        async with client_of(app) as client:
            assert (await client.post(URL, json={})).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"), [({"speed": 1}, 422), ({"status": 418}, 418), ({"prompt": 5}, 422)]
)
async def test_it_is_refused_as_a_run_is(body: dict[str, Any], status: int) -> None:
    async with client_of(Streams([tokens])) as client:
        response = await client.post(URL, json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


async def test_another_site_gets_none() -> None:
    async with client_of(Streams([tokens])) as client:
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"}
        assert (await client.post(URL, json=FAST, headers=headers)).status_code == 403
        text = {"Content-Type": "text/plain"}
        assert (await client.post(URL, content="{}", headers=text)).status_code == 415


async def test_a_failure_ends_it() -> None:
    async with client_of(Streams([tokens])) as client:
        response = await client.post(URL, json={**FAST, "fail_after": 2})
    assert response.text.count("data:") == 2


async def test_at_most_20_are_sent_at_a_time() -> None:
    async with client_of(Streams([tokens]), timeout_graceful_shutdown=5) as client:
        async with AsyncExitStack() as stack:
            for _ in range(MAX_PLAIN):
                response = await stack.enter_async_context(client.stream("POST", URL, json=STALLED))
                assert response.status_code == 200
            refused = await client.post(URL, json=FAST)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "10"
            assert "20 answers are being sent" in refused.json()["detail"]
        with anyio.fail_after(10):
            while (await client.post(URL, json=FAST)).status_code == 503:
                await anyio.sleep(0.01)  # The server has yet to notice that the clients are gone.


async def test_the_servers_shutdown_ends_it() -> None:
    async with httpx.AsyncClient() as client:
        async with AsyncExitStack() as stack:
            with anyio.fail_after(20):
                async with serving(Streams([tokens])) as url:
                    response = await stack.enter_async_context(
                        client.stream("POST", url + URL, json=STALLED)
                    )
                    assert response.status_code == 200
                received = await response.aread()
    assert received.count(b"data:") == 1
