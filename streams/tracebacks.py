"""Tracebacks in the log. The message of an exception may be a client's text.

Invariants:

1. No line of a traceback can be taken for another record: each one is indented.
2. No control character gets into the log.
3. The length of a traceback is bounded.
"""

import logging
import re

from streams.errors import MAX_LOGGED

INDENT = "    "
MAX_LINE = MAX_LOGGED + 100
"""Characters of a line: its message, and what is before that."""

MAX_LINES = 200

_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def with_safe_tracebacks(logger: logging.Logger) -> logging.Logger:
    """A logger, which formats the tracebacks of its own records in this way from now on."""
    logger.addFilter(_format_traceback)
    return logger


def _format_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and not record.exc_text:
        text = logging.Formatter().formatException(record.exc_info)
        record.exc_text = safe_traceback(text)  # A formatter takes it as it is.
    return True


def safe_traceback(text: str) -> str:
    """A traceback whose lines are indented, short and without control characters."""
    lines = text.split("\n")
    if (more := len(lines) - MAX_LINES) > 0:
        half = MAX_LINES // 2
        lines = [*lines[:half], f"… {more} more lines", *lines[-half:]]
    return "\n".join(map(_line, lines))


def _line(line: str) -> str:
    shown = line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"
    return INDENT + _CONTROLS.sub(lambda found: repr(found[0])[1:-1], shown)
