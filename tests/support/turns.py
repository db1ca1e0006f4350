"""Coroutines that wait for nothing but turns of the event loop, in tests that have none."""

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that only gives turns."""
    return turns_and_result(coroutine)[1]


def turns_and_result(coroutine: Coroutine[Any, Any, T]) -> tuple[int, T]:
    """How many turns a coroutine gives, and its result."""
    turns = 0
    while True:
        try:
            coroutine.send(None)
        except StopIteration as done:
            return turns, done.value
        turns += 1
