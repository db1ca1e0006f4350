"""Policy: how runs and their readers are treated."""

from collections.abc import Iterable
from typing import Annotated, TypedDict

import msgspec
from msgspec import Meta

from streams.declaration import did_you_mean

Seconds = Annotated[float, Meta(ge=0, le=10**9)]
Interval = Annotated[float, Meta(ge=0.01, le=86_400)]
Bytes = Annotated[int, Meta(ge=0)]


class PolicyOptions(TypedDict, total=False):
    """The options of a Policy, as keyword arguments."""

    heartbeat: float
    retry: tuple[float, float]
    linger: float | None
    retain: float
    window: int
    send_timeout: float
    max_shared: int


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run and its readers are treated: defaults on Streams, exceptions per source."""

    heartbeat: Interval = 15.0
    """Seconds between the comment lines that keep an idle connection open."""
    retry: tuple[Seconds, Seconds] = (1.0, 3.0)
    """Seconds that a client waits before it reconnects: a random value in this range."""
    linger: Seconds | None = 30.0
    """Seconds that a run continues without readers before it is cancelled. None: to its end."""
    retain: Seconds = 300.0
    """Seconds that a finished run stays readable."""
    window: Bytes = 2**20
    """Bytes that a run may be ahead of its slowest reader, and a shared run of its fastest. Its log
    holds about this much; a reader of a shared run that falls back further gets a `gap`."""
    send_timeout: Interval = 30.0
    """Seconds after which a client that accepts no data is disconnected."""
    max_shared: Annotated[int, Meta(ge=1)] = 100
    """How many runs a shared source has at once on one worker, each with other parameters."""

    def replace(self, changes: PolicyOptions, of: str, others: Iterable[str] = ()) -> "Policy":
        """A copy with `changes`.

        Raises TypeError for an unknown option and for an invalid value. `of` names in it whose
        options these are, and `others` are options that are not of the policy, but may be meant.
        """
        for name in changes:
            if name not in self.__struct_fields__:
                options = ", ".join(self.__struct_fields__)
                guess = did_you_mean(name, (*self.__struct_fields__, *others))
                raise TypeError(
                    f"{name!r} is not an option of {of}{guess or ';'} policy options: {options}"
                )
        try:
            return msgspec.convert({**msgspec.structs.asdict(self), **changes}, Policy)
        except msgspec.ValidationError as error:
            raise TypeError(f"policy of {of}: {error}") from None
