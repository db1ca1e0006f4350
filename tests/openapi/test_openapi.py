"""openapi: the document is valid, is complete, and says what the server does."""

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, TypedDict

import httpx
import msgspec
import pytest
from httpx_sse import EventSource
from msgspec import Meta
from openapi_spec_validator import OpenAPIV32SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route

import app
from streams import Event, MemoryLog, StreamError, Streams, source, topic
from streams.errors import StoreDown
from streams.openapi import Facts, table
from streams.openapi.writer import Writer
from streams.sources import clock, counter, tokens
from tests.openapi.conformance import Conformance
from tests.support.servers import client_of

FACTS = Facts(
    needs_key=True, can_sign=True, checks_hosts=True, limits_clients=True, has_identity=False
)

KEY = "a-key-of-the-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
UNKNOWN = "AAAAAAAAAAAAAAAAAAAAAA"
FAST = {"tokens_per_second": 10_000, "first_token": 0}


@dataclasses.dataclass
class Progress:
    done: int
    of: int


class Finished(TypedDict):
    url: str


class Options(msgspec.Struct):
    quality: Annotated[int, Meta(ge=1, le=9)] = 5


@source
async def job(
    steps: Annotated[int, Meta(ge=0, le=5, description="How many steps")] = 2,
    tags: list[str] | None = None,
    options: Options | None = None,
    parts: list[Options] | None = None,
) -> AsyncIterator[Progress | Finished]:
    """Does a job in steps."""
    for step in range(steps):
        yield Progress(step + 1, steps)
    yield {"url": "/result"}


@source
def words(text: str) -> Iterator[str]:
    yield from text.split()


@source
async def named() -> AsyncIterator[Event]:
    yield Event({"left": 1}, event="progress")
    yield Event(text="<b>done</b>")


def only_for_friends(request: Request) -> None:
    if "friend" not in request.headers:
        raise StreamError("only friends may have this", status=418)


@source(guard=only_for_friends)
async def guarded() -> AsyncIterator[dict[str, int]]:
    yield {"number": 1}


@topic
def news(user: str) -> None:
    """What a user should hear of."""


def everything(**options: Any) -> Streams:
    """An app with each option that has routes or refusals of its own."""
    given: dict[str, Any] = {
        "models": {"mock": tokens},
        "publish": lambda request: None,
        "api_keys": [KEY],
        "secret": "s" * 32,
        "hosts": [],
        "max_per_client": 50,
        "max_body": 2000,
        "metrics": True,
        **options,
    }
    return Streams([job, words, named, guarded, counter, tokens, clock, news], **given)


def mounted(streams: Streams, path: str = "/live") -> Starlette:
    return Starlette(routes=[Mount(path, streams)], lifespan=streams.lifespan)


async def document_of(serving: Any, path: str = "") -> Any:
    transport = httpx.ASGITransport(serving)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get(f"{path}/openapi.json", headers=BEARER)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("serving", "path"),
    [(app.app, ""), (mounted(everything()), "/live"), (Streams(page=False), "")],
    ids=["app.py", "mounted, with all options", "no sources"],
)
async def test_the_document_is_valid(serving: Any, path: str) -> None:
    document = await document_of(serving, path)
    assert document["openapi"] == "3.2.0"
    validate(document, cls=OpenAPIV32SpecValidator)


async def test_the_validator_refuses_an_item_schema_that_is_none() -> None:
    document = await document_of(Streams([counter], page=False))
    ok = document["paths"]["/streams/counter"]["get"]["responses"]["200"]
    ok["content"]["text/event-stream"]["itemSchema"] = []
    with pytest.raises(OpenAPIValidationError):
        validate(document, cls=OpenAPIV32SpecValidator)


NOT_DESCRIBED = {
    ("/v1", "*"): "has no operation; an error in OpenAI's form says so",
    ("/v1/{path:path}", "*"): "likewise",
    ("/v1/responses/{response}", "POST"): "likewise: what OpenAI has besides",
}


