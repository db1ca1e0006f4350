"""API keys, and URLs that the app has signed: the two credentials of a client.

Invariants:

1. With API keys, a client without a key or a signature gets only the page and /health.
2. A request with an invalid `signature` in its query is refused before anything else. So a guard
   may rely on a signature that it finds there, and on the path and the query.
3. An expired signature starts nothing. It can resume a run that exists.
4. Neither a key nor the secret is in an error, in a log, or kept with a run.
"""

import json
import math
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest, digest
from typing import NamedTuple
from urllib.parse import unquote

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import Scope

from streams.arguments import items_of
from streams.errors import InvalidSignature, Unauthorized
from streams.request import last_event_id
from streams.source import EVENT_ID_PARAMETERS, SIGNATURE_PARAMETER

MIN_KEY = 16
MIN_SECRET = 32
"""Characters; fewer could be guessed."""

_SIGNED = "streams.signed"
_SIGNATURE = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]{43})")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_STREAM = re.compile(r"/(?:streams|runs)/[^/]+")


class Signed(NamedTuple):
    """What a valid signature says about its request."""

    owner: str | None
    is_over: bool
    """Whether it has expired: the request may then resume a run, and start nothing."""


class Credentials:
    """The API keys and the secret. Raises TypeError for invalid ones."""

    def __init__(self, api_keys: Sequence[str], secret: str | None) -> None:
        self._hashes = [sha256(key.encode()).digest() for key in _checked_keys(api_keys)]
        self._secret = None if secret is None else _derived(secret)

    @property
    def needs_key(self) -> bool:
        return bool(self._hashes)

    @property
    def can_sign(self) -> bool:
        return self._secret is not None

    def check(self, scope: Scope) -> None:
        """Raises Unauthorized without a valid key or signature, and InvalidSignature."""
        query: bytes = scope.get("query_string", b"")
        # A name may be percent-encoded.
        if query and (b"signature" in query or b"%" in query):
            request = Request(scope)
            if SIGNATURE_PARAMETER in request.query_params:
                scope[_SIGNED] = self._verified(request)
                return
        if self._hashes and not _is_open(scope) and self.identity_of(scope) is None:
            raise _unauthorized(scope)

    def owner_of(self, scope: Scope) -> str | None:
        """The owner that a signed URL names."""
        signed: Signed | None = scope.get(_SIGNED)
        return None if signed is None else signed.owner

    def check_start(self, scope: Scope) -> None:
        """Raises InvalidSignature if a request may only resume a run that exists."""
        signed: Signed | None = scope.get(_SIGNED)
        if signed is not None and signed.is_over:
            raise _over()

    def identity_of(self, scope: Scope) -> str | None:
        """The identity of a client with an API key, which is a hash of the key."""
        if not self._hashes or (key := _bearer_key(scope)) is None:
            return None
        given = sha256(key).digest()
        # All are compared, so that the time says nothing about them.
        found = [compare_digest(given, expected) for expected in self._hashes]
        return f"key:{given.hex()[:32]}" if any(found) else None

    def signed_url(self, path: str, seconds: float, owner: str | None) -> str:
        """See Streams.signed_url."""
        if self._secret is None:
            raise RuntimeError(
                "signed_url() needs Streams(secret=…), or STREAMS_SECRET, one for all workers; "
                "take the random characters of secrets.token_urlsafe(32)"
            )
        plain, _, query = path.partition("?")
        whole, items = unquote(plain).rstrip("/"), QueryParams(query).multi_items()
        is_path = plain.startswith("/") and not plain.startswith("//") and "#" not in path
        is_path = is_path and not _CONTROL.search(path)  # It may get into a header.
        if not is_path or not _STREAM.fullmatch("/" + "/".join(whole.split("/")[-2:])):
            raise ValueError(
                f"{path!r} is not the path of a stream; give one as the client requests it, such "
                "as /streams/answer?prompt=Hello, with the path of a mount before it"
            )
        if any(name == SIGNATURE_PARAMETER for name, _ in items):
            raise ValueError(f"{path!r} has a signature already")
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds={seconds!r}; give a positive number of seconds")
        until = str(math.ceil(time.time() + seconds))
        named = "" if owner is None else _base64(owner.encode())
        mac = self._mac(whole, items, until, named)
        separator = "&" if query else "" if path.endswith("?") else "?"
        return f"{path}{separator}{SIGNATURE_PARAMETER}={until}.{named}.{mac}"

    def _verified(self, request: Request) -> Signed:
        given = request.query_params.getlist(SIGNATURE_PARAMETER)
        found = _SIGNATURE.fullmatch(given[0])
        path = request.scope["path"].rstrip("/")
        route = path.removeprefix(request.scope.get("root_path", ""))
        items = [item for item in items_of(request.query_params) if item[0] != SIGNATURE_PARAMETER]
        if (
            self._secret is None
            or found is None
            or len(given) > 1
            or request.method not in ("GET", "HEAD")
            or not _STREAM.fullmatch(route)
            or not compare_digest(self._mac(path, items, found[1], found[2]), found[3])
        ):
            raise InvalidSignature(
                "the signature is not one for this URL; use the URL as the app has given it, "
                "or ask the app for another one"
            )
        is_over = int(found[1]) < time.time()
        if is_over and last_event_id(request) is None:
            raise _over()
        owner = urlsafe_b64decode(f"{found[2]}==").decode() if found[2] else None
        return Signed(owner, is_over)

    def _mac(self, path: str, items: list[tuple[str, str]], until: str, owner: str) -> str:
        """A client may add the event after which it resumes, and nothing else."""
        assert self._secret is not None
        signed = [item for item in items if item[0] not in EVENT_ID_PARAMETERS]
        message = json.dumps([path, signed, until, owner]).encode()
        return _base64(digest(self._secret, message, "sha256"))


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _checked_keys(keys: Sequence[str]) -> Sequence[str]:
    if isinstance(keys, str):
        raise TypeError("api_keys= is one text; give a list: api_keys=[…]")
    for number, key in enumerate(keys, 1):
        if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key:
            raise TypeError(
                f"api_keys: key {number} is not a text of printable ASCII characters without spaces"
            )
        if len(key) < MIN_KEY:
            raise TypeError(
                f"api_keys: key {number} has {len(key)} characters, and fewer than {MIN_KEY} could "
                "be guessed; take those of secrets.token_urlsafe(32)"
            )
    return keys


