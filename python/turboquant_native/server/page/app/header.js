import { IconButton } from "./icons.js";
import { html } from "./preact.js";
import { store } from "./store.js";

const STATES = { connecting: "Connecting…", locked: "API key needed", loading: "The server is loading a model…", offline: "No connection to the server" };

export const Header = ({ open, toggle }) => html`
  <header>
    ${!open && html`<${IconButton} name="sidebar" label="Show chats (Ctrl+Shift+S)" onClick=${toggle} />`}
    <${ModelChoice} />
    <span class="grow"></span>
    ${!open && html`<${IconButton} name="plus" label="New chat (Ctrl+Shift+O)" onClick=${() => store.fresh()} />`}
    <${IconButton} name="sliders" label="Settings (Ctrl+,)" onClick=${() => store.show("settings")} />
  </header>
`;

function ModelChoice() {
  const { state, models } = store.server;
  if (state !== "ready") return html`<button type="button" class=${`state ${state}`} onClick=${react}>${STATES[state]}</button>`;
  const choose = ({ target }) => {
    store.set({ model: target.value });
    store.connect();
  };
  return html`
    <div class="model">
      ${models.length > 1
        ? html`<select aria-label="Model" value=${store.model} onChange=${choose}>
            ${models.map(({ id }) => html`<option value=${id}>${id}</option>`)}
          </select>`
        : html`<span class="model-name" title=${store.model}>${store.model}</span>`}
      <${IconButton} name="info" label="About this model" onClick=${() => store.show("model")} />
    </div>
  `;
}

const react = () => (store.server.state === "locked" ? store.show("settings") : store.connect());
