// Settings, the model's data, the keys.
import { IconButton } from "./icons.js";
import { html, useLayoutEffect, useRef, useState } from "./preact.js";
import { PARAMETERS, readParameter, readTools } from "./settings.js";
import { store } from "./store.js";
import { count, download, whole } from "./text.js";

function Dialog({ title, children }) {
  const node = useRef();
  useLayoutEffect(() => {
    node.current.showModal();
    if (!node.current.querySelector("[autofocus]")) node.current.focus(); // not the close button
  }, []);
  const outside = ({ target }) => target === node.current && node.current.close();
  return html`
    <dialog ref=${node} tabindex="-1" aria-label=${title} onClose=${() => store.show(null)} onClick=${outside}>
      <div class="dialog-body">
        <div class="dialog-head"><h2>${title}</h2><${IconButton} name="close" label="Close" onClick=${() => node.current.close()} /></div>
        ${children}
      </div>
    </dialog>
  `;
}

function Settings() {
  return html`
    <${Dialog} title="Settings">
      <${Answers} />
      <${Look} />
      <${Access} />
      <${Data} />
      <p class="soft small">
        The page is part of turboquant-native. It uses htm, Preact, marked, DOMPurify and highlight.js; their
        ${" "}<a href="vendor/VENDORED.md" target="_blank">versions and licences</a>.
      </p>
    <//>
  `;
}

function Access() {
  const [shown, setShown] = useState(false);
  return html`
    <form onSubmit=${(event) => event.preventDefault()}>
      <h3>Access</h3>
      <label class="field">
        <span>API key <small>kept in this browser; needed only where the server asks for one</small></span>
        <span class="with-button">
          <input
            name="key"
            type=${shown ? "text" : "password"}
            value=${store.settings.key}
            autocomplete="off"
            spellcheck=${false}
            autofocus=${store.server.state === "locked"}
            onInput=${({ target }) => store.set({ key: target.value.trim() })}
            onChange=${() => store.connect()}
          />
          <button type="button" onClick=${() => setShown(!shown)}>${shown ? "Hide" : "Show"}</button>
        </span>
        ${store.server.state === "locked" && html`<em class="wrong">${store.server.error.message}</em>`}
      </label>
    </form>
  `;
}

function Answers() {
  const { settings } = store;
  return html`
    <section>
      <h3>Answers</h3>
      <p class="soft small">An empty field leaves the choice to the server, whose value stands in it in grey.</p>
      <label class="field">
        <span>System prompt <small>what the model is told before every chat</small></span>
        <textarea name="system" rows="3" value=${settings.system} onInput=${({ target }) => store.set({ system: target.value })}></textarea>
      </label>
      <div class="parameters">${Object.keys(PARAMETERS).map((name) => html`<${Parameter} key=${name} name=${name} />`)}</div>
      <label class="field row">
        <span>Thinking <small>where the model's template knows the switch</small></span>
        <select name="thinking" value=${settings.thinking} onChange=${({ target }) => store.set({ thinking: target.value })}>
          <option value="">Server's default</option><option value="on">On</option><option value="off">Off</option>
        </select>
      </label>
      <${Tools} />
    </section>
  `;
}

function Parameter({ name }) {
  const [label, explanation, , , step] = PARAMETERS[name];
  const [text, setText] = useState(String(store.settings.parameters[name] ?? ""));
  const { error } = readParameter(name, text);
  const preset = store.defaults[name];
  const change = ({ target }) => {
    const read = readParameter(name, target.value);
    setText(target.value);
    if (read.error) return;
    const { [name]: _, ...others } = store.settings.parameters;
    store.set({ parameters: read.value === null ? others : { ...others, [name]: read.value } });
  };
  return html`
    <label class="field" title=${explanation}>
      <span>${label}</span>
      <input
        name=${name}
        inputmode=${step === 1 ? "numeric" : "decimal"}
        autocomplete="off"
        value=${text}
        placeholder=${preset === undefined || preset === null ? "default" : String(preset)}
        onInput=${change}
      />
      ${error && html`<em class="wrong">${error}</em>`}
    </label>
  `;
}

function Tools() {
  const { error } = readTools(store.settings.tools);
  return html`
    <details class="field">
      <summary>Tools <small>a JSON list, for trying out calls; the page shows them and asks for the results</small></summary>
      <textarea
        name="tools"
        class="mono"
        rows="5"
        spellcheck=${false}
        value=${store.settings.tools}
        onInput=${({ target }) => store.set({ tools: target.value })}
      ></textarea>
      ${error && html`<em class="wrong">${error}</em>`}
    </details>
  `;
}

