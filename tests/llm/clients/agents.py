"""openai-agents, and pydantic-ai."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import agents
import pydantic_ai
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from openai.types.shared import Reasoning
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models import infer_model
from pydantic_ai.providers.openai import OpenAIProvider

from tests.llm.clients import QUESTION, Forecast, PythonClient, Said
from tests.llm.clients.openai_py import client_for

agents.set_tracing_disabled(True)


class OpenAIAgents(PythonClient):
    package = "openai-agents"

    def __init__(self, name: str, model: Any) -> None:
        super().__init__(name)
        self._model = model

    async def _run(self, url: str, model: str, **options: Any) -> Any:
        async with client_for(url) as client:
            agent = agents.Agent("weatherman", model=self._model(model, client), **options)
            return await agents.Runner.run(agent, QUESTION)

    async def whole(self, url: str, model: str) -> Said:
        result = await self._run(url, model)
        usage = result.context_wrapper.usage
        return Said(text=result.final_output, usage=[usage.input_tokens, usage.output_tokens])

    async def stream(self, url: str, model: str) -> Said:
        said = Said()
        async with client_for(url) as client:
            settings = agents.ModelSettings(include_usage=True)
            agent = agents.Agent(
                "weatherman", model=self._model(model, client), model_settings=settings
            )
            result = agents.Runner.run_streamed(agent, QUESTION)
            async for event in result.stream_events():
                if getattr(event, "data", None) and event.data.type == "response.output_text.delta":
                    said.text += event.data.delta
                    said.pieces += 1
        usage = result.context_wrapper.usage
        said.usage = [usage.input_tokens, usage.output_tokens]
        return said

    async def tools(self, url: str, model: str) -> Said:
        said = Said()
        tool = agents.function_tool(said.weather, name_override="weather")
        said.text = (await self._run(url, model, tools=[tool])).final_output
        return said

    async def schema(self, url: str, model: str) -> Said:
        return Said(value=(await self._run(url, model, output_type=Forecast)).final_output)

    async def reasoning(self, url: str, model: str) -> Said:
        settings = agents.ModelSettings(reasoning=Reasoning(effort="low", summary="auto"))
        result = await self._run(url, model, model_settings=settings)
        reasoning = result.new_items[0].raw_item.summary[0].text
        return Said(text=result.final_output, reasoning=reasoning)


class PydanticAI(PythonClient):
    package = "pydantic-ai-slim"

    def __init__(self, name: str, api: str) -> None:
        super().__init__(name)
        self._api = api

    @asynccontextmanager
    async def _agent(self, url: str, model: str, **options: Any) -> AsyncIterator[Any]:
        async with client_for(url) as client:
            provider = OpenAIProvider(openai_client=client)
            named = infer_model(f"{self._api}:{model}", provider_factory=lambda name: provider)
            yield pydantic_ai.Agent(named, **options)

    async def _run(self, url: str, model: str, **options: Any) -> Any:
        async with self._agent(url, model, **options) as agent:
            return await agent.run(QUESTION)

    async def whole(self, url: str, model: str) -> Said:
        result = await self._run(url, model)
        usage = [result.usage.input_tokens, result.usage.output_tokens]
        return Said(text=result.output, usage=usage)

    async def stream(self, url: str, model: str) -> Said:
        said = Said()
        async with self._agent(url, model) as agent, agent.run_stream(QUESTION) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                said.text += text
                said.pieces += 1
        said.usage = [result.usage.input_tokens, result.usage.output_tokens]
        return said

    async def tools(self, url: str, model: str) -> Said:
        said = Said()
        tool = pydantic_ai.Tool(said.weather, name="weather", takes_ctx=False)
        said.text = (await self._run(url, model, tools=[tool])).output
        return said

    async def schema(self, url: str, model: str) -> Said:
        output_type = pydantic_ai.NativeOutput(Forecast)
        return Said(value=(await self._run(url, model, output_type=output_type)).output)

    async def schema_of_tool(self, url: str, model: str) -> Said:
        output_type = pydantic_ai.ToolOutput(Forecast)
        return Said(value=(await self._run(url, model, output_type=output_type)).output)

    async def reasoning(self, url: str, model: str) -> Said:
        settings = {"openai_reasoning_effort": "low", "openai_reasoning_summary": "auto"}
        result = await self._run(url, model, model_settings=settings)
        parts = result.all_messages()[-1].parts
        thoughts = [part.content for part in parts if isinstance(part, ThinkingPart)]
        return Said(text=result.output, reasoning="".join(thoughts))


CLIENTS = [
    OpenAIAgents("openai-agents, chat completions", OpenAIChatCompletionsModel),
    OpenAIAgents("openai-agents, responses", OpenAIResponsesModel),
    PydanticAI("pydantic-ai, `openai-chat:`", "openai-chat"),
    PydanticAI("pydantic-ai, `openai:`", "openai"),
]
