"""Settings: a Streams from environment variables.

Each option of Streams but functions and `models` is a variable: STREAMS_ and its name in capitals.
An empty variable means None; lists are separated by commas. STREAMS_SOURCES are import strings,
`package.module:name`. LLM_BASE_URL, LLM_MODEL, LLM_API_KEY and LLM_TIMEOUT configure the source
`chat`.

Without STREAMS_LOG, the log is the file streams.db in the working directory; with
STREAMS_LOG=memory, or an empty one, it is in memory.

An invalid setting ends the process with status 2 and a one-line message that names it. So does a
variable that looks like a misspelt setting.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module
from multiprocessing import current_process
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.config import Config

from streams import Policy, Source, StreamError, Streams, Topic, client_address
from streams.errors import UnsuitablePlace

BUILT_IN = ["streams.sources:counter", "streams.sources:tokens", "streams.sources:clock"]

MOCKS = {"tokens": "mock"}
"""The sources that OpenAI's clients may use as models too, and the model names."""

OPTIONS: dict[str, Any] = {
    **{field.name: field.type for field in msgspec.structs.fields(Policy)},
    "log": str | None,
    "max_runs": Annotated[int, Meta(ge=1)],
    "max_bytes": Annotated[int, Meta(ge=1)],
    "max_per_client": Annotated[int, Meta(ge=1)] | None,
    "max_threads": Annotated[int, Meta(ge=1)],
    "max_body": Annotated[int, Meta(ge=0)],
    "body_timeout": Annotated[float, Meta(gt=0)],
    "origins": list[str],
    "hosts": list[str],
    "api_keys": list[str],
    "secret": str | None,
    "metrics": bool,
    "page": bool,
    "sources": list[str],
}

MAX_PER_CLIENT = 100

NO_DEFAULT_LOG = (
    "%s. Until then, runs are kept in memory, and end with this process. STREAMS_LOG=memory says "
    "that this is intended, and STREAMS_LOG=sqlite:/path/runs.db names another file"
)

LLM_OPTIONS = ["BASE_URL", "MODEL", "API_KEY", "TIMEOUT"]

logger = logging.getLogger("streams")


