"""Admission: how many readers and running runs each client has.

A client is an identity, an address, or both: then each is limited by itself. The counts are those
of one worker.

Invariant: a request or a run no longer counts when it is over, however it ends.
"""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from starlette.requests import Request
from starlette.types import Scope

from streams.errors import TooManyRequests

AddressOf = Callable[[Request], str | None]

_READER = "streams.reader"


class Quota:
    """Counts something for each client: at most `limit`, or any number if it is None."""

    def __init__(self, limit: int | None, what: str) -> None:
        self._limit = limit
        self._what = what
        self._taken: dict[str, int] = {}

    def check(self, clients: Sequence[str]) -> None:
        """Raises TooManyRequests if one of the clients has reached the limit."""
        if self._limit is None:
            return
        for client in clients:
            if self._taken.get(client, 0) >= self._limit:
                kind, _, _ = client.partition(" ")
                raise TooManyRequests(
                    f"your {kind} has {self._limit} {self._what} at once, which is the limit "
                    f"(max_per_client); end one, or try again in {TooManyRequests.retry_after} s"
                )

    def take(self, clients: Sequence[str]) -> None:
        """Counts one for each of the clients. Raises TooManyRequests."""
        self.check(clients)
        for client in clients:
            self._taken[client] = self._taken.get(client, 0) + 1

    def give_back(self, clients: Sequence[str]) -> None:
        for client in clients:
            if (left := self._taken.pop(client, 0) - 1) > 0:
                self._taken[client] = left


class Clients:
    """The readers and the runs of each client: at most `limit` of both, or any number.

    `address` says which address a client has, if addresses are to be limited. Raises TypeError if
    it cannot be called, and for a limit that is not a positive number.
    """

    def __init__(self, limit: int | None, address: AddressOf | None) -> None:
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise TypeError(
                f"max_per_client={limit!r} is no limit: give a number from 1 on, or None for none"
            )
        if address is not None and not callable(address):
            raise TypeError(f"address= of Streams is a function of the request, not {address!r}")
        self.limited = limit is not None
        self._address = address
        self.readers = Quota(limit, "streams open")
        self.runs = Quota(limit, "runs running")

    def enter(self, request: Request, owner: str | None) -> Sequence[str]:
        """Counts a reader until `leave`. Returns the names by which its client is counted.

        Raises TooManyRequests.
        """
        clients = [] if owner is None else [f"identity {owner}"]
        if self._address is not None and (address := self._address(request)) is not None:
            clients.append(f"address {address}")
        leave(request.scope)  # One request is one reader.
        self.readers.take(clients)
        request.scope[_READER] = (self.readers, clients)
        return clients


def leave(scope: Scope) -> None:
    """Stops counting the reader of a request that is over."""
    if (taken := scope.pop(_READER, None)) is not None:
        quota, clients = taken
        quota.give_back(clients)


def client_address(request: Request) -> str | None:
    """The address by which an anonymous client is limited: of IPv6, the network /64.

    None for an unknown address, and for a loopback or private one, which may be a proxy's. The
    address comes from the server. If there is a proxy, let the server trust its X-Forwarded-For
    (uvicorn: --forwarded-allow-ips).
    """
    address: IPv4Address | IPv6Address
    try:
        address = ip_address(request.client.host if request.client else "")
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if not address.is_global:
        return None
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), 64), strict=False))
    return str(address)
