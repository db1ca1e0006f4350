// Asks a model with one of the npm clients, and prints what the client read, as JSON.
//   node clients.js CLIENT DOING URL MODEL

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [name, what, url, model] = process.argv.slice(2);
const QUESTION = "Will it rain in Rome?";
const baseURL = `${url}/v1`;
const said = { text: "" };

const Weather = z.object({ city: z.string(), days: z.number().int().min(1) });
const Forecast = z.object({
  city: z.string(),
  degrees: z.number().int().min(-50).max(60),
  sky: z.enum(["rain", "clouds", "sun"]),
});

function weather({ city, days }) {
  said.called = [...(said.called ?? []), { city, days }];
  return `${21 + days} degrees in ${city}`;
}

function add(text) {
  said.text += text;
  said.pieces = (said.pieces ?? 0) + 1;
}

const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 20_000 });
const messages = [{ role: "user", content: QUESTION }];

const chat = {
  async whole() {
    const answer = await client.chat.completions.create({ model, messages });
    said.text = answer.choices[0].message.content;
    said.usage = [answer.usage.prompt_tokens, answer.usage.completion_tokens];
  },
  async stream() {
    const stream = await client.chat.completions.create({
      model, messages, stream: true, stream_options: { include_usage: true },
    });
    for await (const { choices, usage } of stream) {
      if (choices[0]?.delta.content) add(choices[0].delta.content);
      if (usage) said.usage = [usage.prompt_tokens, usage.completion_tokens];
    }
  },
  async tools() {
    const tools = [zodFunction({ name: "weather", parameters: Weather, function: weather })];
    said.text = await client.chat.completions.runTools({ model, messages, tools, stream: true }).finalContent();
  },
  async schema() {
    const response_format = zodResponseFormat(Forecast, "forecast");
    const answer = await client.chat.completions.parse({ model, messages, response_format });
    said.value = answer.choices[0].message.parsed;
  },
  async reasoning() {
    const answer = await client.chat.completions.create({ model, messages, reasoning_effort: "low" });
    said.text = answer.choices[0].message.content;
    said.reasoning = answer.choices[0].message.reasoning_content;
  },
  async stop() {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const { choices } of stream) if (choices[0].delta.content) break;
    said.status = "cancelled";
  },
};

const input = QUESTION;
const tokens = ({ usage }) => [usage.input_tokens, usage.output_tokens];

const responses = {
  async whole() {
    const response = await client.responses.create({ model, input });
    said.text = response.output_text;
    said.usage = tokens(response);
  },
  async stream() {
    const stream = client.responses.stream({ model, input });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") add(event.delta);
      if (event.type === "response.failed") throw new Error(event.response.error.message);
    }
    said.usage = tokens(await stream.finalResponse());
  },
  async tools() {
    const parameters = { ...z.toJSONSchema(Weather), $schema: undefined };
    const tools = [{ type: "function", name: "weather", parameters, strict: true }];
    let asked = { model, input, tools };
    while (!said.text) {
      const response = await client.responses.stream(asked).finalResponse();
      said.text = response.output_text;
      const outputs = response.output
        .filter(({ type }) => type === "function_call")
        .map((call) => ({
          type: "function_call_output", call_id: call.call_id, output: weather(JSON.parse(call.arguments)),
        }));
      asked = { model, tools, input: outputs, previous_response_id: response.id };
    }
  },
  async schema() {
    const text = { format: zodTextFormat(Forecast, "forecast") };
    said.value = (await client.responses.parse({ model, input, text })).output_parsed;
  },
  async reasoning() {
    const response = await client.responses.create({ model, input, reasoning: { effort: "low", summary: "auto" } });
    said.text = response.output_text;
    said.reasoning = response.output[0].summary[0].text;
  },
  async resume() {
    let id;
    said.numbers = [];
    for await (const event of await client.responses.create({ model, input, background: true, stream: true })) {
      said.numbers.push(event.sequence_number);
      if (event.type === "response.created") id = event.response.id;
      if (event.type !== "response.output_text.delta") continue;
      add(event.delta);
      break;
    }
    const starting_after = said.numbers.at(-1);
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after })) {
      said.numbers.push(event.sequence_number);
      if (event.type === "response.output_text.delta") add(event.delta);
    }
  },
  async stop() {
    const { id } = await client.responses.create({ model, input, background: true });
    said.status = (await client.responses.cancel(id)).status;
  },
};

// The AI SDK, with one of its providers.
function vercel(model, forReasoning) {
  const asked = { model, prompt: QUESTION, maxRetries: 0 };
  const output = Output.object({ schema: Forecast });
  const read = (result) => {
    said.text = result.text;
    said.usage = [result.usage.inputTokens, result.usage.outputTokens];
  };
  const doing = {
    async whole() {
      read(await generateText(asked));
    },
    async stream() {
      const result = streamText({ ...asked, onError() {} });
      for await (const part of result.fullStream) {
        if (part.type === "error") throw part.error;
        if (part.type === "text-delta") add(part.text);
        if (part.type === "finish") said.usage = [part.totalUsage.inputTokens, part.totalUsage.outputTokens];
      }
    },
    async tools() {
      const tools = { weather: tool({ inputSchema: Weather, execute: weather }) };
      const result = streamText({ ...asked, tools, stopWhen: stepCountIs(5) });
      said.text = await result.text;
    },
    async schema() {
      said.value = (await generateText({ ...asked, output })).output;
    },
    async schema_stream() {
      said.pieces = 0;
      for await (said.value of streamText({ ...asked, output }).partialOutputStream) said.pieces++;
    },
  };
  const reasoning = async () => {
    const result = await generateText({ ...asked, providerOptions: forReasoning });
    said.text = result.text;
    said.reasoning = result.reasoningText;
  };
  return forReasoning ? { ...doing, reasoning } : doing;
}

const openai = createOpenAI({ baseURL, apiKey: "any" });
const compatible = createOpenAICompatible({
  name: "here", baseURL, apiKey: "any", includeUsage: true, supportsStructuredOutputs: true,
});

const clients = {
  "openai, chat completions": chat,
  "openai, responses": responses,
  "@ai-sdk/openai, `openai()`": vercel(openai(model), {
    openai: { reasoningEffort: "low", reasoningSummary: "auto", forceReasoning: true },
  }),
  "@ai-sdk/openai, `openai.chat()`": vercel(openai.chat(model)),
  "@ai-sdk/openai-compatible": vercel(compatible(model), { here: { reasoningEffort: "low" } }),
};

if (what === "list") {
  const list = Object.entries(clients).map(([name, doing]) => [name, Object.keys(doing)]);
  console.log(JSON.stringify(Object.fromEntries(list)));
} else {
  try {
    await clients[name][what]();
    console.log(JSON.stringify(said));
  } catch (error) {
    console.log(JSON.stringify({ raised: `${error?.name}: ${error?.message ?? JSON.stringify(error)}` }));
  }
}
process.exit();
