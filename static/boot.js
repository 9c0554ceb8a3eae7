// Runs before anything is painted or any other script: the chosen theme, and the one Trusted Types policy.
// htmx turns the server's fragments into elements, which browsers allow through a policy only. Fragments come from this
// origin alone (htmx.config.selfRequestsOnly) and the content security policy stops any script in them.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system's theme it is.
}
if (window.trustedTypes) window.trustedTypes.createPolicy("default", { createHTML: (html) => html });
