"""Tool calls, from the forms in which servers stream them to the one of the contract.

Invariants:

1. The first fragment of a call has an index, an id, a type and a name; each later one has its index
   and more arguments.
2. Calls are numbered from 0, in the order in which they begin.
"""

import json
from secrets import token_hex
from typing import Any

from streams.sources.chat.texts import InvalidChunk, Joiner


class Call:
    def __init__(self, index: int, given: Any) -> None:
        self.index = index
        self.given_index = given
        self.id: str | None = None
        self.name: str | None = None
        self.joiner = Joiner()
        self.held = ""
        """Arguments that came before the name."""


class ToolCalls:
    """The tool calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def __len__(self) -> int:
        return len(self._calls)

    def read(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The fragments in a delta or a whole message. Raises InvalidChunk."""
        given = message.get("tool_calls") or []
        if not isinstance(given, list):
            raise InvalidChunk("whose tool_calls are not a list")
        if function := message.get("function_call"):  # the deprecated form of a single call
            given = [*given, {"index": "function_call", "function": function}]
        fragments = (self._fragment(call) for call in given)
        return [fragment for fragment in fragments if fragment is not None]

    def finish(self) -> list[dict[str, Any]]:
        """What is held back. Raises InvalidChunk for a call without a name."""
        if any(call.name is None for call in self._calls):
            raise InvalidChunk("in which a tool call has no name")
        rests = ((call, call.joiner.finish()) for call in self._calls)
        return [_more(call, rest) for call, rest in rests if rest]

    def _fragment(self, given: Any) -> dict[str, Any] | None:
        function = given.get("function") if isinstance(given, dict) else None
        if not isinstance(function, dict):
            raise InvalidChunk("in which a tool call has no function")
        name = function.get("name") or None
        call = self._call_of(given.get("index"), given.get("id") or None, name)
        arguments = call.joiner.feed(_as_text(function.get("arguments")))
        if call.name is not None:
            return _more(call, arguments) if arguments else None
        call.held += arguments
        if name is None:
            return None
        call.name = str(name)
        call.id = call.id or f"call_{token_hex(12)}"
        described = {"name": call.name, "arguments": call.held}
        return {"index": call.index, "id": call.id, "type": "function", "function": described}

    def _call_of(self, index: Any, id_: Any, name: Any) -> Call:
        """The call that a fragment belongs to.

        Some servers give no index, and others give each call the index 0. A fragment without any
        mark belongs to the newest call.
        """
        newest_first = reversed(self._calls)
        if index is not None:
            found = next((call for call in newest_first if call.given_index == index), None)
            begins = name is not None and id_ is not None and found and found.id not in (None, id_)
        elif id_ is not None:
            found, begins = next((call for call in newest_first if call.id == id_), None), False
        else:
            found, begins = next(newest_first, None), name is not None
        if found is None or begins:
            found = Call(len(self._calls), index)
            self._calls.append(found)
        if found.id is None and id_ is not None:
            found.id = str(id_)
        return found


def _more(call: Call, arguments: str) -> dict[str, Any]:
    return {"index": call.index, "function": {"arguments": arguments}}


def _as_text(arguments: Any) -> str:
    """Arguments as JSON text; some servers send them as an object."""
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except RecursionError:
        raise InvalidChunk("whose arguments of a tool call are nested too deeply") from None
