"""Odd requests, as bytes. Number `n` of a seed is always the same request."""

import json
from dataclasses import dataclass
from random import Random
from typing import Any, Literal
from urllib.parse import quote_from_bytes

End = Literal["read", "leave", "abort", "stall"]
"""What the client does: reads the answer; leaves after its first bytes, or without any; or stops
before the end of its body."""

KNOWN = "KNOWN"
"""Stands for the id of a run that exists, where KNOWN0, KNOWN1, … are the runs of the harness."""

ROUTES = [
    *("/", "/streams", "/streams/?", "/streams/?", "/streams/?", "/runs", "/runs/?", "/runs/?"),
    *("/health", "/topics/?", "/topics/room", "/v1/models", "/v1/models/?", "/v1/responses"),
    *("/v1/chat/completions", "/v1/chat/completions", "/page/?", "/openapi.json", "/metrics"),
    *("/own", "/?", "/t/?", "/t/?/streams/?", "/t/?/runs/?", "/t/?/v1/chat/completions"),
]
SEGMENTS = [
    *("counter", "tokens", "clock", "anything", "room", "mock", "event-stream.js", "index.html"),
    *(f"{KNOWN}0", f"{KNOWN}1", f"{KNOWN}2", "A" * 22),
]
NAMES = [
    *("count", "interval", "prompt", "tokens_per_second", "value", "numbers", "number", "flag"),
    *("name", "last_event_id", "lastEventId", "idempotency_key", "key", "key_prefix", "source"),
    *("status", "every", "stop", "model", "messages", "input", "stream", "max_tokens", "n"),
    *("temperature", "tools", "tool_choice", "response_format", "seed", "user", "metadata"),
]
METHODS = ["GET"] * 8 + ["POST"] * 8 + ["HEAD", "DELETE", "DELETE", "OPTIONS", "PUT", "PATCH"]
HEADERS = [
    *("Accept", "Accept", "Last-Event-ID", "Last-Event-ID", "Idempotency-Key", "Cache-Control"),
    *("Origin", "Sec-Fetch-Site", "Sec-Fetch-Dest", "Cookie", "Authorization", "X-Forwarded-Host"),
    *("X-Forwarded-For", "Forwarded", "Accept-Encoding", "Range", "If-None-Match", "Expect-Not"),
    *("Content-Encoding", "Upgrade-Not", "Access-Control-Request-Method", "X-Request-Id", "Te"),
]
VALUES = [
    *("text/event-stream", "application/json", "application/jsonl", "*/*", "text/*;q=0.5", ";q=1"),
    *("no-cache", "cross-site", "same-origin", "null", "https://evil.example", '"quoted"', "gzip"),
    *(f"{KNOWN}0.0", f"{KNOWN}0.1", f"{KNOWN}1.0", f"{KNOWN}2.1", f"{KNOWN}0.9007199254740993"),
    *(f"{'A' * 22}.1", "a-key-of-some-length", "a=b; c=d", "bytes=0-", "," * 300),
]
TEXTS = [
    *(
        "",
        "a",
        "0",
        "1",
        "-1",
        "2",
        "0.01",
        "true",
        "null",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
    ),
    *("9" * 30, "9" * 5000, "Q" * 81, "Q" * 400, "Q" * 9000, "\r\nX-Injected: 1", "\n", "\0"),
    *(
        "\x1b[2J",
        "\x85\u2028\u202e",
        "é☃日本",
        "👩‍👩‍👧‍👦🇩🇪",
        "..",
        "../..",
        "//evil.example",
        "a/b/c",
    ),
    *(
        '"',
        "'",
        "<script>",
        "{tenant}",
        "%",
        "%zz",
        "%25",
        "&&&",
        "==",
        "?#",
        "\\",
        "٣",
        "{}",
        "[]",
    ),
]
JSON_BODIES = [
    *(b"", b"{}", b"[]", b"null", b"1", b'"text"', b"NaN", b"{", b"}", b"[[", b"]]", b"\xff\xfe{}"),
    *(
        b'{"value":1e400}',
        b'{"value":%s}' % (b"9" * 5000),
        b'{"value":"\\ud800"}',
        b'{"\\udfff":1}',
    ),
    *(b'{"value":"\xed\xa0\x80"}', b'{"count":1,"count":"x"}', b'"' + b"\\" * 999, b"[" * 100_000),
    *(b'{"value":' + b"[" * n + b"]" * n + b"}" for n in (63, 64, 960, 990, 995, 2000)),
    b"[" + b"[]," * 30_000 + b"[]]",
    b'{"value":[' + b'"[",' * 45_000 + b"1]}",
    b'{"value":[' + b"1," * 90_000 + b"1]}",
    b'{"value":[' + b"1e300," * 45_000 + b"1]}",
    b'{"model":"mock","messages":[%b]}' % b",".join([b'{"role":"user","content":"Q"}'] * 9000),
    b'{"model":"mock","input":[%b]}' % b",".join([b'{"role":"user","content":"Q"}'] * 9000),
    b'{"model":"mock","input":[%b]}'
    % b",".join(b'{"type":"item_reference","id":"msg_%022d_0"}' % n for n in range(9000)),
    b"[" * 70 + b"]" * 150_000,
    b'{"value":"%s"}' % (b"Q" * 150_000),
    b"{" + b",".join(b'"n%d":1' % n for n in range(5000)) + b"}",
]


