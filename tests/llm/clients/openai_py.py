"""OpenAI's Python SDK."""

from typing import Any

from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.llm.clients import QUESTION, WEATHER, Forecast, PythonClient, Said, weather


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


ASKED: Any = [{"role": "user", "content": QUESTION}]


def client_for(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20)


class Chat(PythonClient):
    package = "openai"

    async def whole(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            answer = await client.chat.completions.create(model=model, messages=ASKED)
        assert answer.usage is not None
        usage = [answer.usage.prompt_tokens, answer.usage.completion_tokens]
        return Said(text=answer.choices[0].message.content or "", usage=usage)

    async def stream(self, url: str, model: str) -> Said:
        said = Said()
        async with client_for(url) as client:
            stream = await client.chat.completions.create(
                model=model, messages=ASKED, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                if chunk.usage is not None:
                    said.usage = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens]
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    said.text += text
                    said.pieces += 1
        return said

    async def tools(self, url: str, model: str) -> Said:
        said, messages = Said(), [*ASKED]
        tools: Any = [pydantic_function_tool(Weather, name="weather")]
        async with client_for(url) as client:
            while not said.text:
                asked: dict[str, Any] = {"model": model, "messages": messages, "tools": tools}
                async with client.chat.completions.stream(**asked) as stream:
                    message = (await stream.get_final_completion()).choices[0].message
                messages.append(message)
                said.text = message.content or ""
                for call in message.tool_calls or []:
                    arguments = call.function.parsed_arguments
                    assert isinstance(arguments, Weather)
                    said.called.append(arguments.model_dump())
                    result = weather(arguments.city, arguments.days)
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return said

    async def schema(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            answer = await client.chat.completions.parse(
                model=model, messages=ASKED, response_format=Forecast
            )
        return Said(value=answer.choices[0].message.parsed)

    async def reasoning(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            answer = await client.chat.completions.create(
                model=model, messages=ASKED, reasoning_effort="low"
            )
        message: Any = answer.choices[0].message
        return Said(text=message.content, reasoning=message.reasoning_content)

    async def stop(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            stream = await client.chat.completions.create(model=model, messages=ASKED, stream=True)
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            await stream.close()
        return Said(status="cancelled")


class Responses(PythonClient):
    package = "openai"

    async def whole(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            response = await client.responses.create(model=model, input=QUESTION)
        assert response.usage is not None
        usage = [response.usage.input_tokens, response.usage.output_tokens]
        return Said(text=response.output_text, usage=usage)

    async def stream(self, url: str, model: str) -> Said:
        said = Said()
        async with client_for(url) as client:
            async with client.responses.stream(model=model, input=QUESTION) as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        said.text += event.delta
                        said.pieces += 1
                    elif event.type == "response.failed":
                        raise RuntimeError(event.response.error)
                response = await stream.get_final_response()
        assert response.usage is not None
        said.usage = [response.usage.input_tokens, response.usage.output_tokens]
        return said

    async def tools(self, url: str, model: str) -> Said:
        said = Said()
        tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
        asked: dict[str, Any] = {"model": model, "input": QUESTION, "tools": [tool]}
        async with client_for(url) as client:
            while not said.text:
                async with client.responses.stream(**asked) as stream:
                    response = await stream.get_final_response()
                said.text = response.output_text
                answers = said.answer_calls(response)
                asked |= {"input": answers, "previous_response_id": response.id}
        return said

    async def schema(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            response = await client.responses.parse(
                model=model, input=QUESTION, text_format=Forecast
            )
        return Said(value=response.output_parsed)

    async def reasoning(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            response = await client.responses.create(
                model=model, input=QUESTION, reasoning={"effort": "low", "summary": "auto"}
            )
        item = response.output[0]
        assert item.type == "reasoning"
        return Said(text=response.output_text, reasoning=item.summary[0].text)

    async def resume(self, url: str, model: str) -> Said:
        said, response = Said(), ""
        async with client_for(url) as client:
            stream = await client.responses.create(
                model=model, input=QUESTION, background=True, stream=True
            )
            async for event in stream:
                said.numbers.append(event.sequence_number)
                if event.type == "response.created":
                    response = event.response.id
                elif event.type == "response.output_text.delta":
                    said.text += event.delta
                    break
            await stream.close()
            rest = await client.responses.retrieve(
                response, stream=True, starting_after=said.numbers[-1]
            )
            async for event in rest:
                said.numbers.append(event.sequence_number)
                if event.type == "response.output_text.delta":
                    said.text += event.delta
        return said

    async def stop(self, url: str, model: str) -> Said:
        async with client_for(url) as client:
            response = await client.responses.create(model=model, input=QUESTION, background=True)
            stopped = await client.responses.cancel(response.id)
        return Said(status=stopped.status or "")


CLIENTS = [Chat("openai (Python), chat completions"), Responses("openai (Python), responses")]
