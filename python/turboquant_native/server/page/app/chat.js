// A chat is a tree of messages: each names its parent, so an edited question or a second answer stands beside the first.
// `leaf` is the end of the branch that is shown. Everything here is plain data that IndexedDB and JSON keep as it is.
import { finite, newId } from "./text.js";

export const newChat = () => ({ id: newId(), title: "", created: Date.now(), updated: Date.now(), messages: [], leaf: null });

export const find = (chat, id) => chat.messages.find((m) => m.id === id);

export function path(chat) {
  const byId = new Map(chat.messages.map((m) => [m.id, m]));
  const line = [];
  for (let m = byId.get(chat.leaf); m; m = byId.get(m.parent)) line.push(m);
  return line.reverse();
}

export const siblings = (chat, message) => chat.messages.filter((m) => m.parent === message.parent && m.role === message.role);

export function add(chat, message) {
  const added = { id: newId(), parent: chat.leaf, created: Date.now(), content: "", ...message };
  chat.messages.push(added);
  chat.leaf = added.id;
  chat.updated = Date.now();
  if (!chat.title && added.role === "user") chat.title = titleOf(added);
  return added;
}

function titleOf(message) {
  const line = message.content.trim().split("\n")[0] || message.files?.[0]?.name || "New chat";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

// Shows the branch through `message`, down to its newest end.
export function select(chat, message) {
  let end = message;
  for (;;) {
    const next = chat.messages.findLast((m) => m.parent === end.id);
    if (!next) break;
    end = next;
  }
  chat.leaf = end.id;
}

// Takes a message out with everything that follows it; shows a neighbour, else its parent.
export function remove(chat, message) {
  const gone = new Set([message.id]);
  for (const m of chat.messages) if (gone.has(m.parent)) gone.add(m.id); // parents stand before children
  const neighbour = siblings(chat, message).findLast((m) => m !== message);
  chat.messages = chat.messages.filter((m) => !gone.has(m.id));
  if (neighbour) select(chat, neighbour);
  else chat.leaf = message.parent;
  chat.updated = Date.now();
}

function fenced(file) {
  const longest = Math.max(2, ...(file.text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${file.name}\n${fence}\n${file.text}\n${fence}`;
}

const contentOf = (message) => [...(message.files ?? []).map(fenced), message.content].filter(Boolean).join("\n\n");

// The messages a request carries. Answers that failed empty are left out, and questions that then follow each other become one:
// many chat templates refuse two user turns in a row.
export function toRequest(messages, system) {
  const sent = system.trim() ? [{ role: "system", content: system }] : [];
  for (const m of messages) {
    const last = sent.at(-1);
    if (m.role === "tool") sent.push({ role: "tool", tool_call_id: m.toolCallId, content: m.content });
    else if (m.role === "user" && last?.role === "user") last.content += `\n\n${contentOf(m)}`;
    else if (m.role === "user") sent.push({ role: "user", content: contentOf(m) });
    else if (m.toolCalls?.length) sent.push({ role: "assistant", content: m.content || null, tool_calls: m.toolCalls });
    else if (m.content) sent.push({ role: "assistant", content: m.content });
  }
  return sent;
}

const FORMAT = "turboquant-native-chats";

export const exported = (chats) => JSON.stringify({ format: FORMAT, version: 1, chats }, null, 1);

// Chats of an exported file, as fresh objects of known shape; anything else is an error that says where.
export function imported(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not a JSON file: ${error.message}`);
  }
  if (data?.format !== FORMAT || !Array.isArray(data.chats)) throw new Error("This file holds no exported chats.");
  if (data.version !== 1) throw new Error(`These chats are of version ${data.version}; this page reads version 1.`);
  return data.chats.map(readChat);
}

function readChat(chat, index) {
  const where = `Chat ${index + 1}`;
  if (typeof chat?.id !== "string" || !Array.isArray(chat.messages)) throw new Error(`${where} has no id or no messages.`);
  const messages = chat.messages.map((m, i) => readMessage(m, `${where}, message ${i + 1}`));
  const known = new Set();
  for (const m of messages) {
    if (known.has(m.id)) throw new Error(`${where}: the message id ${m.id} stands twice.`);
    if (m.parent !== null && !known.has(m.parent)) throw new Error(`${where}: message ${m.id} follows one that is not there.`);
    known.add(m.id);
  }
  const leaf = known.has(chat.leaf) ? chat.leaf : (messages.at(-1)?.id ?? null);
  const now = Date.now();
  return { id: chat.id, title: string(chat.title), created: finite(chat.created) ?? now, updated: finite(chat.updated) ?? now, messages, leaf };
}

const string = (value) => (typeof value === "string" ? value : "");

function readMessage(m, where) {
  if (typeof m?.id !== "string" || !["user", "assistant", "tool"].includes(m.role)) throw new Error(`${where} has no id or an unknown role.`);
  if (typeof m.content !== "string") throw new Error(`${where}: the content is not text.`);
  const read = { id: m.id, parent: typeof m.parent === "string" ? m.parent : null, role: m.role, content: m.content };
  read.created = finite(m.created) ?? Date.now();
  for (const name of ["reasoning", "model", "finish", "status", "toolCallId"]) if (typeof m[name] === "string") read[name] = m[name];
  if (Array.isArray(m.files)) read.files = m.files.map((f) => ({ name: string(f?.name), text: string(f?.text), tokens: finite(f?.tokens) }));
  if (Array.isArray(m.toolCalls)) read.toolCalls = m.toolCalls.map(readToolCall);
  for (const name of ["usage", "timings"]) if (m[name] && typeof m[name] === "object") read[name] = numbers(m[name]);
  for (const name of ["elapsed", "reasoningTime", "rate"]) if (finite(m[name]) !== null) read[name] = m[name];
  if (m.error && typeof m.error === "object") read.error = { title: string(m.error.title), text: string(m.error.text), action: string(m.error.action) };
  return settled(read);
}

const readToolCall = (call) => ({
  id: string(call?.id),
  type: "function",
  function: { name: string(call?.function?.name), arguments: string(call?.function?.arguments) },
});

export const numbers = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => finite(value) !== null));

// A message that was being written when the page closed was stopped there.
export function settled(message) {
  if (message.status === "waiting" || message.status === "streaming") message.status = "stopped";
  return message;
}