@dataclass(frozen=True)
class Request:
    """`head` and `body` go out as they are, and then the client does what `end` says."""

    number: int
    method: str
    target: bytes
    head: bytes
    body: bytes
    end: End

    def __str__(self) -> str:
        data = self.head + self.body
        shown = repr(data[:500])[1:] + ("" if len(data) <= 500 else f"… ({len(data)} bytes)")
        return f"request {self.number}, {self.end}:\n{shown}"


def request(seed: str, number: int) -> Request:
    random = Random(f"{seed}/{number}")
    method = random.choice(METHODS)
    if random.random() < 0.03:
        method = random.choice(["QUERY", "get", "X" * 200, "PROPFIND", "CONNECT", "TRACE"])
    target = _target(random)
    body = _body(random) if method in ("POST", "PUT", "PATCH") or random.random() < 0.05 else b""
    end: End = random.choices(["read", "leave", "abort", "stall"], [80, 10, 7, 3])[0]  # type: ignore[assignment]
    version = b"1.0" if random.random() < 0.05 else b"1.1"
    head = b"%b %b HTTP/%b\r\n" % (method.encode(), target, version)
    head += b"".join(b"%b: %b\r\n" % header for header in _headers(random))
    if body or end == "stall":
        head += _content_type(random)
        if version == b"1.1" and end != "stall" and random.random() < 0.2:
            head += b"Transfer-Encoding: chunked\r\n"
            body = _chunked(random, body)
        else:
            missing = 6 if end == "stall" else 0
            head += b"Content-Length: %d\r\n" % (len(body) + missing)
    return Request(number, method, target, head + b"\r\n", body, end)


def _text(random: Random) -> str:
    """A text that is odd, or likely to be taken."""
    kind = random.random()
    if kind < 0.7:
        return random.choice(TEXTS)
    if kind < 0.9:
        return "".join(random.choices(TEXTS[:14] + TEXTS[19:], k=random.randint(1, 4)))
    return "".join(chr(random.randint(0, 0x2FFF)) for _ in range(random.randint(1, 30)))


def _target(random: Random) -> bytes:
    path = random.choice(ROUTES)
    while "?" in path:
        segment = random.choice(SEGMENTS) if random.random() < 0.8 else _quoted(random)
        path = path.replace("?", segment, 1)
    query = _query(random) if random.random() < 0.6 else ""
    target = path.encode("latin-1") + (b"?" + query.encode("latin-1") if query else b"")
    match random.randint(0, 60):
        case 0:
            return b"http://127.0.0.1" + target
        case 1:
            return target + bytes(random.choices(range(0x21, 0x100), k=9))
        case 2:
            return b"*"
        case 3:
            return b"/" + target
    return target