def _derived(secret: str) -> bytes:
    """The key of the signatures."""
    if not isinstance(secret, str) or len(secret) < MIN_SECRET:
        has = f"{len(secret)} characters" if isinstance(secret, str) else "another type than text"
        raise TypeError(
            f"secret= has {has}, and fewer than {MIN_SECRET} characters could be guessed; take "
            "those of secrets.token_urlsafe(32)"
        )
    return digest(secret.encode(), b"streams.signed_url", "sha256")


def _is_open(scope: Scope) -> bool:
    """Whether a path needs no key: the page, which then asks for the key, and /health."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in ("/", "/health") or path.startswith("/page/")


def _bearer_key(scope: Scope) -> bytes | None:
    """The key in the Authorization header (RFC 6750, section 2.1)."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, key = given[0].partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else None


def _unauthorized(scope: Scope) -> Unauthorized:
    is_given = any(name == b"authorization" for name, _ in scope["headers"])
    what = "the API key is not one of this server's" if is_given else "this needs an API key"
    error = Unauthorized(f"{what}; send Authorization: Bearer and the key", code="invalid_api_key")
    reason = ', error="invalid_token"' if is_given else ""  # RFC 6750, section 3.1
    error.headers = {"WWW-Authenticate": f'Bearer realm="streams"{reason}'}
    return error


def _over() -> InvalidSignature:
    return InvalidSignature(
        "the time in which this URL could start or join a stream is over; ask the app for another "
        "one"
    )
