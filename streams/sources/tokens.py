"""A mock LLM: the same words for the same seed, at a model's pace."""

from collections.abc import AsyncIterator
from random import Random
from typing import Annotated, Any

import anyio
from msgspec import Meta

from streams import source

REPLY = (
    "You asked: {prompt} Here is what a language model would do with that: think for a moment, "
    "then send its answer word by word, as each one is ready. This one only pretends, which "
    "makes it quick, free and always of the same opinion. Drop the connection, and the answer "
    "goes on where it was."
)


@source
async def tokens(
    prompt: Annotated[str, Meta(max_length=10_000, description="What to ask the model")] = "",
    tokens_per_second: Annotated[float, Meta(gt=0, le=10_000, description="Pace")] = 25.0,
    first_token: Annotated[float, Meta(ge=0, le=60, description="Seconds before the first")] = 0.3,
    jitter: Annotated[float, Meta(ge=0, le=1, description="Irregularity of the pace")] = 0.2,
    seed: Annotated[int, Meta(ge=0, le=2**32, description="Same seed, same answer")] = 0,
    *,
    after: int = 0,
) -> AsyncIterator[dict[str, Any]]:
    """A mock LLM that answers a prompt, token by token."""
    random = Random(seed)
    words = REPLY.format(prompt=prompt or "(nothing).").split()
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    moments = [
        first_token + (n + random.uniform(0, jitter)) / tokens_per_second
        for n in range(len(pieces))
    ]
    origin = anyio.current_time() - (moments[after - 1] if 0 < after <= len(pieces) else 0)
    for piece, moment in list(zip(pieces, moments, strict=True))[after:]:
        await anyio.sleep_until(origin + moment)
        yield {"message": {"role": "assistant", "content": piece}, "done": False}
    if after <= len(pieces):
        yield {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": len(prompt.split()),
            "eval_count": len(pieces),
        }