def test_every_route_is_described_with_each_of_its_methods() -> None:
    streams = everything()
    described, writer = table(streams), Writer(streams, FACTS)
    routes = {
        (route.path, method)
        for route in streams._router.routes
        if isinstance(route, Route)
        for method in route.methods or "*"
    }
    done = set()
    for path, describe in described.items():
        for operations in describe(writer).values():
            done |= {(path, method.upper()) for method in operations}
    needed = {route for route in routes - NOT_DESCRIBED.keys() if route[1] != "HEAD"}
    assert needed - done == set(), "describe it in streams/openapi, or say why not here"
    assert done - needed == set(), "there is no such route"


def requests(
    run: str, response: str, event: str
) -> list[tuple[int, str, str, str, dict[str, Any]]]:
    """For each operation, and each status that a client can cause: the status, the method, the path
    in the document, the path requested, and options of httpx.
    """
    lines = {"Accept": "application/jsonl"}
    resume = {"Last-Event-ID": event}
    unknown = {"Last-Event-ID": f"{UNKNOWN}.1"}
    streamed = {"stream": True}
    chat = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}], **FAST}
    ask = {"model": "mock", "input": "Hi", **FAST}
    completions, responses = "/v1/chat/completions", "/v1/responses"
    one = f"{responses}/{response}"
    described = f"{responses}/{{response}}"
    friend = {"Friend": "yes"}
    job = "/streams/job"
    return [
        (200, "GET", "/streams", "/streams", {}),
        (200, "GET", "/health", "/health", {}),
        (200, "GET", "/metrics", "/metrics", {}),
        (403, "GET", "/metrics", "/metrics", {"headers": {"Origin": "https://a.example"}}),
        (200, "GET", "/openapi.json", "/openapi.json", {}),
        (401, "GET", "/openapi.json", "/openapi.json", {"headers": {"Authorization": "Bearer x"}}),
        (421, "GET", "/streams", "/streams", {"headers": {"Host": "a.example"}}),
        (200, "GET", job, f"{job}?steps=2&tags=a&tags=b", {}),
        (200, "GET", job, job, {"headers": lines}),
        (200, "GET", job, job, {"headers": {"Accept": "application/x-ndjson"}}),
        (200, "GET", job, job, {"headers": {"Idempotency-Key": "0123456789abcdef"}}),
        (204, "GET", job, job, {"headers": resume}),
        (204, "GET", job, f"{job}?last_event_id={event}", {}),
        (401, "GET", job, job, {"headers": {"Authorization": "Bearer x"}}),
        (403, "GET", job, f"{job}?signature=1..x", {}),
        (403, "GET", job, job, {"headers": {"Origin": "https://a.example"}}),
        (406, "GET", job, job, {"headers": {"Accept": "image/png"}}),
        (410, "GET", job, job, {"headers": unknown}),
        (422, "GET", job, f"{job}?steps=6&speed=1", {}),
        (422, "GET", job, job, {"headers": {"Last-Event-ID": "1"}}),
        (200, "POST", job, job, {"json": {"steps": 1, "options": {"quality": 9}}}),
        (200, "POST", job, job, {}),
        (204, "POST", job, job, {"headers": resume}),
        (413, "POST", job, job, {"json": {"tags": ["x" * 3000]}}),
        (415, "POST", job, job, {"content": "steps=1"}),
        (422, "POST", job, job, {"json": {"options": {"quality": 10}}}),
        (200, "GET", "/streams/words", "/streams/words?text=a+b", {}),
        (422, "GET", "/streams/words", "/streams/words", {}),
        (200, "POST", "/streams/words", "/streams/words", {"json": {"text": "a b"}}),
        (200, "GET", "/streams/named", "/streams/named", {}),
        (200, "POST", "/streams/named", "/streams/named", {"headers": lines}),
        (200, "GET", "/streams/guarded", "/streams/guarded", {"headers": friend}),
        (418, "GET", "/streams/guarded", "/streams/guarded", {}),
        (200, "POST", "/streams/guarded", "/streams/guarded", {"headers": friend}),
        (200, "GET", "/streams/counter", "/streams/counter?count=3&interval=0", {}),
        (200, "POST", "/streams/counter", "/streams/counter", {"json": {"count": 0}}),
        (200, "GET", "/streams/tokens", "/streams/tokens?max_tokens=1&first_token=0", {}),
        (503, "GET", "/streams/tokens", "/streams/tokens?status=503", {}),
        (200, "POST", "/streams/tokens", "/streams/tokens", {"json": FAST}),
        (200, "POST", "/plain/tokens", "/plain/tokens", {"json": FAST}),
        (422, "POST", "/plain/tokens", "/plain/tokens", {"json": {"max_tokens": 0}}),
        (200, "POST", "/topics/news", "/topics/news?user=ann", {"json": {"text": "Done"}}),
        (415, "POST", "/topics/news", "/topics/news?user=ann", {"content": "Done"}),
        (422, "POST", "/topics/news", "/topics/news", {"json": 1}),
        (409, "POST", "/topics/news", "/topics/news?user=bob", {"json": 1}),
        (200, "GET", "/streams/news", "/streams/news?user=bob", {}),
        (200, "POST", "/streams/news", "/streams/news", {"json": {"user": "bob"}}),
        (200, "GET", "/runs", "/runs?status=completed&limit=3", {}),
        (422, "GET", "/runs", "/runs?limit=0", {}),
        (200, "GET", "/runs/{run}", f"/runs/{run}", {}),
        (200, "GET", "/runs/{run}", f"/runs/{run}", {"headers": lines}),
        (200, "GET", "/runs/{run}", f"/runs/{run}", {"headers": {"Accept": "application/json"}}),
        (204, "GET", "/runs/{run}", f"/runs/{run}", {"headers": resume}),
        (404, "GET", "/runs/{run}", f"/runs/{UNKNOWN}", {}),
        (406, "GET", "/runs/{run}", f"/runs/{run}", {"headers": {"Accept": "image/png"}}),
        (410, "GET", "/runs/{run}", f"/runs/{run}", {"headers": {"Last-Event-ID": f"{run}.99"}}),
        (422, "GET", "/runs/{run}", f"/runs/{run}", {"headers": unknown}),
        (204, "DELETE", "/runs/{run}", f"/runs/{run}", {}),
        (404, "DELETE", "/runs/{run}", f"/runs/{UNKNOWN}", {}),
        (200, "GET", "/v1/models", "/v1/models", {}),
        (401, "GET", "/v1/models", "/v1/models", {"headers": {"Authorization": "Bearer x"}}),
        (200, "GET", "/v1/models/{model}", "/v1/models/mock", {}),
        (404, "GET", "/v1/models/{model}", f"/v1/models/{'x' * 300}", {}),
        (200, "POST", completions, completions, {"json": chat}),
        (200, "POST", completions, completions, {"json": {**chat, "stream": True}}),
        (
            200,
            "POST",
            completions,
            completions,
            {"json": {**chat, "stream": True, "fail_after": 1}},
        ),
        (400, "POST", completions, completions, {"json": {"model": "mock", "messages": []}}),
        (413, "POST", completions, completions, {"json": {**chat, "user": "x" * 3000}}),
        (415, "POST", completions, completions, {"content": "x"}),
        (429, "POST", completions, completions, {"json": {**chat, "status": 429}}),
        (200, "POST", responses, responses, {"json": ask}),
        (200, "POST", responses, responses, {"json": {**ask, **streamed}}),
        (400, "POST", responses, responses, {"json": {"model": "mock"}}),
        (200, "GET", described, one, {}),
        (200, "GET", described, f"{one}?stream=true&starting_after=1", {}),
        (400, "GET", described, f"{one}?stream=true&starting_after=x", {}),
        (404, "GET", described, f"{responses}/resp_{UNKNOWN}", {}),
        (200, "GET", f"{described}/input_items", f"{one}/input_items?order=asc", {}),
        (200, "POST", f"{described}/cancel", f"{one}/cancel", {}),
        (200, "DELETE", described, one, {}),
        (404, "DELETE", described, one, {}),
        (200, "GET", "/", "/", {}),
        (200, "GET", "/page/about.json", "/page/about.json", {}),
        (200, "GET", "/page/{file}", "/page/event-stream.js", {}),
        (404, "GET", "/page/{file}", "/page/nope.js", {}),
    ]


