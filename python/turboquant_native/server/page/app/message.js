// One message: text, files, reasoning, tool calls, errors, figures, and what can be done with it.
import { find, siblings } from "./chat.js";
import { IconButton, icon } from "./icons.js";
import { Markdown } from "./markdown.js";
import { Component, html, useLayoutEffect, useRef, useState } from "./preact.js";
import { rateOf } from "./generate.js";
import { store } from "./store.js";
import { copyText, count, rate, seconds, whole } from "./text.js";
import { ToolAnswers, ToolCall, ToolResult } from "./tools.js";

const growing = ({ status }) => status === "waiting" || status === "streaming";

export class Message extends Component {
  state = { editing: false };

  componentDidMount() {
    this.forget = store.watch(this.props.message.id, () => this.forceUpdate());
  }

  componentWillUnmount() {
    this.forget();
  }

  // A change of the message's own content comes through `watch`; 500 others stay as they are.
  shouldComponentUpdate(next, state) {
    const { message, last, versions } = this.props;
    return next.message !== message || next.last !== last || next.versions !== versions || state.editing !== this.state.editing;
  }

  render({ message, chat, last, versions }, { editing }) {
    if (message.role === "tool") return html`<${ToolResult} message=${message} call=${callOf(chat, message)} />`;
    const stopEditing = () => this.setState({ editing: false });
    return html`
      <article class=${`message ${message.role}`} data-status=${message.status}>
        ${editing
          ? html`<${Editor} message=${message} done=${stopEditing} />`
          : message.role === "user"
            ? html`<${Question} message=${message} />`
            : html`<${Answer} message=${message} last=${last} />`}
        ${!editing && !growing(message) && html`<${Actions} message=${message} chat=${chat} versions=${versions} edit=${() => this.setState({ editing: true })} />`}
      </article>
    `;
  }
}

function callOf(chat, result) {
  for (let m = find(chat, result.parent); m; m = find(chat, m.parent)) {
    const call = m.toolCalls?.find(({ id }) => id === result.toolCallId);
    if (call) return call;
  }
  return null;
}

const Question = ({ message }) => html`
  <div class="bubble">
    ${message.files?.map((file) => html`
      <details class="file">
        <summary>${icon("file")} ${file.name} <span class="soft">${file.tokens ? count(file.tokens, "token") : `${whole(file.text.length)} characters`}</span></summary>
        <pre>${file.text}</pre>
      </details>
    `)}
    ${message.content && html`<div class="plain">${message.content}</div>`}
  </div>
`;

function Answer({ message, last }) {
  const live = growing(message);
  const asks = message.toolCalls?.length && !live && last;
  return html`
    ${message.reasoning && html`<${Reasoning} message=${message} live=${live} />`}
    ${message.content && html`<${Markdown} text=${message.content} live=${live} />`}
    ${message.toolCalls?.map((call, i) => html`<${ToolCall} key=${i} call=${call} />`)}
    ${asks ? html`<${ToolAnswers} message=${message} />` : null}
    ${live && html`<${Waiting} message=${message} />`}
    ${message.status === "stopped" && html`<p class="remark">Stopped.</p>`}
    ${message.finish === "length" && html`<p class="remark">The answer reached the limit of tokens and ends here.</p>`}
    ${message.error && html`<${Failure} message=${message} />`}
  `;
}

function Reasoning({ message, live }) {
  const [chosen, setChosen] = useState(null); // what the reader wants; else open while nothing has been said yet
  const thinking = live && !message.content && !message.toolCalls?.length;
  const title = thinking ? "Thinking…" : message.reasoningTime >= 100 ? `Thought for ${seconds(message.reasoningTime)}` : "Thought";
  const toggle = (event) => {
    event.preventDefault();
    setChosen(!(chosen ?? thinking));
  };
  return html`
    <details class="reasoning" open=${chosen ?? thinking}>
      <summary class=${thinking ? "shimmer" : ""} onClick=${toggle}>${title}${icon("right")}</summary>
      <${Markdown} text=${message.reasoning} live=${live} />
    </details>
  `;
}

// Until the first token: how far the prompt is read. Then: how fast tokens come.
function Waiting({ message }) {
  if (message.live) {
    const speed = message.live.chunks > 4 ? rateOf(message) : null;
    return html`<p class="figures live"><span class="pulse"></span>${count(message.live.chunks, "token")}${speed ? ` · ${rate(speed)}` : ""}</p>`;
  }
  const { processed = 0, total = 0 } = message.progress ?? {};
  if (!total) return html`<p class="figures live"><span class="pulse"></span>Waiting for the model…</p>`;
  return html`
    <p class="figures live">
      <progress class="prompt-progress" max=${total} value=${processed} aria-label="Prompt read"></progress>
      Reading the prompt: ${whole(processed)} of ${whole(total)} tokens
    </p>
  `;
}

