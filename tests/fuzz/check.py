"""What an answer must be, whatever was asked."""

import json
import re
from typing import Any

from tests.fuzz.requests import Request

HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\x20-\x7e]*")
LONG = re.compile(r"Q{81}")

# What the server, and Starlette around a mount, answer before an app of ours is asked.
OF_OTHERS = {b"Invalid HTTP request received.", b"Not Found", b"Method Not Allowed"}


def fault_of(request: Request, received: bytes) -> str | None:
    """What is wrong with an answer, whole or cut; None if nothing is."""
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    found = re.fullmatch(rb"HTTP/1\.1 (\d{3}) ?[\x20-\x7e]*", status_line)
    if found is None:
        return f"no status line: {received[:200]!r}"
    status = int(found[1])
    headers: dict[str, str] = {}
    for line in lines:
        if not HEADER.fullmatch(line):
            return f"an invalid header: {line[:200]!r}"
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.strip().decode()
    if "x-injected" in headers:
        return "a header was injected"
    if status < 400:
        return _fault_of_success(request, status, headers)
    path = request.target.removeprefix(b"http://127.0.0.1")
    is_inside = path.startswith((b"/own", b"/t/"))
    if body in OF_OTHERS and (is_inside or status == 400):
        return None
    return _fault_of_refusal(request, status, headers, body)


def _fault_of_success(request: Request, status: int, headers: dict[str, str]) -> str | None:
    if 300 <= status < 400 and not headers.get("location", "").startswith("./"):
        return f"a redirect to {headers.get('location')!r}"
    if status in (200, 307, 204):
        return None
    return f"an unexpected status {status}"


def _fault_of_refusal(
    request: Request, status: int, headers: dict[str, str], body: bytes
) -> str | None:
    if status in (429, 503) and not headers.get("retry-after", "").isdecimal():
        return f"a {status} without a Retry-After"
    if status == 405 and not headers.get("allow"):
        return "a 405 without Allow"
    if request.method == "HEAD":
        return None
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return f"a {status} that is not JSON: {body[:200]!r}"
    if LONG.search(body.decode()):
        return f"a {status} that repeats a long text: {body[:300]!r}"
    if len(body) > 20_000:
        return f"a {status} of {len(body)} bytes"
    if isinstance(answer, dict) and set(answer) == {"error"}:
        error = answer["error"]
        complete = isinstance(error, dict) and {"message", "type", "param", "code"} <= set(error)
        detail = error.get("message") if complete else None
    else:
        if headers.get("content-type") != "application/problem+json":
            return f"a {status} that is {headers.get('content-type')}"
        complete = {"type", "title", "status", "detail"} <= set(answer)
        complete = complete and answer["status"] == status and bool(answer["title"])
        detail = answer.get("detail")
    if not complete or not isinstance(detail, str) or not detail:
        return f"a {status} that is no whole problem: {body[:300]!r}"
    if status >= 500 and not _is_meant(status, detail):
        return f"a {status}: {detail}"
    return None


def _is_meant(status: int, detail: str) -> bool:
    """Whether a 5xx says that it passes, or that the request asked the mock to fail."""
    return (status == 503 and "try again" in detail) or "as requested" in detail
