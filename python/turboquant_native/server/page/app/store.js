// The page's state and everything that changes it. Components subscribe: to the whole, or to one message while it is written.
import * as tree from "./chat.js";
import * as client from "./client.js";
import * as db from "./db.js";
import { generate } from "./generate.js";
import { loadSettings, saveSettings } from "./settings.js";
import { count, newId } from "./text.js";

const SAVE_EVERY = 2000; // ms, while an answer grows
const ASK_AGAIN = 5000; // ms, while the server does not answer

const STATES = { 401: "locked", 503: "loading" };

class Store {
  settings = loadSettings();
  heads = []; // of all kept chats, newest first
  chat = tree.newChat(); // the one that is shown; kept once it has a message
  running = new Map(); // chat id -> AbortController of its answer
  server = { state: "connecting", models: [], props: null, error: null };
  notice = null; // { text, undo }
  dialog = null; // "settings" | "model" | "shortcuts"
  #again = 0; // timer of the next try to connect
  #shown = 0; // how often another chat was shown: a chat that took long to load must not replace one that was chosen later
  #listeners = new Set();
  #watchers = new Map(); // message id -> function
  #open = new Map(); // chat id -> chat whose answer is running: the object that grows must be the one that is shown
  #channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("turboquant") : null;

  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  watch(id, listener) {
    this.#watchers.set(id, listener);
    return () => this.#watchers.get(id) === listener && this.#watchers.delete(id);
  }

  changed() {
    for (const listener of this.#listeners) listener();
  }

  touched(id) {
    this.#watchers.get(id)?.();
  }

  show(dialog) {
    this.dialog = dialog;
    this.changed();
  }

  say(text, undo = null) {
    this.notice = { text, undo };
    this.changed();
  }

  set(changes) {
    Object.assign(this.settings, changes);
    saveSettings(this.settings);
    this.changed();
  }

  // ---- server

  async connect() {
    clearTimeout(this.#again);
    const { key, model } = this.settings;
    try {
      const models = await client.models(key);
      if (model && !models.some(({ id }) => id === model)) this.settings.model = "";
      const props = await client.props(key, models.length > 1 ? this.settings.model : "");
      this.server = { state: "ready", models, props, error: null };
    } catch (error) {
      this.server = { ...this.server, state: STATES[error.status] ?? "offline", error };
      if (this.server.state !== "locked") this.#again = setTimeout(() => this.connect(), ASK_AGAIN);
    }
    this.changed();
  }

  get model() {
    return this.settings.model || this.server.models[0]?.id || "";
  }

  get context() {
    const { props } = this.server;
    return props?.n_ctx ?? props?.default_generation_settings?.n_ctx ?? null;
  }

  // What a request gets that says nothing; llama-server has these one level deeper.
  get defaults() {
    const settings = this.server.props?.default_generation_settings;
    return settings?.params ?? settings ?? {};
  }

  // ---- chats

  async start() {
    this.#channel?.addEventListener("message", ({ data }) => this.#elsewhere(data));
    await this.#readHeads();
    const id = location.hash.slice(1);
    if (id) await this.open(id);
    if (!(await db.persistent())) this.say("This browser keeps no data: chats are gone when the page closes.");
    this.changed();
  }

  async #readHeads() {
    this.heads = (await db.heads()).sort((a, b) => b.updated - a.updated);
  }

  async #elsewhere(id) {
    await this.#readHeads();
    if (id === this.chat.id && !this.running.has(id)) this.chat = (await db.load(id)) ?? tree.newChat();
    this.changed();
  }

