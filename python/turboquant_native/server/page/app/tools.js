// Tool calls as a person reads them. The page runs no tools: their results are typed in.
import { icon } from "./icons.js";
import { html, useState } from "./preact.js";
import { store } from "./store.js";

const SHORT = 72; // characters that stay on one line

// A number as it was written: 12345678901234567890 has more digits than a double holds.
const exact = (name, value, { source } = {}) => (typeof value === "number" && source && JSON.rawJSON ? JSON.rawJSON(source) : value);

// Long JSON with indents; what is short, or not (yet) JSON, as it came.
function readable(text) {
  if (text.length <= SHORT) return text;
  try {
    return JSON.stringify(JSON.parse(text, exact), null, 2);
  } catch {
    return text;
  }
}

export const ToolCall = ({ call }) => html`
  <details class="tool" open>
    <summary>${icon("tool")} Calls <b>${call.function.name || "a tool"}</b></summary>
    <pre>${readable(call.function.arguments)}</pre>
  </details>
`;

export const ToolResult = ({ message, call }) => html`
  <details class="tool result message">
    <summary>${icon("tool")} Result of <b>${call?.function.name ?? "a tool"}</b></summary>
    <pre>${readable(message.content)}</pre>
  </details>
`;

export function ToolAnswers({ message }) {
  const [results, setResults] = useState(message.toolCalls.map(() => ""));
  const write = (i, text) => setResults(results.with(i, text));
  const send = (event) => {
    event.preventDefault();
    store.answerTools(message, results);
  };
  return html`
    <form class="tool-answers when-idle" onSubmit=${send}>
      ${message.toolCalls.map((call, i) => html`
        <label>Result of ${call.function.name}<textarea rows="2" value=${results[i]} onInput=${(event) => write(i, event.target.value)}></textarea></label>
      `)}
      <div class="buttons"><button type="submit" class="primary">Send ${results.length > 1 ? "the results" : "the result"}</button></div>
    </form>
  `;
}
