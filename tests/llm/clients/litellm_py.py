"""litellm."""

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Otherwise it asks GitHub for prices.

import litellm

from tests.llm.clients import QUESTION, WEATHER, Forecast, PythonClient, Said, weather

litellm.suppress_debug_info = True

FUNCTION = {"name": "weather", "parameters": WEATHER}


def server(url: str, model: str) -> dict[str, Any]:
    return {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": "any",
        "max_retries": 0,
        "timeout": 20,
    }


async def completion(url: str, model: str, **options: Any) -> Any:
    asked = {"messages": [{"role": "user", "content": QUESTION}], **options}
    return await litellm.acompletion(**server(url, model), **asked)


class Chat(PythonClient):
    package = "litellm"

    async def whole(self, url: str, model: str) -> Said:
        answer = await completion(url, model)
        usage = [answer.usage.prompt_tokens, answer.usage.completion_tokens]
        return Said(text=answer.choices[0].message.content, usage=usage)

    async def stream(self, url: str, model: str) -> Said:
        said = Said()
        options = {"include_usage": True}
        async for chunk in await completion(url, model, stream=True, stream_options=options):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                said.text += text
                said.pieces += 1
            if usage := getattr(chunk, "usage", None):
                said.usage = [usage.prompt_tokens, usage.completion_tokens]
        return said

    async def tools(self, url: str, model: str) -> Said:
        said, messages = Said(), [{"role": "user", "content": QUESTION}]
        tools = [{"type": "function", "function": FUNCTION}]
        while not said.text:
            asked = {"messages": messages, "tools": tools, "stream": True}
            chunks = [chunk async for chunk in await completion(url, model, **asked)]
            message: Any = litellm.stream_chunk_builder(chunks).choices[0].message
            said.text = message.content or ""
            messages.append(message.model_dump())
            for call in message.tool_calls or []:
                said.called.append(json.loads(call.function.arguments))
                result = weather(**said.called[-1])
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return said

    async def schema(self, url: str, model: str) -> Said:
        answer = await completion(url, model, response_format=Forecast)
        return Said(value=Forecast.model_validate_json(answer.choices[0].message.content))

    async def reasoning(self, url: str, model: str) -> Said:
        answer = await completion(url, model, reasoning_effort="low")
        message = answer.choices[0].message
        return Said(text=message.content, reasoning=message.reasoning_content)


class Responses(PythonClient):
    package = "litellm"

    async def whole(self, url: str, model: str) -> Said:
        response = await litellm.aresponses(input=QUESTION, **server(url, model))
        usage = [response.usage.input_tokens, response.usage.output_tokens]
        return Said(text=response.output_text, usage=usage)

    async def stream(self, url: str, model: str) -> Said:
        said = Said()
        asked = {"input": QUESTION, "stream": True}
        async for event in await litellm.aresponses(**asked, **server(url, model)):
            if event.type == "response.output_text.delta":
                said.text += event.delta
                said.pieces += 1
            elif event.type == "response.failed":
                raise RuntimeError(event.response.error)
            elif event.type == "response.completed":
                usage = event.response.usage
                said.usage = [usage.input_tokens, usage.output_tokens]
        return said

    async def tools(self, url: str, model: str) -> Said:
        said = Said()
        tools = [{"type": "function", **FUNCTION}]
        asked: dict[str, Any] = {"input": QUESTION, "tools": tools}
        while not said.text:
            response = await litellm.aresponses(**asked, **server(url, model))
            said.text = response.output_text
            asked |= {"input": said.answer_calls(response), "previous_response_id": response.id}
        return said


CLIENTS = [Chat("litellm, `completion`"), Responses("litellm, `responses`")]
