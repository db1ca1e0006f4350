// A chat as docs/use-chat.md shows it. It keeps what the user said, and shows each change of a message.

import { useChat } from "@ai-sdk/react";
import { useState } from "react";
import { createRoot } from "react-dom/client";

const id = "chat-7";
const history = JSON.parse(sessionStorage.getItem(id) ?? "[]");

function Chat() {
  const [text, setText] = useState("");
  const { messages, sendMessage, status, stop, error } = useChat({ id, messages: history, resume: true });
  const users = messages.filter(({ role }) => role === "user");
  sessionStorage.setItem(id, JSON.stringify(users));

  function stopAnswer() {
    stop(); // aborts the request only
    fetch(`/api/chat/${id}`, { method: "DELETE" });
  }

  function send(event) {
    event.preventDefault();
    sendMessage({ text });
    setText("");
  }

  return (
    <form onSubmit={send}>
      {messages.map((message) => (
        <p key={message.id} className={message.role}>
          {message.parts.map((part) => part.text ?? "").join("")}
        </p>
      ))}
      <output>{error ? `error: ${error.message}` : status}</output>
      <input aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} />
      <button>Send</button>
      <button type="button" onClick={stopAnswer}>Stop</button>
    </form>
  );
}

await fetch("/login", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ user: "ann", password: "correct horse" }),
});
createRoot(document.getElementById("root")).render(<Chat />);