  // When the page closes: what has been written of running answers.
  keepRunning() {
    for (const chat of this.#open.values()) db.save(chat);
  }

  fresh() {
    this.#show(tree.newChat());
  }

  async open(id) {
    const turn = ++this.#shown;
    // The shown chat is not loaded again: it may have changed since it was stored.
    const chat = id === this.chat.id ? this.chat : (this.#open.get(id) ?? (await db.load(id)));
    if (!chat || turn !== this.#shown) return;
    if (!this.running.has(id)) chat.messages.forEach(tree.settled);
    this.#show(chat);
  }

  #show(chat) {
    this.#shown += 1;
    this.chat = chat;
    history.replaceState(null, "", chat.messages.length ? `#${chat.id}` : location.pathname + location.search);
    this.changed();
  }

  async keep(chat) {
    const { id, title, created, updated } = chat;
    this.heads = [{ id, title, created, updated }, ...this.heads.filter((head) => head.id !== id)].sort((a, b) => b.updated - a.updated);
    if (chat === this.chat) history.replaceState(null, "", `#${id}`);
    try {
      await db.save(chat);
      this.#channel?.postMessage(id);
    } catch (error) {
      this.say(`The chat could not be saved: ${error.message}`);
    }
  }

  async rename(id, title) {
    const chat = id === this.chat.id ? this.chat : (this.#open.get(id) ?? (await db.load(id)));
    chat.title = title;
    await this.keep(chat);
    this.changed();
  }

  async discard(id) {
    this.stop(id);
    const chat = id === this.chat.id ? this.chat : await db.load(id);
    await db.remove(id);
    this.heads = this.heads.filter((head) => head.id !== id);
    if (id === this.chat.id) this.fresh();
    this.#channel?.postMessage(id);
    this.say(`Deleted “${chat?.title ?? "chat"}”`, async () => {
      await this.keep(chat);
      await this.open(id);
    });
  }

  async discardAll() {
    for (const { id } of [...this.heads]) {
      this.stop(id);
      await db.remove(id);
    }
    this.heads = [];
    this.fresh();
    this.say("All chats are deleted.");
  }

  exportAll = async () => tree.exported(await db.loadAll());

  async exportOne(id) {
    return tree.exported([id === this.chat.id ? this.chat : await db.load(id)]);
  }

  // A chat that is here already, unchanged, is skipped; one whose id is taken comes in under a new id.
  async import(text) {
    const known = new Map(this.heads.map((head) => [head.id, head.updated]));
    const chats = tree.imported(text).filter((chat) => known.get(chat.id) !== chat.updated);
    for (const chat of chats) await this.keep(known.has(chat.id) ? { ...chat, id: newId() } : chat);
    this.say(chats.length ? `Imported ${count(chats.length, "chat")}` : "All of these chats are here already.");
  }

  // ---- messages of the shown chat

  get busy() {
    return this.running.has(this.chat.id);
  }

  send(content, files = []) {
    tree.add(this.chat, { role: "user", content, ...(files.length && { files }) });
    return this.answer(this.chat);
  }

  edit(message, content) {
    if (message.role === "assistant") {
      message.content = content;
      this.chat.updated = Date.now();
      this.touched(message.id);
      return this.#keepShown();
    }
    this.chat.leaf = message.parent;
    return this.send(content, message.files);
  }

  regenerate(message) {
    this.chat.leaf = message.parent;
    if (!message.content && !message.toolCalls?.length) tree.remove(this.chat, message); // a failed try is not worth keeping
    this.chat.leaf = message.parent;
    return this.answer(this.chat);
  }

  answerTools(message, results) {
    for (const [i, call] of message.toolCalls.entries()) tree.add(this.chat, { role: "tool", toolCallId: call.id, content: results[i] });
    return this.answer(this.chat);
  }

  choose(message) {
    tree.select(this.chat, message);
    return this.#keepShown();
  }

  removeMessage(message) {
    const before = structuredClone(this.chat);
    const chat = this.chat;
    tree.remove(chat, message);
    this.say("Deleted the message and what followed it", () => {
      Object.assign(chat, before);
      return this.keep(chat).then(() => this.changed());
    });
    return this.#keepShown();
  }

  async #keepShown() {
    this.changed();
    await this.keep(this.chat);
    this.changed();
  }

  stop(id = this.chat.id) {
    this.running.get(id)?.abort();
  }

  async answer(chat) {
    const controller = new AbortController();
    const context = tree.toRequest(tree.path(chat), this.settings.system);
    const message = tree.add(chat, { role: "assistant", status: "waiting", model: this.model });
    this.running.set(chat.id, controller);
    this.#open.set(chat.id, chat);
    await this.keep(chat);
    this.changed();
    const saving = setInterval(() => this.keep(chat), SAVE_EVERY);
    await generate(message, context, this.settings, controller.signal, () => this.touched(message.id));
    clearInterval(saving);
    chat.updated = Date.now();
    if (this.heads.some((head) => head.id === chat.id)) await this.keep(chat); // it may have been deleted meanwhile
    this.running.delete(chat.id);
    this.#open.delete(chat.id); // until here a page that closes keeps it
    this.touched(message.id); // done is what is stored
    this.changed();
    if (["unreachable", "401", "503"].includes(message.error?.kind)) this.connect();
  }
}

export const store = new Store();
