"""The agent in docs/llm.md, asked by OpenAI's SDK."""

import re
from typing import Any

from tests.support.sdk import sdk_of
from tests.support.servers import ROOT

TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {}}}


async def test_the_agent_of_the_documentation_asks_a_tool_and_answers() -> None:
    text = (ROOT / "docs/llm.md").read_text()
    (block,) = re.findall(r"```python\n((?:(?!```).)*Streams\(.*?)```", text, re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "agent"}
    exec(compile(block, "docs/llm.md", "exec"), namespace)
    messages: list[Any] = [{"role": "user", "content": "How warm is it?"}]
    async with sdk_of(namespace["app"]) as sdk:
        asked: Any = await sdk.chat.completions.create(
            model="agent", messages=messages, tools=[TOOL]
        )
        (call,) = asked.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
        assert asked.choices[0].message.reasoning_content.startswith("I do not know")
        assert asked.choices[0].finish_reason == "tool_calls"
        messages += [
            asked.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "31"},
        ]
        answer = await sdk.chat.completions.create(model="agent", messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content == "It is 31 degrees."
    assert answer.choices[0].finish_reason == "stop"
