"""The source `chat`; the model's server is our own endpoint, or one that misbehaves."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams import Source, Streams, source
from streams.sources import tokens
from streams.sources.chat import chat_with
from tests.support.servers import client_of, connection, every_event, free_port, serving, until

KEY = "sk-do-not-tell"
QUICK = {"tokens_per_second": 10_000, "first_token": 0}


def model(**faults: Any) -> Source[..., Any]:
    """A mock LLM whose faults the test sets, not the client."""

    @source(name="model")
    async def answers(
        messages: list[dict[str, Any]],
        request: Request,
        max_tokens: int | None = None,
    ) -> AsyncIterator[Any]:
        options = {**QUICK, **faults, "max_tokens": max_tokens or faults.get("max_tokens")}
        async for event in tokens(messages=messages, request=request, **options):
            yield event

    return answers


@asynccontextmanager
async def chatting(
    upstream: Any, *, silence: float = 5, models: bool = False, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose source `chat` asks `upstream`; `silence` is its timeout."""
    async with serving(upstream) as url:
        chat = chat_with(f"{url}/v1", "mock", api_key=KEY, timeout=silence)
        ours = Streams([chat], models={"mock": chat} if models else None, **options)
        async with client_of(ours, lifespan="on") as client:
            yield client


def upstream(**faults: Any) -> Streams:
    return Streams(models={"mock": model(**faults)})


