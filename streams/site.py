"""Which pages may use this server, and by which names.

A browser sends the cookies of its user, and reaches servers in the user's network, for any page
that asks. So a page of another site must not start runs, and nor must one that has made its own
name point to this server (DNS rebinding).

Invariants:

1. A page whose origin is not allowed starts, joins and stops nothing.
2. No image, frame, script or other element of a page starts or joins a stream: only fetch and
   EventSource do, and a user who opens its URL.
3. No origin but those that are named gets an answer to a request with cookies or a key.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Scope

from streams.errors import CrossSite, UnknownHost, abbreviated

ALL = "*"

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_PORTS = {"http": "80", "https": "443"}

_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::([0-9]*))?")

_OF_PAGES = frozenset({b"sec-fetch-site", b"sec-fetch-dest", b"origin"})
_CREDENTIALS = frozenset({b"cookie", b"authorization"})


class Site:
    """The origins whose pages may use this server, and the names that it answers to.

    `hosts` is None for all names. Raises TypeError for an invalid origin or name.
    """

    def __init__(self, origins: Sequence[str], hosts: Sequence[str] | None) -> None:
        self.origins = _checked_origins(origins)
        self._hosts = None if hosts is None else _checked_hosts(hosts)

    @property
    def allows_all(self) -> bool:
        """Whether pages of all origins may use this server, without cookies and keys."""
        return ALL in self.origins

    @property
    def checks_hosts(self) -> bool:
        """Whether there are names in the Host header that it does not answer to."""
        return self._hosts is not None

    def check_host(self, scope: Scope) -> None:
        """Raises UnknownHost for a name in the Host header that this server does not have.

        An IP address and a name of the machine itself are let in: nobody can make them point
        elsewhere.
        """
        if self._hosts is None:
            return
        for name, value in scope["headers"]:
            if name != b"host" or not value:
                continue
            host = value.decode("latin-1")
            given, _ = _host_and_port(host)
            if given in self._hosts or _is_fixed(given):
                continue
            shown = abbreviated(host)
            line = f'hosts=["{given}"] of Streams, or STREAMS_HOSTS={given}, allows it'
            if len(given) > len(shown) or not _NAME.fullmatch(given):
                line = "the option hosts of Streams has its names"
            raise UnknownHost(f"this server does not answer to the host name {shown}; {line}")

    def check_page(self, scope: Scope) -> None:
        """Raises CrossSite for a page that may not start, join or stop anything here.

        A browser says with Sec-Fetch-Site what a page is to this server, but only over TLS and on
        its own machine. Otherwise there is an Origin, except for a GET of the server's own pages
        and of elements.
        """
        headers = {name: value for name, value in scope["headers"] if name in _OF_PAGES}
        if not headers or scope["method"] == "OPTIONS":
            return
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if self._is_foreign(scope, site, origin):
            self._check_origin(scope, None if origin is None else origin.decode("latin-1"))
        purpose = headers.get(b"sec-fetch-dest", b"empty")
        is_opened = purpose == b"document" and site in (b"same-origin", b"none")
        if purpose != b"empty" and not is_opened and scope["method"] in ("GET", "HEAD"):
            raise CrossSite(
                f"a page wants this as {abbreviated(purpose.decode('latin-1'))} "
                "(Sec-Fetch-Dest); streams are for fetch and EventSource"
            )

    def _is_foreign(self, scope: Scope, site: bytes | None, origin: bytes | None) -> bool:
        if site is not None:
            return site not in (b"same-origin", b"none")
        return origin is not None and not _is_own(origin.decode("latin-1"), scope)

    def _check_origin(self, scope: Scope, origin: str | None) -> None:
        if origin in self.origins:
            return
        has_credentials = any(name in _CREDENTIALS for name, _ in scope["headers"])
        if self.allows_all and not has_credentials:
            return
        if origin is None or not _ORIGIN.fullmatch(origin):
            named = "" if origin is None else f", of the origin {abbreviated(origin)},"
            raise CrossSite(
                f"a page of another site{named} may not do this; a page may use fetch or "
                'EventSource if it has an origin and that is allowed, as origins=["https://…"] of '
                "Streams"
            )
        shown = abbreviated(origin)
        line = f'origins=["{origin}"] of Streams, or STREAMS_ORIGINS={origin}, allows it'
        if len(origin) > len(shown):
            line = "the option origins of Streams allows it"
        without = " with cookies or a key" if self.allows_all else ""
        raise CrossSite(f"a page of {shown} may not do this{without}; {line}")

    def with_cors(self, app: ASGIApp) -> ASGIApp:
        """An app whose answers pages of the origins may read; with cookies, unless all may."""
        return CORSMiddleware(
            app,
            allow_origins=list(self.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # Clients of OpenAI's API send a dozen of their own.
            allow_credentials=not self.allows_all,
            expose_headers=["Content-Location", "Retry-After"],
        )


def _is_fixed(name: str) -> bool:
    """Whether a host is an IP address or the machine itself, whoever is asked."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_own(origin: str, scope: Scope) -> bool:
    """Whether an origin is that of this server, apart from the scheme, which a proxy may change."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:  # For instance "null".
        return False
    default = _PORTS.get(found[1], "")
    own = (found[2], found[3] or default)
    return any(
        (name, port or default) == own for name, port in map(_host_and_port, _hosts_of(scope))
    )


def _hosts_of(scope: Scope) -> list[str]:
    """The Host header, and what a proxy has made of it if the server trusts the proxy.

    The server then takes the client's address from X-Forwarded-For, which has no port: uvicorn's
    option --forwarded-allow-ips says whom it trusts, and so do hypercorn's and granian's.
    """
    trusts_proxy = scope.get("client") is not None and scope["client"][1] == 0
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    hosts = [headers.get(b"host", b"")]
    if trusts_proxy:
        hosts.append(headers.get(b"x-forwarded-host", b"").rpartition(b",")[2].strip())
    return [host.decode("latin-1") for host in hosts if host]


def _host_and_port(host: str) -> tuple[str, str]:
    """The name, or address, and the port ("" if there is none) of a Host header."""
    found = _HOST.fullmatch(host)
    return ("", "") if found is None else (_name(found[1]), found[2] or "")


def _checked_origins(origins: Sequence[str]) -> frozenset[str]:
    if origins == ALL:
        return frozenset((ALL,))
    if isinstance(origins, str):
        raise TypeError(f"origins={origins!r} is one text; give a list: origins=[{origins!r}]")
    for origin in origins:
        if origin == ALL:
            if len(origins) > 1:
                raise TypeError(
                    'origins: "*" stands alone, because it admits no cookies and keys; give either '
                    "it or the origins"
                )
            continue
        found = _ORIGIN.fullmatch(origin) if isinstance(origin, str) else None
        if found is None or found[3] == _PORTS.get(found[1], ""):
            raise TypeError(
                f"origins: {abbreviated(origin)} is not an origin as browsers send it; write "
                '"https://name" or "https://name:port", in lower case, without a default port and '
                'a path, or "*" alone for all'
            )
    return frozenset(origins)


def _checked_hosts(hosts: Sequence[str]) -> frozenset[str] | None:
    if hosts == ALL:
        return None
    if isinstance(hosts, str):
        raise TypeError(f"hosts={hosts!r} is one text; give a list: hosts=[{hosts!r}]")
    if ALL in hosts:
        return None
    for host in hosts:
        if not isinstance(host, str) or not _NAME.fullmatch(_name(host)):
            raise TypeError(
                f"hosts: {abbreviated(host)} is not a host name; write it without a scheme, a port "
                'and a path, such as "streams.example.org", or "*" for all'
            )
    return frozenset(map(_name, hosts))


def _name(host: str) -> str:
    return host.lower().removesuffix(".")
