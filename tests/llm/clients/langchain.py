"""langchain-openai."""

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

from tests.llm.clients import QUESTION, Forecast, PythonClient, Said, weather


class LangChain(PythonClient):
    package = "langchain-openai"

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name)
        self._options = options

    def _model(self, url: str, model: str, **options: Any) -> Any:
        return ChatOpenAI(
            model=model,
            base_url=f"{url}/v1",
            api_key="any",
            max_retries=0,
            timeout=20,
            stream_usage=True,
            **self._options,
            **options,
        )

    async def whole(self, url: str, model: str) -> Said:
        return said_of(await self._model(url, model).ainvoke(QUESTION))

    async def stream(self, url: str, model: str) -> Said:
        whole, pieces = None, 0
        async for chunk in self._model(url, model).astream(QUESTION):
            whole = chunk if whole is None else whole + chunk
            pieces += bool(chunk.text)
        said = said_of(whole)
        said.pieces = pieces
        return said

    async def tools(self, url: str, model: str) -> Said:
        tool = StructuredTool.from_function(weather)
        agent = self._model(url, model).bind_tools([tool])
        said, messages = Said(), [HumanMessage(QUESTION)]
        while not said.text:
            whole: Any = None
            async for chunk in agent.astream(messages):
                whole = chunk if whole is None else whole + chunk
            said.text = whole.text
            messages.append(whole)
            for call in whole.tool_calls:
                said.called.append(call["args"])
                messages.append(ToolMessage(tool.invoke(call["args"]), tool_call_id=call["id"]))
        return said

    async def schema(self, url: str, model: str) -> Said:
        return await self._structured(url, model, "json_schema")

    async def schema_of_tool(self, url: str, model: str) -> Said:
        return await self._structured(url, model, "function_calling")

    async def _structured(self, url: str, model: str, method: str) -> Said:
        asked = self._model(url, model).with_structured_output(Forecast, method=method)
        return Said(value=await asked.ainvoke(QUESTION))


class LangChainResponses(LangChain):
    async def reasoning(self, url: str, model: str) -> Said:
        asked = self._model(url, model, reasoning={"effort": "low", "summary": "auto"})
        answer = await asked.ainvoke(QUESTION)
        blocks = [b["reasoning"] for b in answer.content_blocks if b["type"] == "reasoning"]
        return Said(text=answer.text, reasoning="".join(blocks))


def said_of(message: Any) -> Said:
    usage = message.usage_metadata
    return Said(text=message.text, usage=[usage["input_tokens"], usage["output_tokens"]])


CLIENTS = [
    LangChain("langchain-openai, chat completions", use_responses_api=False),
    LangChainResponses("langchain-openai, responses", use_responses_api=True),
]
