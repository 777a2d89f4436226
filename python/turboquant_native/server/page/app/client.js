// The server's protocol: four endpoints, server-sent events, errors in OpenAI's shape.

export class ServerError extends Error {
  constructor(status, message, code = "", retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

// Relative to the page, so that it also works under a prefix of a proxy.
async function request(path, key, options = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(options.body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached.", "unreachable");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    const body = JSON.parse(text);
    error = body.error ?? { message: body.detail };
  } catch {
    // Not JSON: a proxy's page. The status says enough.
  }
  const message = typeof error.message === "string" ? error.message : response.statusText || `Status ${response.status}`;
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return new ServerError(response.status, message, String(error.code ?? ""), Number.isFinite(seconds) ? seconds : null);
}

const json = async (path, key, options) => (await request(path, key, options)).json();

export async function models(key) {
  const { data } = await json("v1/models", key);
  return (Array.isArray(data) ? data : []).filter((model) => typeof model?.id === "string");
}

export const props = (key, model) => json(`props${model ? `?model=${encodeURIComponent(model)}` : ""}`, key);

export async function tokenCount(key, content, model) {
  const { tokens } = await json("tokenize", key, { method: "POST", body: JSON.stringify({ content, ...(model && { model }) }) });
  return Array.isArray(tokens) ? tokens.length : null;
}

// Yields every chunk of a streamed chat completion. An end without `[DONE]` is an error: the connection broke.
export async function* streamChat(key, body, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true }, return_progress: true };
  const response = await request("v1/chat/completions", key, { method: "POST", body: JSON.stringify(streamed), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk.error) throw new ServerError(chunk.error.status ?? 500, String(chunk.error.message ?? "The server failed."), String(chunk.error.code ?? ""));
    yield chunk;
  }
  throw new ServerError(0, "The connection ended before the answer did.", "broken");
}

function parse(data) {
  try {
    const chunk = JSON.parse(data);
    if (chunk && typeof chunk === "object") return chunk;
  } catch {
    // Said below.
  }
  throw new ServerError(500, `The server sent something that is not a JSON object: ${data.slice(0, 80)}`);
}

// The data of each server-sent event. Other fields and comments (`: keep-alive`) are skipped.
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(lost);
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closing the stream is what stops the server
  }
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new ServerError(0, "The connection broke before the answer ended.", "broken");
}