async def test_every_answer_is_as_the_document_says() -> None:
    streams = everything()
    async with client_of(mounted(streams)) as client:
        client.headers.update(BEARER)
        conformance = Conformance((await client.get("/live/openapi.json")).json())
        (server,) = conformance.document["servers"]
        client.base_url = client.base_url.join(server["url"])
        await streams.publish("news", {"text": "Hello"}, user="bob")
        await streams.end("news", user="bob")
        first = await client.get("/streams/job")
        event = [*EventSource(first).iter_sse()][-1].id
        asked = await client.post("/v1/responses", json={"model": "mock", "input": "Hi", **FAST})
        run = event.partition(".")[0]
        for status, method, path, url, options in requests(run, asked.json()["id"], event):
            response = await client.request(method, url, **options)
            assert response.status_code == status, f"{method} {url}: {response.text}"
            conformance.check(method, path, response, by_app=status == 418)
        endless = await _beginning(client, "/streams/clock?interval=0.01")
        conformance.check("GET", "/streams/clock", endless)
        conformance.check("POST", "/streams/clock", endless)
    assert conformance.operations - conformance.asked == set()


async def _beginning(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """The response of a stream without end, which is cut after its first events."""
    async with client.stream("GET", url) as response:
        body = b""
        async for piece in response.aiter_raw():
            body += piece
            if body.count(b"\n\n") > 2:
                break
    whole = body.rpartition(b"\n\n")[0] + b"\n\n"
    return httpx.Response(200, headers=response.headers, content=whole, request=response.request)


@dataclasses.dataclass
class Elsewhere:
    """It has the name and another schema than the one above."""

    of: str


Elsewhere.__name__ = Elsewhere.__qualname__ = "Progress"


@source
async def other() -> AsyncIterator[Elsewhere]:
    yield Elsewhere("x")


@source
async def again() -> AsyncIterator[Progress]:
    yield Progress(1, 1)


@source
async def wrong() -> AsyncIterator[Progress]:
    yield {"done": "yes"}  # type: ignore[misc]


async def test_the_checks_above_find_what_is_not_as_the_document_says() -> None:
    async with client_of(Streams([wrong])) as client:
        conformance = Conformance((await client.get("/openapi.json")).json())
        for accept in ("text/event-stream", "application/jsonl"):
            response = await client.get("/streams/wrong", headers={"Accept": accept})
            with pytest.raises(AssertionError, match="an item of GET /streams/wrong"):
                conformance.check("GET", "/streams/wrong", response)
        response = await client.get("/runs")
        del conformance.document["paths"]["/runs"]["get"]["responses"]["403"]
        with pytest.raises(AssertionError, match="answers 403, which is not described"):
            conformance.check("GET", "/runs", response)
        response = await client.get("/streams")
        for name, described in {
            "X-Missing": "without X-Missing",
            "Cache-Control": "'x' was",
        }.items():
            header = {"required": True, "schema": {"const": "x"}}
            answers = conformance.document["paths"]["/streams"]["get"]["responses"]
            answers["200"]["headers"] = {name: header}
            with pytest.raises(AssertionError, match=described):
                conformance.check("GET", "/streams", response)


async def test_each_type_is_one_schema_and_two_types_of_one_name_are_two() -> None:
    document = await document_of(Streams([job, other, again]))
    schemas = document["components"]["schemas"]
    assert schemas["Progress"]["properties"].keys() == {"done", "of"}
    assert schemas["Progress_2"]["properties"] == {"of": {"type": "string"}}
    assert "Progress_3" not in schemas
    data = schemas["again_event"]["properties"]["data"]
    assert data == {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": "#/components/schemas/Progress"},
    }
    assert schemas["other_line"]["properties"]["data"] == {
        "$ref": "#/components/schemas/Progress_2"
    }


class Down(MemoryLog):
    async def check(self) -> None:
        raise StoreDown("the disk is full")


async def test_the_health_of_a_server_without_a_log_is_as_the_document_says() -> None:
    async with client_of(Streams([job], log=Down())) as client:
        conformance = Conformance((await client.get("/openapi.json")).json())
        response = await client.get("/health")
        assert response.status_code == 503
        conformance.check("GET", "/health", response)


@dataclasses.dataclass
class ModelError:
    """It has the name of a schema of the document."""

    reason: str


@source
async def failures() -> AsyncIterator[ModelError]:
    yield ModelError("x")


async def test_a_type_does_not_take_the_place_of_a_schema_of_the_document() -> None:
    streams = Streams([failures], models={"mock": failures})
    async with client_of(streams) as client:
        conformance = Conformance((await client.get("/openapi.json")).json())
        path = "/v1/models/{model}"
        conformance.check("GET", path, await client.get(f"/v1/models/{'x' * 300}"))
        conformance.check("GET", "/streams/failures", await client.get("/streams/failures"))
    assert conformance.document["components"]["schemas"].keys() >= {"ModelError", "ModelError_2"}


async def test_nothing_is_said_of_events_that_a_source_does_not_declare() -> None:
    document = await document_of(Streams([named]))
    schemas = document["components"]["schemas"]
    assert schemas["named_event"]["properties"]["data"] == {"type": "string"}
    assert schemas["named_line"]["properties"]["data"] == {}


async def test_a_query_has_no_parameter_that_only_a_body_can_have() -> None:
    document = await document_of(Streams([job]))
    operations = document["paths"]["/streams/job"]
    given = {p["name"]: p for p in operations["get"]["parameters"] if "name" in p}
    assert given == {
        "steps": {
            "name": "steps",
            "in": "query",
            "description": "How many steps",
            "schema": {"type": "integer", "minimum": 0, "maximum": 5, "default": 2},
        },
        "tags": {
            "name": "tags",
            "in": "query",
            "schema": {"type": "array", "items": {"type": "string"}},
        },
    }
    body = document["components"]["schemas"]["job_parameters"]
    assert body["properties"].keys() == {"steps", "tags", "options", "parts"}
    assert not operations["post"]["requestBody"]["required"]


async def test_the_document_names_the_credentials_that_a_client_needs() -> None:
    document = await document_of(everything())
    assert document["security"] == [{"key": []}]
    schemes = document["components"]["securitySchemes"]
    assert schemes["key"] == {"type": "http", "scheme": "bearer"}
    assert (schemes["signature"]["in"], schemes["signature"]["name"]) == ("query", "signature")
    paths = document["paths"]
    assert paths["/streams/job"]["get"]["security"] == [{"key": []}, {"signature": []}]
    assert "security" not in paths["/streams/job"]["post"]
    for path in ("/", "/health", "/page/{file}"):
        assert paths[path]["get"]["security"] == []
        assert "401" not in paths[path]["get"]["responses"]
    plain = await document_of(Streams([job], secret="s" * 32))
    assert "security" not in plain
    assert plain["paths"]["/streams/job"]["get"]["security"] == [{}, {"signature": []}]
    assert not {"401", "421", "429"} & plain["paths"]["/streams/job"]["get"]["responses"].keys()


@pytest.mark.parametrize(
    ("path", "servers"), [("", None), ("/live", [{"url": "/live"}]), ("/a b", [{"url": "/a%20b"}])]
)
async def test_the_paths_are_those_of_the_mount(path: str, servers: Any) -> None:
    streams = Streams([job])
    async with client_of(mounted(streams, path)) as client:
        response = await client.get(f"{path}/openapi.json")
        assert response.json().get("servers") == servers
        head = await client.head(f"{path}/openapi.json")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == response.headers["content-type"]
        assert (await client.get(f"{path}/openapi.json")).content == response.content


async def test_two_apps_that_are_alike_have_the_same_document() -> None:
    documents = [json.dumps(await document_of(everything())) for _ in range(2)]
    assert documents[0] == documents[1]
