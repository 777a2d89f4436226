// The page: sidebar, conversation, composer, dialogs; keyboard; theme.
import { copyText } from "./text.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { dialogs } from "./dialogs.js";
import { Header } from "./header.js";
import { html, render, useEffect, useState } from "./preact.js";
import { Sidebar } from "./sidebar.js";
import { store } from "./store.js";

const NARROW = matchMedia("(max-width: 760px)");
const DARK = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const { theme } = store.settings;
  document.documentElement.dataset.theme = theme === "dark" || (theme === "system" && DARK.matches) ? "dark" : "light";
}

function App() {
  const [, redraw] = useState(0);
  const [drawer, setDrawer] = useState(false); // the sidebar of a narrow page
  useEffect(() => store.subscribe(() => redraw((n) => n + 1)), []);
  const open = NARROW.matches ? drawer : store.settings.sidebar;
  const toggle = () => (NARROW.matches ? setDrawer(!drawer) : store.set({ sidebar: !open }));
  useEffect(() => {
    const onKey = (event) => shortcut(event, toggle);
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });
  return html`
    <div class=${`app ${open ? "with-sidebar" : ""}`}>
      ${open && html`<${Sidebar} close=${toggle} chosen=${() => setDrawer(false)} />`}
      ${open && html`<div class="shade" onClick=${toggle}></div>`}
      <main>
        <${Header} open=${open} toggle=${toggle} />
        <${Conversation} key=${store.chat.id} chat=${store.chat} busy=${store.busy} />
        <${Composer} />
      </main>
      ${dialogs()} ${store.notice && html`<${Notice} notice=${store.notice} />`}
    </div>
  `;
}

function Notice({ notice }) {
  useEffect(() => {
    const timer = setTimeout(() => store.say(""), notice.undo ? 8000 : 4000);
    return () => clearTimeout(timer);
  }, [notice]);
  if (!notice.text) return null;
  const undo = () => {
    store.say("");
    notice.undo();
  };
  return html`<div class="notice" role="status">${notice.text} ${notice.undo && html`<button type="button" onClick=${undo}>Undo</button>`}</div>`;
}

const writing = (target) => target instanceof HTMLElement && target.matches("input, textarea, select");

function shortcut(event, toggleSidebar) {
  if (document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey;
  const actions = {
    [event.key === "Escape" && store.busy && "stop"]: () => store.stop(),
    [command && event.shiftKey && event.code === "KeyO" && "new"]: () => store.fresh(),
    [command && event.shiftKey && event.code === "KeyS" && "sidebar"]: toggleSidebar,
    [command && event.key === "," && "settings"]: () => store.show("settings"),
    [event.key === "/" && !writing(event.target) && "write"]: () => document.querySelector("#prompt").focus(),
    [event.key === "?" && !writing(event.target) && "help"]: () => store.show("shortcuts"),
  };
  delete actions[false];
  const [action] = Object.values(actions);
  if (!action) return;
  event.preventDefault();
  action();
}

// Code blocks are sanitized HTML without handlers: their copy buttons are served here.
document.addEventListener("click", async ({ target }) => {
  if (!(target instanceof HTMLElement) || !target.matches(".code-copy")) return;
  await copyText(target.closest(".code").querySelector("code").textContent);
  target.textContent = "Copied";
  setTimeout(() => (target.textContent = "Copy"), 1500);
});

store.subscribe(applyTheme);
for (const query of [NARROW, DARK]) query.addEventListener("change", () => store.changed());
addEventListener("pagehide", () => store.keepRunning());
await store.start();
render(html`<${App} />`, document.querySelector("#app"));
await store.connect();