def _quoted(random: Random) -> str:
    """A part of a URL, which may be invalid UTF-8."""
    if random.random() < 0.1:
        return random.choice(["%ED%A0%80", "%FF", "%C3", "%00", "%0D%0AX-Injected:%201", "%2F%2F"])
    return quote_from_bytes(_text(random).encode("utf-8", "surrogatepass"), safe="")


def _query(random: Random) -> str:
    if random.random() < 0.03:
        return "&".join(f"n{n}=1" for n in range(random.choice([100, 101, 8000])))
    pairs = []
    for _ in range(random.randint(1, 4)):
        name = random.choice(NAMES) if random.random() < 0.9 else _quoted(random)
        value = random.choice(VALUES) if random.random() < 0.2 else None
        quoted = _quoted(random) if value is None else quote_from_bytes(value.encode(), safe="")
        pairs.append(name if random.random() < 0.03 else f"{name}={quoted}")
    return "&".join(pairs)


def _headers(random: Random) -> list[tuple[bytes, bytes]]:
    host = random.choice(
        [b"127.0.0.1", b"localhost:80", b"evil.example", b"", b"[::1]", b"Q" * 200]
    )
    headers = [(b"Host", b"127.0.0.1" if random.random() < 0.9 else host)]
    for _ in range(random.choice([0, 0, 1, 1, 2, 3, 8])):
        name = random.choice(HEADERS)
        value = random.choice(VALUES) if random.random() < 0.7 else _text(random)
        data = value.encode("utf-8")
        # A line end, or NUL, would be another request.
        headers.append((name.encode(), data.translate(None, b"\r\n\0")))
    if random.random() < 0.02:
        headers.append((b"Last-Event-ID", bytes(random.choices(range(0x80, 0x100), k=20))))
    return [*headers, (b"Connection", b"close")]


def _content_type(random: Random) -> bytes:
    if random.random() < 0.85:
        return b"Content-Type: application/json\r\n"
    odd = [b"text/plain", b"application/x+json", b"", b"Q" * 300, b"application/json; a=\xff", b";"]
    return b"Content-Type: %b\r\n" % random.choice(odd)


def _chunked(random: Random, body: bytes) -> bytes:
    size = random.choice([1 + len(body) // 3, 50_000])
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _body(random: Random) -> bytes:
    kind = random.random()
    if kind < 0.15:
        return random.choice(JSON_BODIES)
    value: Any = {}
    if kind < 0.5:  # a request that is likely to be taken, with something odd in it
        value = {"model": "mock", "messages": [{"role": "user", "content": _text(random)}]}
        if random.random() < 0.3:
            value = {"model": "mock", "input": _text(random)}
        value |= {"stream": random.random() < 0.5, "max_tokens": 3}
    elif kind < 0.7:
        value = {"count": 1, "interval": 0.01}
    for _ in range(random.choice([0, 0, 1, 1, 2, 3])):
        name = random.choice(NAMES) if random.random() < 0.8 else _text(random)
        value[name] = _value(random, 4)
    body = json.dumps(value).encode()
    if random.random() < 0.1:
        at = random.randrange(len(body))
        body = body[:at] + bytes(random.choices(range(0x100), k=2)) + body[at + 1 :]
    return body


def _value(random: Random, depth: int) -> Any:
    kind = random.randint(0, 9 if depth else 6)
    if kind < 3:
        return _text(random)
    if kind == 3:
        return random.choice([0, 1, -1, 2**53 + 1, 2**64, 10**40, -(2**63), 1.5, 1e300, 1e-300])
    if kind < 6:
        return random.choice(
            [None, True, False, "user", "system", "function", "auto", "json_object"]
        )
    if kind == 6:
        return random.choice([[], {}, [{}], [[]], {"type": "text", "text": "Hi"}])
    if kind < 9:
        return {
            random.choice([*NAMES, "type", "role", "content", "function"]): _value(
                random, depth - 1
            )
            for _ in range(random.randint(0, 3))
        }
    return [_value(random, depth - 1) for _ in range(random.randint(0, 3))]
