// Asks a back end of `useChat` with the AI SDK's own classes, and prints what they read, as JSON.
//   node use-chat.js WHAT API

import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls, readUIMessageStream } from "ai";

const [what, api] = process.argv.slice(2);
const transport = new DefaultChatTransport({ api, headers: { "X-User": "ann" } });
const hello = { id: "m1", role: "user", parts: [{ type: "text", text: "Hello?" }] };
const events = [];

function newChat(options = {}) {
  return new Chat({
    id: "chat-7",
    transport,
    onData: (part) => events.push(part),
    onFinish: ({ message, messages, ...finish }) => events.push(finish),
    ...options,
  });
}

const textOf = (chat) =>
  chat.messages
    .filter(({ role }) => role === "assistant")
    .flatMap(({ parts }) => parts.map((part) => part.text ?? ""))
    .join("");

async function until(holds, what) {
  for (const end = Date.now() + 15_000; !holds(); ) {
    if (Date.now() > end) throw new Error(`not reached in 15 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const said = (chat) => ({
  messages: chat.messages,
  status: chat.status,
  error: chat.error?.message,
  events,
});

const doing = {
  async transport() {
    const stream = await transport.sendMessages({
      chatId: "chat-7", messages: [hello], trigger: "submit-message",
    });
    let message;
    for await (message of readUIMessageStream({ stream, terminateOnError: true }));
    return { message };
  },
  async chat() {
    const chat = newChat();
    await chat.sendMessage({ text: "Hello?" });
    return said(chat);
  },
  async nothing() {
    const chat = newChat();
    await chat.resumeStream();
    return said(chat);
  },
  async resume() {
    const before = newChat();
    const sending = before.sendMessage({ text: "Hello?" });
    await until(() => textOf(before), "the answer has begun");
    await before.stop();
    await sending;
    events.length = 0;
    const chat = newChat({ messages: before.messages.slice(0, 1) });
    const resuming = chat.resumeStream();
    await until(() => textOf(chat), "the answer is there again");
    await fetch(new URL("/gate", api), { method: "POST" });
    await resuming;
    return said(chat);
  },
  async "resume in place"() {
    const chat = newChat();
    const sending = chat.sendMessage({ text: "Hello?" });
    await until(() => textOf(chat), "the answer has begun");
    await chat.stop();
    await sending;
    events.length = 0;
    const resuming = chat.resumeStream();
    await until(() => chat.status === "streaming", "the answer is read again");
    await fetch(new URL("/gate", api), { method: "POST" });
    await resuming;
    return said(chat);
  },
  async tools() {
    const chat = newChat({
      onToolCall({ toolCall: { toolName: tool, toolCallId, input } }) {
        chat.addToolOutput({ tool, toolCallId, output: { city: input.city, degrees: 22 } });
      },
      sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    });
    await chat.sendMessage({ text: "Hello?" });
    await until(() => textOf(chat) && chat.status === "ready", "the tool's result is answered");
    return said(chat);
  },
};

let result;
try {
  result = await doing[what]();
} catch (error) {
  result = { raised: error?.message ?? String(error) };
}
console.log(JSON.stringify(result));
process.exit();
