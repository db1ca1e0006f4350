"""A guard: a function of an app that decides whether a request is let in."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request

Arguments = Mapping[str, Any]
"""All arguments of a source or topic, checked and with the defaults."""

Guard = Callable[[Request], Any] | Callable[[Request, Arguments], Any]
"""Raises for a request that it does not let in. Sync, in a thread, or async.

One that has a second parameter without a default gets the arguments of the run, too.
"""


def takes_arguments(guard: Any, name: str) -> bool:
    """Whether a guard takes the arguments. `name` is its name in an error message.

    Raises TypeError for what is no function of a request, or of a request and the arguments.
    """
    if not callable(guard):
        raise TypeError(f"{name} is a function of the request, not {guard!r}")
    try:
        signature = inspect.signature(guard)
    except ValueError:  # A function written in C may have none.
        return False
    for given in (1, 2):
        try:
            signature.bind(*[None] * given)
        except TypeError:
            continue
        return given == 2
    raise TypeError(
        f"{name} takes the request, or the request and the arguments of the source: write "
        f"guard(request) or guard(request, arguments), not {guard!r} with {signature}"
    )
