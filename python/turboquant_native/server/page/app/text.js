// Numbers, times and sizes as the page writes them.

export const whole = (n) => Math.round(n).toLocaleString("en-US");

export const rate = (n) => `${n >= 100 ? whole(n) : n.toFixed(1)} tok/s`;

export function seconds(ms) {
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export const count = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

export const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

// randomUUID needs HTTPS or localhost; this page is also read over plain HTTP in a local network.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), { value: text, className: "offscreen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy"); // the only way outside HTTPS and localhost
  area.remove();
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
