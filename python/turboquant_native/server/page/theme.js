// Before the first paint, so that a dark page never flashes white: a classic script, run before the modules.
(() => {
  let theme = "system";
  try {
    theme = JSON.parse(localStorage.getItem("turboquant.settings") ?? "{}").theme ?? "system";
  } catch {
    // Storage refused or damaged: the system's theme.
  }
  const dark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
