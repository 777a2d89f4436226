// What the reader chose, kept in localStorage. A parameter that is not set is not sent: the server's default holds.

const KEY = "turboquant.settings";

// name: [label, explanation, lowest, highest, step]
export const PARAMETERS = {
  temperature: ["Temperature", "0 always takes the likeliest token; higher is more varied", 0, 5, 0.05],
  top_p: ["Top-p", "The likeliest tokens that together reach this probability", 0, 1, 0.01],
  top_k: ["Top-k", "The k likeliest tokens; 0 takes all", 0, 100_000, 1],
  min_p: ["Min-p", "Tokens at least this likely, relative to the likeliest", 0, 1, 0.01],
  repeat_penalty: ["Repeat penalty", "Above 1: tokens already used become less likely", 0, 5, 0.01],
  max_tokens: ["Max tokens", "The longest answer", 1, 10_000_000, 1],
  seed: ["Seed", "The same seed, prompt and parameters give the same answer", 0, 4_294_967_295, 1],
};

const DEFAULTS = { key: "", theme: "system", model: "", system: "", thinking: "", tools: "", sidebar: true, parameters: {} };

export function loadSettings() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    const known = Object.entries(kept).filter(([name, value]) => typeof value === typeof DEFAULTS[name] && value !== null);
    return { ...DEFAULTS, ...Object.fromEntries(known) };
  } catch {
    return { ...DEFAULTS };
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Storage refused: they hold until the page closes.
  }
}

// A field's text as a number: null where it is empty, an error's text where it is not one of the range.
export function readParameter(name, text) {
  const [label, , low, high, step] = PARAMETERS[name];
  if (!text.trim()) return { value: null };
  const value = Number(text);
  if (!Number.isFinite(value) || value < low || value > high) return { error: `${label} is a number from ${low} to ${high}` };
  if (step === 1 && !Number.isInteger(value)) return { error: `${label} is a whole number` };
  return { value };
}

export function readTools(text) {
  if (!text.trim()) return { value: null };
  try {
    const value = JSON.parse(text);
    if (Array.isArray(value) && value.every((tool) => tool?.type === "function" && tool.function?.name)) return { value };
    return { error: 'A list of {"type": "function", "function": {"name": …, "parameters": …}}' };
  } catch (error) {
    return { error: error.message };
  }
}

// The part of a request that settings decide.
export function requestOptions(settings) {
  const tools = readTools(settings.tools).value;
  return {
    ...(settings.model && { model: settings.model }),
    ...settings.parameters,
    ...(tools && { tools }),
    ...(settings.thinking && { chat_template_kwargs: { enable_thinking: settings.thinking === "on" } }),
  };
}