def answering(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Starlette:
    """A server that gives the same answer to every request."""

    async def answer(request: Request) -> Response:
        await request.body()
        seen = request.headers.get("authorization", "none").encode()
        return Response(
            body.replace(b"AUTHORIZATION", seen),
            status,
            {"Content-Type": "application/json", **(headers or {})},
        )

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


def chunks(*datas: str) -> Starlette:
    """A server that streams these chunks."""
    return answering(
        b"".join(b"data: %b\n\n" % data.encode() for data in datas),
        headers={"Content-Type": "text/event-stream"},
    )


async def test_the_events_have_the_form_of_the_mocks_events() -> None:
    async with chatting(upstream()) as client:
        answer = await every_event(client, "/streams/chat?prompt=Hello?")
    async with client_of(Streams([tokens])) as client:
        expected = await every_event(
            client, "/streams/tokens?prompt=Hello?&tokens_per_second=10000&first_token=0"
        )
    assert [event.data for event in answer[1:]] == [event.data for event in expected[1:]]
    assert [event.event for event in answer] == [event.event for event in expected]


async def test_tokens_can_be_joined() -> None:
    def text(events: list[Any]) -> str:
        return "".join(event.json()["message"]["content"] for event in events[1:-1])

    async with chatting(upstream()) as client:
        single = await every_event(client, "/streams/chat?prompt=Hello?")
        joined = await every_event(client, "/streams/chat?prompt=Hello?&every=10")
        assert (await client.get("/streams/chat?prompt=Hello?&every=11")).status_code == 422
    assert text(joined) == text(single)
    assert len(joined) == 4, "start, the first token, the rest, and the end"
    assert joined[1].data == single[1].data
    assert joined[2].json()["eval_count"] == single[-2].json()["eval_count"]


async def test_the_final_event_says_how_the_answer_ended() -> None:
    async with chatting(upstream()) as client:
        events = await every_event(client, "/streams/chat?prompt=Hi&max_tokens=2")
    assert events[-2].json() == {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": 1,
        "eval_count": 2,
    }


@pytest.mark.parametrize("json_", [{}, {"prompt": ""}, {"messages": []}])
async def test_a_request_without_a_prompt_is_refused(json_: dict[str, Any]) -> None:
    async with chatting(upstream()) as client:
        assert (await client.post("/streams/chat", json=json_)).status_code == 422


async def test_an_unreachable_server_is_a_502() -> None:
    chat = chat_with(f"http://127.0.0.1:{free_port()}/v1", "m")
    async with client_of(Streams([chat])) as client:
        response = await client.get("/streams/chat?prompt=Hi")
    assert response.status_code == 502
    assert response.json()["detail"] == "the model's server cannot be reached: ConnectError"


async def test_a_server_that_does_not_answer_is_a_504() -> None:
    async def never(request: Request) -> Response:
        await request.body()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    app = Starlette(routes=[Route("/v1/chat/completions", never, methods=["POST"])])
    async with chatting(app, silence=0.1) as client:
        response = await client.get("/streams/chat?prompt=Hi")
    assert response.status_code == 504
    assert response.json()["detail"] == "the model's server did not answer in time"


@pytest.mark.parametrize(
    ("faults", "silence", "says"),
    [
        ({"drop_after": 3}, 5, "the connection to the model's server broke: RemoteProtocolError"),
        ({"fail_after": 3}, 5, "the model's server failed: the mock failed after 3 tokens"),
        ({"stall_after": 3}, 2, "the model's server sent nothing for 2 s"),
    ],
)
async def test_an_answer_that_breaks_off_fails_after_its_last_piece(
    faults: dict[str, Any], silence: float, says: str
) -> None:
    async with chatting(upstream(**faults), silence=silence) as client:
        events = await every_event(client, "/streams/chat?prompt=Hi")
    texts = [event.json()["message"]["content"] for event in events[1:-1]]
    assert texts == ["You", " asked", ":"]
    assert events[-1].json()["status"] == "failed"
    assert events[-1].json()["error"]["message"].startswith(says)


HELLO = '{"choices":[{"delta":{"content":"Hello"}}]}'


async def test_a_stop_closes_the_connection_to_the_model_and_a_disconnect_does_not() -> None:
    # A request with a key, as this source sends it, is else kept for a client that tries again.
    models = Streams(models={"mock": model(stall_after=2)}, linger=0)
    async with chatting(models) as client:
        url = str(client.base_url)
        async with connection(url, "/streams/chat?prompt=Hi") as stream:
            await stream.until(lambda stream: b'" asked"' in stream.body, "two pieces received")
            run = stream.run
        await until(lambda: models.log.readers == 1, "the model's run has one reader")
        async with connection(url, f"/runs/{run}") as again:
            await again.until(lambda stream: b'" asked"' in stream.body, "two pieces received")
            assert models.log.readers == 1
            assert (await client.delete(f"/runs/{run}")).status_code == 204
            await until(lambda: not models.log.readers, "the model's run has no reader")
            await until(lambda: not models.runs.health()["running"], "the model's run has ended")
            await again.until(lambda stream: stream.terminated, "the body is complete")
        assert again.body.endswith(b'data: {"status":"cancelled","reason":"stopped"}\n\n')


async def test_any_number_of_viewers_share_one_answer() -> None:
    models = upstream()
    async with chatting(models) as client:
        first = await every_event(client, "/streams/chat?prompt=Hi")
        run = first[0].json()["run"]
        for _ in range(3):
            again = await every_event(client, f"/runs/{run}", first[4].id)
            assert [event.data for event in again] == [event.data for event in first[5:]]
        assert len(models.log) == 1


async def test_connections_are_reused_and_closed_with_the_app() -> None:
    ports = set()
    models = upstream()

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        ports.add(scope["client"][1])
        await models(scope, receive, send)

    async with serving(counted) as url:
        chat = chat_with(f"{url}/v1", "mock")
        for _ in range(2):
            async with client_of(Streams([chat]), lifespan="on") as client:
                for _ in range(3):
                    events = await every_event(client, "/streams/chat?prompt=Hi")
                    assert events[-1].json() == {"status": "completed"}
        # One connection per app: a closed app's connection is not used again.
        assert len(ports) == 2


async def test_an_app_that_never_asked_the_model_closes() -> None:
    async with chatting(upstream()) as client:
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("status", [200, 400, 401, 500])
async def test_the_key_is_never_in_a_log_or_an_answer(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = {"error": {"message": "your AUTHORIZATION is not mine"}}
    async with chatting(answering(json.dumps(error).encode(), status)) as client:
        response = await client.get("/streams/chat?prompt=Hi")
        listed = await client.get("/streams")
    assert KEY not in caplog.text
    assert KEY not in response.text + str(response.headers) + listed.text
    async with chatting(chunks(HELLO, json.dumps(error)), models=True) as client:
        events = await every_event(client, "/streams/chat?prompt=Hi")
    assert KEY not in caplog.text + events[-1].data
    assert "mine" in events[-1].data


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://host/v1", "", "http:///v1", "http://ho\0st/v1"]
)
def test_an_invalid_url_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a server"):
        chat_with(url, "m")


def test_a_key_in_the_url_and_a_key_that_is_not_ascii_are_invalid() -> None:
    with pytest.raises(ValueError, match="pass an API key"):
        chat_with(f"http://user:{KEY}@host/v1", "m")
    for key in ("sk-ü", "sk\n"):
        with pytest.raises(ValueError, match="not printable ASCII"):
            chat_with("http://host/v1", "m", api_key=key)


async def test_openais_client_can_use_chat_as_a_model() -> None:
    asked: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}]}
    async with chatting(upstream(), models=True) as client:
        async with AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any") as sdk:
            completion = await sdk.chat.completions.create(**asked, max_tokens=3)
            assert completion.choices[0].message.content == "You asked:"
            assert completion.choices[0].finish_reason == "length"
            assert completion.usage
            assert completion.usage.total_tokens == 1 + 3
    async with chatting(answering(b"", 429), models=True) as client:
        async with AsyncOpenAI(
            base_url=f"{client.base_url}/v1", api_key="any", max_retries=0
        ) as sdk:
            with pytest.raises(openai.RateLimitError):
                await sdk.chat.completions.create(**asked, stream=True)


async def test_a_failing_model_is_an_error_for_a_completion_that_is_not_streamed() -> None:
    async with chatting(upstream(fail_after=2), models=True) as client:
        async with AsyncOpenAI(
            base_url=f"{client.base_url}/v1", api_key="any", max_retries=0
        ) as sdk:
            with pytest.raises(openai.InternalServerError, match="the mock failed"):
                await sdk.chat.completions.create(
                    model="mock", messages=[{"role": "user", "content": "Hi"}]
                )
