"""The Python clients: `clients.py NAME URL` prints each event as a line of JSON.

It ends when the client stops by itself.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import httpx
import httpx_sse
import requests
import requests_sse
import sseclient
from aiohttp import ClientPayloadError
from aiohttp_sse_client2.client import EventSource

SOON = timedelta(seconds=0.1)


def show(type_: str | None, event_id: str | None, data: str | None) -> None:
    event = {"type": type_ or "message", "id": event_id, "data": data}
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def with_httpx_sse(url: str) -> None:
    headers: dict[str, str] = {}
    while True:
        try:
            with (
                httpx.Client() as client,
                httpx_sse.connect_sse(client, "GET", url, headers=headers) as stream,
            ):
                for event in stream.iter_sse():
                    show(event.event, event.id, event.data)
                    headers["Last-Event-ID"] = event.id
                return
        except httpx.RemoteProtocolError:
            continue


def with_sseclient(url: str) -> None:
    headers: dict[str, str] = {}
    while True:
        response = requests.get(url, stream=True, headers=headers, timeout=10)
        try:
            for event in sseclient.SSEClient(response.iter_content()).events():
                show(event.event, event.id, event.data)
                headers["Last-Event-ID"] = event.id or ""
        except requests.exceptions.ChunkedEncodingError:
            continue
        return


def with_requests_sse(url: str) -> None:
    with (
        requests_sse.EventSource(url, reconnection_time=SOON, timeout=10) as stream,
        suppress(requests_sse.InvalidStatusCodeError),  # the 204 after the end
    ):
        for event in stream:
            show(event.type, event.last_event_id, event.data)


def with_aiohttp(url: str) -> None:
    async def read(last: str = "") -> None:
        headers = {"Last-Event-ID": last}
        try:
            async with EventSource(url, headers=headers, reconnection_time=SOON) as stream:
                async for event in stream:
                    show(event.type, event.last_event_id, event.data)
                    last = event.last_event_id
        except ClientPayloadError:
            await read(last)
        except ConnectionAbortedError:
            return  # the 204 after the end

    asyncio.run(read())


CLIENTS: dict[str, Callable[[str], None]] = {
    "httpx-sse": with_httpx_sse,
    "sseclient-py": with_sseclient,
    "requests-sse": with_requests_sse,
    "aiohttp-sse-client2": with_aiohttp,
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](sys.argv[2])
