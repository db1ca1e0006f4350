"""What `make run` serves: `app`, a Streams made from settings in the environment.

Each option of Streams is a variable, STREAMS_ and its name in capitals: an empty one is None,
lists have commas. STREAMS_SOURCES are import strings. LLM_BASE_URL, LLM_MODEL,
LLM_API_KEY and LLM_TIMEOUT make the source `chat`. What cannot be is one line at start.
"""

import logging
import os
from collections.abc import Mapping
from multiprocessing import current_process
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.config import Config
from uvicorn.importer import ImportFromStringError, import_from_string

from streams import Policy, Source, StreamError, Streams

BUILT_IN = ["streams.sources:counter", "streams.sources:tokens", "streams.sources:clock"]

MOCKS = {"tokens": "mock"}
"""The sources that are models for OpenAI's clients, too, and under which name."""

OPTIONS: dict[str, Any] = {
    **{field.name: field.type for field in msgspec.structs.fields(Policy)},
    "log": str,
    "max_runs": Annotated[int, Meta(ge=1)],
    "max_bytes": Annotated[int, Meta(ge=1)],
    "max_body": Annotated[int, Meta(ge=0)],
    "origins": list[str],
    "page": bool,
    "sources": list[str],
}


def options(environ: Mapping[str, str]) -> dict[str, Any]:
    """The options of Streams that the environment sets. Raises SystemExit naming a wrong one."""
    config = Config(environ=environ, env_prefix="STREAMS_")
    given: dict[str, Any] = {}
    for name, type_ in OPTIONS.items():
        text = config(name.upper(), default=None)
        if text is not None:
            given[name] = _parsed(name, text, type_)
    given["sources"] = [_imported(name) for name in given.get("sources", BUILT_IN)]
    models = {MOCKS[s.name]: s for s in given["sources"] if s.name in MOCKS}
    if environ.get("LLM_BASE_URL") or environ.get("LLM_MODEL"):
        model, chat = _chat(Config(environ=environ, env_prefix="LLM_"))
        given["sources"].append(chat)
        models = {model: chat, **models}
    return {**given, "models": models}


def _parsed(name: str, text: str, type_: Any) -> Any:
    has_commas = getattr(type_, "__origin__", None) in (list, tuple)
    value = [part.strip() for part in text.split(",") if part.strip()] if has_commas else text
    try:
        return msgspec.convert(value if has_commas else value or None, type_, strict=False)
    except msgspec.ValidationError as error:
        raise SystemExit(f"STREAMS_{name.upper()}={text!r} cannot be: {error}") from None


def _chat(config: Config) -> tuple[str, Source]:
    """The real model that is configured, and the source of its answers."""
    url, model = config("BASE_URL", default=""), config("MODEL", default="")
    if not url or not model:
        raise SystemExit("LLM_BASE_URL and LLM_MODEL: give both, or neither")
    try:
        chat_with = import_from_string("streams.sources.chat:chat_with")
    except ImportError:
        raise SystemExit("LLM_BASE_URL needs httpx and httpx-sse: the extra llm") from None
    try:
        key, timeout = config("API_KEY", default=""), config("TIMEOUT", cast=float, default=60)
        return model, chat_with(url, model, api_key=key, timeout=timeout)
    except ValueError as error:
        raise SystemExit(f"LLM_BASE_URL, LLM_API_KEY, LLM_TIMEOUT: {error}") from None


def _imported(name: str) -> Source:
    try:
        source = import_from_string(name)
    except ImportFromStringError as error:
        raise SystemExit(f"STREAMS_SOURCES: {error}") from None
    if not isinstance(source, Source):
        raise SystemExit(f"STREAMS_SOURCES: {name} is not a source: decorate it with @source")
    return source


def served(environ: Mapping[str, str]) -> Streams:
    """Streams as the environment wants it. Raises SystemExit saying what cannot be."""
    given = options(environ)
    workers = environ.get("WORKERS") or environ.get("WEB_CONCURRENCY") or "1"
    first_or_only = not current_process().name.startswith("SpawnProcess") or (
        current_process().name == "SpawnProcess-1"
    )
    if workers != "1" and not given.get("log") and first_or_only:
        logging.getLogger("uvicorn.error").warning(
            "%s workers without STREAMS_LOG=redis://…: each has a log of its own, and only "
            "restartable sources go on for a client that comes to another one",
            workers,
        )
    try:
        return Streams(**given)
    except (ImportError, StreamError, ValueError) as error:
        raise SystemExit(f"STREAMS_LOG cannot be: {error}") from None  # it may have a password


app = served(os.environ)