class InvalidSetting(SystemExit):
    """Ends the process with status 2. Its text is one line for the operator."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = 2


def configured(environ: Mapping[str, str]) -> Streams:
    """The Streams that the environment describes. Raises InvalidSetting."""
    return _streams(options(environ))


def from_environ(environ: Mapping[str, str]) -> Streams:
    """`configured`, which also prints the line of an InvalidSetting to stderr."""
    try:
        return configured(environ)
    except InvalidSetting as invalid:
        sys.stderr.write(f"{invalid}\n")
        raise


def app() -> Streams:
    """The app of each process of a server with several processes."""
    return from_environ(os.environ)


def publisher(
    environ: Mapping[str, str], name: str, log: str | None
) -> tuple[Streams, Topic[..., Any]]:
    """A Streams that publishes to one topic, in the log of the server, and that topic.

    `name` is the topic's among STREAMS_SOURCES, or an import string. `log` replaces STREAMS_LOG.
    Raises InvalidSetting.
    """
    given = options(environ if log is None else {**environ, "STREAMS_LOG": log})
    if ":" in name:
        topic = _import(name, "TOPIC")
        if "log" not in given:
            raise InvalidSetting(f"name the log of the server that has the topic {name}: --log URL")
    else:
        named = [source for source in given["sources"] if source.name == name]
        if not named:
            raise InvalidSetting(
                f"no topic of STREAMS_SOURCES has the name {name!r}: set that as for the server, "
                "or write where the topic is declared, as package.module:name"
            )
        (topic,) = named
    if not isinstance(topic, Topic):
        raise InvalidSetting(f"{name} is a source, and nobody can publish to it: name a topic")
    given.setdefault("log", _default_log(given["sources"]))
    return _streams({**given, "sources": [topic], "models": {}}), topic


def _streams(given: dict[str, Any]) -> Streams:
    given = {"address": client_address, **given}
    try:
        # A server on its user's own machine needs no other name than localhost.
        given = {"hosts": [], "metrics": True, **given}
        if "log" in given:
            return Streams(**given)
        try:
            return Streams(log=_default_log(given["sources"]), **given)
        except (ImportError, UnsuitablePlace) as error:
            if current_process().name in ("MainProcess", "SpawnProcess-1"):  # the first worker
                logger.warning(NO_DEFAULT_LOG, error)
            return Streams(**given)
    except (ImportError, StreamError, ValueError) as error:
        raise InvalidSetting(f"STREAMS_LOG: {error}") from None  # The URL may contain a password.
    except TypeError as error:
        named = re.match("[a-z_]+", str(error))
        setting = named[0] if named is not None and named[0] in OPTIONS else "sources"
        raise InvalidSetting(f"STREAMS_{setting.upper()}: {error}") from None


def _default_log(sources: Sequence[Source[..., Any]]) -> str:
    """A file in the working directory. Only apps with the same sources share its runs."""
    names = sorted(f"{source.__module__}:{source.name}" for source in sources)
    return f"sqlite:streams.db?prefix={sha256(','.join(names).encode()).hexdigest()[:16]}"


def options(environ: Mapping[str, str]) -> dict[str, Any]:
    """The options of Streams that the environment sets. Raises InvalidSetting."""
    _check_names(environ, "STREAMS_", [name.upper() for name in OPTIONS], 0.7)
    _check_names(environ, "LLM_", LLM_OPTIONS, 0.6)
    config = Config(environ=environ, env_prefix="STREAMS_")
    given: dict[str, Any] = {}
    for name, type_ in OPTIONS.items():
        text = config(name.upper(), default=None)
        if text is not None:
            given[name] = _parse(name, text, type_)
    given["sources"] = [_import(name) for name in given.get("sources", BUILT_IN)]
    models = {MOCKS[s.name]: s for s in given["sources"] if s.name in MOCKS}
    if environ.get("LLM_BASE_URL") or environ.get("LLM_MODEL"):
        model, chat = _chat(Config(environ=environ, env_prefix="LLM_"))
        given["sources"].append(chat)
        models = {model: chat, **models}
    return {"max_per_client": MAX_PER_CLIENT, **given, "models": models}


def _check_names(
    environ: Mapping[str, str], prefix: str, names: Sequence[str], similarity: float
) -> None:
    """Raises InvalidSetting for a variable that looks like a misspelt one.

    Others with the prefix may be another program's: Kubernetes sets STREAMS_PORT for a service
    `streams`.
    """
    missing = [name for name in names if prefix + name not in environ]
    for variable in environ:
        name = variable.removeprefix(prefix)
        if not variable.startswith(prefix) or name in names:
            continue
        if nearest := get_close_matches(name, missing, n=1, cutoff=similarity):
            raise InvalidSetting(f"{variable} is not a setting; did you mean {prefix}{nearest[0]}?")


def _parse(name: str, text: str, type_: Any) -> Any:
    is_list = getattr(type_, "__origin__", None) in (list, tuple)
    value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    try:
        return msgspec.convert(value if is_list else value or None, type_, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"STREAMS_{name.upper()}={text!r} is invalid: {error}") from None


def _import(name: str, setting: str = "STREAMS_SOURCES") -> Source[..., Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InvalidSetting(f"{setting}: {name!r} must have the form package.module:name")
    try:
        source = attrgetter(attribute)(import_module(module))
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # The module exists, and fails to import another one.
        raise InvalidSetting(f"{setting}: {name!r} cannot be imported: {error}") from None
    except ImportError as error:
        if not (error.name or "").startswith("streams["):
            raise
        raise InvalidSetting(str(error)) from None  # An extra is missing.
    except AttributeError:
        if module not in sys.modules:
            raise  # Its own code raised this.
        found = vars(sys.modules[module]).items()
        sources = ", ".join(name for name, value in found if isinstance(value, Source))
        raise InvalidSetting(
            f"{setting}: module {module!r} has no {attribute!r}; its sources: {sources or 'none'}"
        ) from None
    if not isinstance(source, Source):
        raise InvalidSetting(
            f"{setting}: {name} is not a source; decorate it with @source or @topic"
        )
    return source


def _chat(config: Config) -> tuple[str, Source[..., Any]]:
    """The name of the configured model, and the source of its answers."""
    url, model = config("BASE_URL", default=""), config("MODEL", default="")
    if not url or not model:
        raise InvalidSetting("LLM_BASE_URL and LLM_MODEL: set both, or neither")
    try:
        chat_with = import_module("streams.sources.chat").chat_with
    except ImportError:
        raise InvalidSetting("LLM_BASE_URL needs httpx: pip install 'streams[llm]'") from None
    try:
        key, timeout = config("API_KEY", default=""), config("TIMEOUT", cast=float, default=60)
        return model, chat_with(url, model, api_key=key, timeout=timeout)
    except ValueError as error:
        raise InvalidSetting(f"LLM_BASE_URL, LLM_API_KEY, LLM_TIMEOUT: {error}") from None