function Look() {
  const choices = { system: "As the system", light: "Light", dark: "Dark" };
  return html`
    <section>
      <h3>Look</h3>
      <div class="segments" role="radiogroup" aria-label="Theme">
        ${Object.entries(choices).map(([theme, label]) => html`
          <label><input type="radio" name="theme" checked=${store.settings.theme === theme} onChange=${() => store.set({ theme })} /><span>${label}</span></label>
        `)}
      </div>
    </section>
  `;
}

function Data() {
  const field = useRef();
  const [sure, setSure] = useState(false);
  const save = async () => download(`chats-${new Date().toISOString().slice(0, 10)}.json`, await store.exportAll());
  const read = async ({ target }) => {
    try {
      await store.import(await target.files[0].text());
    } catch (error) {
      store.say(error.message);
    }
    target.value = "";
  };
  const discard = () => {
    if (sure) store.discardAll();
    setSure(!sure);
  };
  return html`
    <section>
      <h3>Chats</h3>
      <p class="soft small">${count(store.heads.length, "chat")} in this browser, nowhere else.</p>
      <div class="buttons left">
        <button type="button" disabled=${!store.heads.length} onClick=${save}>Export all</button>
        <button type="button" onClick=${() => field.current.click()}>Import…</button>
        <button type="button" class="danger" disabled=${!store.heads.length} onClick=${discard}>${sure ? "Really delete all?" : "Delete all"}</button>
      </div>
      <input type="file" name="import" accept=".json,application/json" hidden ref=${field} onChange=${read} />
    </section>
  `;
}

const LABELS = {
  id: "Name",
  state: "State",
  owned_by: "Owner",
  architecture: "Architecture",
  n_params: "Parameters",
  n_ctx: "Context (tokens)",
  n_vocab: "Vocabulary (tokens)",
  n_embd: "Width",
  total_slots: "Conversations at a time",
  model_path: "File",
  build_info: "Server",
  ...Object.fromEntries(Object.entries(PARAMETERS).map(([name, [label]]) => [name, label])),
};

// Whatever the server tells about the model, as rows of text.
function rowsOf(object) {
  return Object.entries(object ?? {}).flatMap(([name, value]) => {
    if (value === null || value === undefined || value === "") return [];
    if (typeof value === "object") return rowsOf(value);
    return [[LABELS[name] ?? name.replaceAll("_", " "), typeof value === "number" && Number.isInteger(value) ? whole(value) : String(value)]];
  });
}

function Model() {
  const { models, props } = store.server;
  const { id, created, object, ...others } = models.find((model) => model.id === store.model) ?? {};
  const { model, n_ctx, chat_template, default_generation_settings, ...facts } = props ?? {};
  const { n_ctx: _, ...defaults } = store.defaults;
  const rows = new Map(rowsOf({ id, n_ctx: store.context, ...others, ...facts })); // a name that both tell stands once
  const presets = rowsOf(defaults);
  return html`
    <${Dialog} title="About this model">
      <${Table} rows=${[...rows]} />
      ${presets.length > 0 && html`<h3>The server's defaults</h3><${Table} rows=${presets} />`}
    <//>
  `;
}

const Table = ({ rows }) => html`
  <dl class="data">${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
`;

const KEYS = [
  ["Enter", "Send the message"],
  ["Shift+Enter", "New line"],
  ["Esc", "Stop the answer; close a dialog"],
  ["↑", "Edit the last message (in an empty field)"],
  ["/", "Write a message"],
  ["Ctrl+Shift+O", "New chat"],
  ["Ctrl+Shift+S", "Show or hide the chats"],
  ["Ctrl+,", "Settings"],
  ["?", "These keys"],
];

const Shortcuts = () => html`
  <${Dialog} title="Keys">
    <dl class="data">${KEYS.map(([keys, what]) => html`<div><dt>${keys.split("+").map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${what}</dd></div>`)}</dl>
  <//>
`;

const DIALOGS = { settings: Settings, model: Model, shortcuts: Shortcuts };

export const dialogs = () => {
  const Shown = DIALOGS[store.dialog];
  return Shown && html`<${Shown} key=${store.dialog} />`;
};
