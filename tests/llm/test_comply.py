"""Specifications: what `llm-comply` finds when it checks answers with OpenAI's own schemas."""

import json
import sys
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

import anyio
import pytest

from streams import Streams
from streams.sources import tokens
from tests.support.servers import serving


class Profile(NamedTuple):
    name: str
    absent: dict[str, str]
    """Checks that fail, or pass with a warning, each with the reason."""
    version: str = version_of("llm-comply")

    @property
    def remark(self) -> str:
        return "; ".join(f"{check}: {reason}" for check, reason in self.absent.items())


COMPACT = "there is no `/v1/responses/compact`; a 404 is allowed"
PROFILES = [
    Profile("llm-comply, openai-chat", {}),
    Profile("llm-comply, open-responses", {"compact-response": COMPACT}),
]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.column("all checks pass without a warning")
async def test_the_mock_conforms_to_a_specification(profile: Profile, record_property: Any) -> None:
    """The model has the name of one that reasons, so that no check is skipped."""
    async with serving(Streams(models={"gpt-5": tokens})) as url:
        options = ["--format", profile.name.partition(", ")[2], "--model", "gpt-5", "--json"]
        command = [sys.executable, "-m", "llm_comply.cli", *options]
        with anyio.fail_after(50):
            result = await anyio.run_process(
                [*command, "--base-url", f"{url}/v1", "--api-key", "any"], check=False
            )
    checks = json.loads(result.stdout)["results"]
    good = [each for each in checks if each["status"] == "passed" and not each.get("warnings")]
    others = {each["id"]: each for each in checks if each not in good}
    assert len(good) >= 9, checks
    assert others.keys() == profile.absent.keys(), others
    if profile.remark:
        record_property("remark", profile.remark)
