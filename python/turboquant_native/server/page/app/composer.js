// Where a message is written: text, dropped text files with their token counts, send and stop, and how full the context is.
import { path } from "./chat.js";
import { tokenCount } from "./client.js";
import { IconButton, icon } from "./icons.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./preact.js";
import { store } from "./store.js";
import { count, whole } from "./text.js";

const LARGEST = 4 * 1024 * 1024; // bytes of a dropped file
const TOUCH = matchMedia("(pointer: coarse)");

// A file as text, or an error that says why not.
async function readText(file) {
  if (file.size > LARGEST) throw new Error(`${file.name} has ${whole(file.size / 1024)} KiB; text files up to ${LARGEST / 1024} KiB can be added.`);
  const bytes = await file.arrayBuffer();
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return text;
  } catch {
    // Said below.
  }
  throw new Error(`${file.name} is not a text file (UTF-8).`);
}

async function countTokens(file, redraw) {
  file.tokens = await tokenCount(store.settings.key, file.text, store.settings.model).catch(() => null);
  redraw();
}

export function Composer() {
  const [text, setText] = useState("");
  const [files, setFiles] = useState([]);
  const [, redraw] = useState(0);
  const area = useRef();
  const add = async (chosen) => {
    for (const file of chosen) {
      try {
        const added = { name: file.name, text: await readText(file), tokens: undefined };
        setFiles((all) => [...all, added]);
        countTokens(added, () => redraw((n) => n + 1));
      } catch (error) {
        store.say(error.message);
      }
    }
    area.current.focus();
  };
  const over = useDrop(add);
  const send = () => {
    if (store.busy || !(text.trim() || files.length)) return;
    store.send(text.trim(), files);
    setText("");
    setFiles([]);
  };
  useLayoutEffect(() => fit(area.current), [text]);
  useLayoutEffect(() => !TOUCH.matches && area.current.focus(), [store.chat.id]);
  const onKey = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !TOUCH.matches) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && !text && !store.busy) editLast(event);
  };
  return html`
    <div class="composer">
      <form class=${over ? "over" : ""} onSubmit=${(event) => (event.preventDefault(), send())}>
        ${files.length > 0 && html`<div class="files">${files.map((file) => html`<${FileChip} file=${file} remove=${() => setFiles(files.filter((f) => f !== file))} />`)}</div>`}
        <textarea
          id="prompt"
          ref=${area}
          rows="1"
          aria-label="Message"
          placeholder=${over ? "Drop text files here" : "Write a message"}
          value=${text}
          onInput=${(event) => setText(event.target.value)}
          onKeyDown=${onKey}
          onPaste=${(event) => event.clipboardData.files.length && (event.preventDefault(), add([...event.clipboardData.files]))}
        ></textarea>
        <div class="composer-row">
          <${Attach} add=${add} />
          <span class="grow"></span>
          <${Context} />
          ${store.busy
            ? html`<button type="button" class="send" aria-label="Stop (Esc)" title="Stop (Esc)" onClick=${() => store.stop()}>${icon("stop")}</button>`
            : html`<button type="submit" class="send" aria-label="Send (Enter)" title="Send (Enter)" disabled=${!text.trim() && !files.length}>${icon("send")}</button>`}
        </div>
      </form>
      <p class="hint">Models make mistakes. <span class="wide">Enter sends, Shift+Enter is a new line, ? shows all keys.</span></p>
    </div>
  `;
}

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function editLast(event) {
  const buttons = document.querySelectorAll(".message.user .edit-message");
  if (!buttons.length) return;
  event.preventDefault();
  buttons[buttons.length - 1].click();
}

// Files dropped anywhere on the page.
function useDrop(add) {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    const onOver = (event) => carriesFiles(event) && (event.preventDefault(), setOver(true));
    const onLeave = (event) => !event.relatedTarget && setOver(false);
    const onDrop = (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      setOver(false);
      add([...event.dataTransfer.files]);
    };
    const handlers = { dragover: onOver, dragleave: onLeave, drop: onDrop };
    for (const [name, handler] of Object.entries(handlers)) addEventListener(name, handler);
    return () => Object.entries(handlers).forEach(([name, handler]) => removeEventListener(name, handler));
  }, []);
  return over;
}

function Attach({ add }) {
  const field = useRef();
  const chosen = ({ target }) => {
    add([...target.files]);
    target.value = "";
  };
  return html`
    <${IconButton} name="clip" label="Add text files" onClick=${() => field.current.click()} />
    <input type="file" multiple hidden ref=${field} onChange=${chosen} />
  `;
}

const tokensOf = (file) => (file.tokens === undefined ? "counting…" : file.tokens === null ? `${whole(file.text.length)} characters` : count(file.tokens, "token"));

const FileChip = ({ file, remove }) => html`
  <span class="chip">
    ${icon("file")}<span class="chip-name">${file.name}</span><span class="soft">${tokensOf(file)}</span>
    <${IconButton} name="close" label=${`Remove ${file.name}`} onClick=${remove} />
  </span>
`;

// Tokens of the chat so far, of those that the model can hold.
function Context() {
  const last = path(store.chat).findLast((message) => message.usage);
  if (!last || !store.context) return null;
  const used = (last.usage.prompt_tokens ?? 0) + (last.usage.completion_tokens ?? 0);
  const share = Math.min(1, used / store.context);
  return html`
    <span class=${`context ${share > 0.9 ? "nearly-full" : ""}`} title=${`${whole(used)} of ${whole(store.context)} tokens of the context are used`}>
      <progress max="1" value=${share}></progress>${whole(used)} / ${whole(store.context)}
    </span>
  `;
}
