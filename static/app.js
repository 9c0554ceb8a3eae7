// What every page needs beyond HTML: theme, menus, dialogs, copying, toasts, and htmx's manners.

const root = document.documentElement;
// A success may go by itself, unless somebody is at it; an error stays until it has been read.
const goes = (toast) => {
  if (toast.matches(".toast-danger")) return;
  setTimeout(() => (toast.matches(":hover, :focus-within") ? goes(toast) : toast.remove()), 6000);
};
const message = (text, kind = "success") => {
  const toast = document.createElement("div");
  toast.className = `toast toast-${kind}`;
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Dismiss";
  close.addEventListener("click", () => toast.remove());
  toast.append(text, close);
  document.getElementById("toasts").append(toast);
  goes(toast);
};
export { message };
for (const toast of document.querySelectorAll(".toast")) goes(toast);

// ---- theme: system, light, dark ----
const themes = ["system", "light", "dark"];
const names = { system: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
const toggle = document.getElementById("theme");
if (toggle) {
  const show = () => (toggle.querySelector("[data-theme-name]").textContent = names[root.dataset.theme ?? "system"]);
  toggle.hidden = false;
  show();
  toggle.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem("theme");
      else localStorage.setItem("theme", next);
    } catch {
      // Kept for this page only.
    }
    show();
  });
}

// ---- menu line and tabs: where they do not all fit, the current one is in view ----
for (const here of document.querySelectorAll(':is(.header nav, .tabs) [aria-current="page"]')) {
  here.scrollIntoView({ inline: "center", block: "nearest" });
}

// ---- menus: close on Escape and on a click elsewhere ----
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest?.("details.menu[open]");
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// A dialog opened from a menu gives the focus back to the menu's button: the menu itself is closed by then.
document.addEventListener(
  "close",
  (event) => {
    const opener = event.target.id && document.querySelector(`[commandfor="${CSS.escape(event.target.id)}"]`);
    const menu = opener?.closest("[popover]");
    if (menu) document.querySelector(`[popovertarget="${CSS.escape(menu.id)}"]`)?.focus();
  },
  true,
);

// ---- dialogs: <button command="show-modal" commandfor="id">; older browsers get the same from here ----
if (!("commandForElement" in HTMLButtonElement.prototype)) {
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[commandfor]");
    const dialog = button && document.getElementById(button.getAttribute("commandfor"));
    if (!dialog) return;
    if (button.getAttribute("command") === "show-modal") dialog.showModal();
    if (button.getAttribute("command") === "close") dialog.close();
  });
}

// ---- copy: <button data-copy="#id"> ----
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy);
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    button.textContent = "Copied";
  } catch {
    // Plain HTTP has no clipboard: select it, so that the person's own keys do it.
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl-C";
  }
  setTimeout(() => (button.textContent = label), 2500);
});

// ---- a form that is on its way is not sent twice ----
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  root.classList.add("busy");
});
window.addEventListener("pageshow", () => {
  root.classList.remove("busy");
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// ---- tables: <table data-sortable>; a cell may say data-value ----
const value = (row, column) => {
  const cell = row.cells[column];
  return cell?.dataset.value ?? cell?.textContent.trim() ?? "";
};
const sortBy = (table, header) => {
  const column = [...header.parentElement.children].indexOf(header);
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => value(a, column).localeCompare(value(b, column), undefined, { numeric: true }));
  if (down) rows.reverse();
  table.tBodies[0].append(...rows);
};
const makeSortable = (within) => {
  for (const header of within.querySelectorAll("table[data-sortable] th:not(:has(button), .actions)")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortBy(header.closest("table"), header));
  }
};
makeSortable(document);

// ---- htmx ----
document.addEventListener("htmx:configRequest", (event) => {
  const token = document.querySelector('meta[name="csrf-token"]')?.content;
  if (token) event.detail.headers["X-CSRF-Token"] = token;
});
document.addEventListener("htmx:beforeRequest", () => root.classList.add("busy"));
document.addEventListener("htmx:afterRequest", () => root.classList.remove("busy"));
document.addEventListener("htmx:load", (event) => makeSortable(event.detail.elt));
document.addEventListener("htmx:sendError", () => message("The server cannot be reached. What you see may be old.", "danger"));
document.addEventListener("htmx:timeout", () => message("The server takes too long. Try again.", "danger"));
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) return; // on the way to the sign-in page
  const page = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
  message(page.querySelector("[data-error-message]")?.textContent.trim() ?? "That did not work. Try again.", "danger");
});
// The server says HX-Trigger: {"toast": {"text": "…", "kind": "success"}}.
document.addEventListener("toast", (event) => message(event.detail.text, event.detail.kind));
document.getElementById("toasts").addEventListener("click", (event) => {
  if (event.target.matches("[data-dismiss]")) event.target.closest(".toast").remove();
});