const REMEDIES = {
  key: ["Enter the key", () => store.show("settings")],
  retry: ["Try again", (message) => store.regenerate(message)],
  new: ["Start a new chat", () => store.fresh()],
};

function Failure({ message }) {
  const { title, text, action } = message.error;
  const [label, act] = REMEDIES[action] ?? [];
  return html`
    <div class="failure" role="alert">
      <strong>${title}</strong>
      <p>${text}</p>
      ${label && html`<button type="button" onClick=${() => act(message)}>${label}</button>`}
    </div>
  `;
}

function Figures({ message }) {
  const { usage, timings, elapsed } = message;
  const parts = [];
  if (usage?.completion_tokens) parts.push(count(usage.completion_tokens, "token"));
  if (message.rate) parts.push(rate(message.rate));
  if (elapsed && message.content) parts.push(seconds(elapsed));
  const cached = timings?.cached_n ?? usage?.cached_tokens;
  const details = [
    usage?.prompt_tokens && `Prompt: ${count(usage.prompt_tokens, "token")}${cached ? `, ${whole(cached)} of them kept from before` : ""}`,
    timings?.prompt_per_second && `read at ${rate(timings.prompt_per_second)}`,
    message.model && `Model: ${message.model}`,
  ].filter(Boolean);
  return html`<span class="figures" title=${details.join("\n")}>${parts.join(" · ")}</span>`;
}

// What changes a chat is hidden by its style while an answer grows in it.
function Actions({ message, chat, versions, edit }) {
  const mine = message.role === "user";
  return html`
    <div class="actions">
      ${versions > 1 && html`<${Versions} message=${message} chat=${chat} />`}
      ${message.content && html`<${CopyButton} text=${message.content} />`}
      <span class="when-idle">
        ${!mine && html`<${IconButton} name="again" label="Answer again" onClick=${() => store.regenerate(message)} />`}
        ${(mine || message.content) && html`<${IconButton} name="edit" label="Edit" class="icon-button edit-message" onClick=${edit} />`}
        <${IconButton} name="trash" label="Delete from here" onClick=${() => store.removeMessage(message)} />
      </span>
      ${!mine && html`<${Figures} message=${message} />`}
    </div>
  `;
}

// Other versions of a question or an answer.
function Versions({ message, chat }) {
  const all = siblings(chat, message);
  const at = all.indexOf(message);
  const go = (step) => store.choose(all[at + step]);
  return html`
    <span class="versions when-idle">
      <${IconButton} name="left" label="Version before" disabled=${at === 0} onClick=${() => go(-1)} />
      ${at + 1}/${all.length}
      <${IconButton} name="right" label="Version after" disabled=${at + 1 === all.length} onClick=${() => go(1)} />
    </span>
  `;
}

function CopyButton({ text }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await copyText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<${IconButton} name=${copied ? "check" : "copy"} label=${copied ? "Copied" : "Copy"} onClick=${copy} />`;
}

function Editor({ message, done }) {
  const [text, setText] = useState(message.content);
  const area = useRef();
  const mine = message.role === "user";
  // Before the next key arrives: layout effects run at once, others after a frame.
  useLayoutEffect(() => {
    area.current.focus();
    area.current.setSelectionRange(text.length, text.length);
  }, []);
  useLayoutEffect(() => {
    area.current.style.height = "auto";
    area.current.style.height = `${area.current.scrollHeight}px`;
  }, [text]);
  const save = () => {
    done();
    if (text.trim()) store.edit(message, text.trim());
  };
  const onKey = (event) => {
    if (event.key === "Escape") done();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (mine && !event.shiftKey)) && !event.isComposing) {
      event.preventDefault();
      save();
    } else return;
    event.stopPropagation();
  };
  return html`
    <form class="editor" onSubmit=${(event) => (event.preventDefault(), save())}>
      <textarea ref=${area} aria-label="Edit the message" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${onKey}></textarea>
      <div class="buttons">
        <button type="button" onClick=${done}>Cancel</button>
        <button type="submit" class="primary" disabled=${!text.trim()}>${mine ? "Send" : "Save"}</button>
      </div>
    </form>
  `;
}
