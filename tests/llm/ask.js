// Asks the model `mock` through one of the npm clients and prints what the client read, as JSON.
//   node ask.js CLIENT BASE_URL '{"reply": "Yes."}' [TIMEOUT_IN_SECONDS]

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const [name, baseURL, json, timeout = "20"] = process.argv.slice(2);
const extra = JSON.parse(json);
const signal = AbortSignal.timeout(1000 * Number(timeout));
const said = { text: "" };

const openai = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello?" }];

const vercel = createOpenAICompatible({ name: "here", baseURL, apiKey: "any", includeUsage: true });
const asked = {
  model: vercel("mock"),
  prompt: "Hello?",
  maxRetries: 0,
  abortSignal: signal,
  providerOptions: { here: extra },
  onError() {},
};

const clients = {
  async "openai, stream"() {
    const stream = await openai.chat.completions.create({
      model: "mock", messages, stream: true, stream_options: { include_usage: true }, ...extra,
    }, { signal });
    for await (const chunk of stream) {
      said.text += chunk.choices[0]?.delta.content ?? "";
      said.finish = chunk.choices[0]?.finish_reason ?? said.finish;
      said.tokens = chunk.usage?.completion_tokens;
    }
  },
  async "openai, helper"() {
    const stream = openai.chat.completions.stream({
      model: "mock", messages, stream_options: { include_usage: true }, ...extra,
    }, { signal });
    stream.on("content", (delta) => (said.text += delta));
    const completion = await stream.finalChatCompletion();
    said.finish = completion.choices[0].finish_reason;
    said.tokens = completion.usage.completion_tokens;
  },
  async "openai, whole"() {
    const asked = { model: "mock", messages, ...extra };
    const completion = await openai.chat.completions.create(asked, { signal });
    said.text = completion.choices[0].message.content;
    said.finish = completion.choices[0].finish_reason;
    said.tokens = completion.usage.completion_tokens;
  },
  async "ai, stream"() {
    for await (const part of streamText(asked).fullStream) {
      if (part.type === "error") throw part.error;
      if (part.type === "abort") throw new Error("aborted");
      if (part.type === "text-delta") said.text += part.text ?? part.delta;
      if (part.type !== "finish") continue;
      said.finish = part.finishReason;
      said.tokens = part.totalUsage.outputTokens;
    }
  },
  async "ai, whole"() {
    const result = await generateText(asked);
    said.text = result.text;
    said.finish = result.finishReason;
    said.tokens = result.usage.outputTokens;
  },
};

try {
  await clients[name]();
} catch (error) {
  said.error = {
    name: error?.constructor?.name ?? typeof error,
    status: error?.status ?? error?.statusCode,
    message: error?.message ?? JSON.stringify(error),
  };
}
console.log(JSON.stringify(said));
process.exit();
