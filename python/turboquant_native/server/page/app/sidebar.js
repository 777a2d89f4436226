import { IconButton, icon } from "./icons.js";
import { html, useState } from "./preact.js";
import { store } from "./store.js";
import { download } from "./text.js";

const DAY = 86_400_000;

function ageOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "Last 7 days";
  if (time >= today - 30 * DAY) return "Last 30 days";
  return "Older";
}

export function Sidebar({ close, chosen }) {
  const [wanted, setWanted] = useState("");
  const found = store.heads.filter((head) => head.title.toLowerCase().includes(wanted.trim().toLowerCase()));
  const groups = Map.groupBy ? Map.groupBy(found, (head) => ageOf(head.updated)) : new Map([["", found]]);
  const fresh = () => {
    store.fresh();
    chosen();
  };
  return html`
    <nav class="sidebar" aria-label="Chats">
      <div class="side-head">
        <span class="brand"><img src="icon.svg" alt="" width="22" height="22" />turboquant</span>
        <${IconButton} name="sidebar" label="Hide chats (Ctrl+Shift+S)" onClick=${close} />
      </div>
      <button type="button" class="new-chat" onClick=${fresh}>${icon("plus")} New chat</button>
      <label class="find">${icon("search")}<input type="search" placeholder="Find a chat" value=${wanted} onInput=${(e) => setWanted(e.target.value)} /></label>
      <div class="chat-list">
        ${[...groups].map(([age, heads]) => html`
          <section key=${age}>
            <h2>${age}</h2>
            <ul>${heads.map((head) => html`<${Entry} key=${head.id} head=${head} chosen=${chosen} />`)}</ul>
          </section>
        `)}
        ${!found.length && html`<p class="empty">${wanted ? "No chat is called so." : "Chats stay in this browser. None yet."}</p>`}
      </div>
    </nav>
  `;
}

function Entry({ head, chosen }) {
  const [renaming, setRenaming] = useState(false);
  const current = head.id === store.chat.id;
  const open = () => store.open(head.id).then(chosen);
  if (renaming) return html`<li><${Rename} head=${head} done=${() => setRenaming(false)} /></li>`;
  return html`
    <li class=${current ? "current" : ""}>
      <button type="button" class="chat-link" aria-current=${current ? "true" : null} title=${head.title} onClick=${open} onDblClick=${() => setRenaming(true)}>
        ${store.running.has(head.id) && html`<span class="pulse" role="img" aria-label="Answering"></span>`}${head.title || "New chat"}
      </button>
      <span class="chat-tools">
        <${IconButton} name="edit" label="Rename" onClick=${() => setRenaming(true)} />
        <${IconButton} name="export" label="Export as JSON" onClick=${() => exportChat(head)} />
        <${IconButton} name="trash" label="Delete" onClick=${() => store.discard(head.id)} />
      </span>
    </li>
  `;
}

const exportChat = async (head) => download(`${head.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "chat"}.json`, await store.exportOne(head.id));

function Rename({ head, done }) {
  const finish = ({ target }) => {
    if (target.value.trim() && target.value !== head.title) store.rename(head.id, target.value.trim());
    done();
  };
  const onKey = (event) => {
    if (event.key === "Enter") event.target.blur();
    if (event.key === "Escape") done();
    event.stopPropagation();
  };
  return html`<input class="rename" aria-label="Title" value=${head.title} ref=${(field) => field?.select()} onBlur=${finish} onKeyDown=${onKey} />`;
}
