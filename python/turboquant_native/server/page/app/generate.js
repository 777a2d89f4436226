// Runs one answer: reads the stream into `message` (plain data) and asks for a repaint at most once a frame; not of its end.
import { numbers } from "./chat.js";
import { ServerError, streamChat } from "./client.js";
import { requestOptions } from "./settings.js";
import { finite, seconds } from "./text.js";

export async function generate(message, context, settings, signal, repaint) {
  const started = performance.now();
  let ended = false;
  const frame = oncePerFrame(() => ended || repaint());
  try {
    for await (const chunk of streamChat(settings.key, { ...requestOptions(settings), messages: context }, signal)) {
      apply(chunk, message, performance.now() - started);
      frame();
    }
    message.status = "done";
  } catch (error) {
    message.status = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) message.error = explain(error);
  }
  ended = true;
  message.elapsed = performance.now() - started;
  message.rate = rateOf(message);
  delete message.progress;
  delete message.live;
}

// Tokens per second: the server's own measure, else what arrived here.
export function rateOf({ timings, usage, live }) {
  if (timings?.predicted_per_second) return timings.predicted_per_second;
  const tokens = usage?.completion_tokens ?? live?.chunks ?? 0;
  return tokens > 1 && live.last > live.first ? ((tokens - 1) * 1000) / (live.last - live.first) : null;
}

function oncePerFrame(call) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      call();
    });
  };
}

function apply(chunk, message, now) {
  if (typeof chunk.model === "string") message.model = chunk.model;
  if (chunk.usage && typeof chunk.usage === "object") message.usage = readUsage(chunk.usage);
  if (chunk.timings && typeof chunk.timings === "object") message.timings = numbers(chunk.timings);
  if (finite(chunk.prompt_progress?.total)) message.progress = numbers(chunk.prompt_progress);
  const choice = chunk.choices?.[0];
  if (!choice) return;
  if (typeof choice.finish_reason === "string") message.finish = choice.finish_reason;
  applyDelta(choice.delta ?? {}, message, now);
}

function readUsage(usage) {
  return numbers({ ...usage, cached_tokens: usage.prompt_tokens_details?.cached_tokens });
}

function applyDelta(delta, message, now) {
  const thought = typeof delta.reasoning_content === "string" ? delta.reasoning_content : "";
  const said = typeof delta.content === "string" ? delta.content : "";
  const calls = Array.isArray(delta.tool_calls) ? delta.tool_calls : [];
  if (!thought && !said && !calls.length) return;
  message.status = "streaming";
  message.live ??= { first: now, chunks: 0 };
  message.live.chunks += 1;
  message.live.last = now;
  if (thought) message.reasoning = (message.reasoning ?? "") + thought;
  if (message.reasoning && !message.content && (thought || said)) message.reasoningTime = now - message.live.first;
  message.content += said;
  for (const call of calls) applyToolCall(call, message);
}

function applyToolCall(part, message) {
  message.toolCalls ??= [];
  const index = Number.isInteger(part.index) ? Math.min(part.index, message.toolCalls.length) : message.toolCalls.length;
  const call = (message.toolCalls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
  if (typeof part.id === "string") call.id = part.id;
  if (typeof part.function?.name === "string") call.function.name += part.function.name;
  if (typeof part.function?.arguments === "string") call.function.arguments += part.function.arguments;
}

const wait = (error) => (error.retryAfter ? ` Try again in ${seconds(error.retryAfter * 1000)}.` : "");

// [title, what the button does] by error code, then by status.
const EXPLANATIONS = {
  context_length_exceeded: ["The chat no longer fits the model's context", "new"],
  unreachable: ["The server cannot be reached", "retry"],
  broken: ["The connection broke", "retry"],
  401: ["The server asks for an API key", "key"],
  403: ["The API key is not allowed to do this", "key"],
  413: ["The message is too large", ""],
  429: ["The server is busy", "retry"],
  503: ["The server is not ready", "retry"],
};

function explain(error) {
  const kind = error.code in EXPLANATIONS ? error.code : String(error.status ?? "");
  const [title, action] = EXPLANATIONS[kind] ?? ["The answer failed", "retry"];
  const detail = error instanceof ServerError ? error.message + wait(error) : `${error.name}: ${error.message}`;
  return { kind, title, text: detail, action };
}
