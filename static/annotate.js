// The annotator's workspace: the comparison on screen, the next ones behind it, and the outbox.
//
// A submit puts the answer into the outbox and shows the next comparison at once; the answer travels meanwhile, and its
// reply brings the comparison after that, as HTML from the server.

import { Outbox, newKey, send, store } from "./annotate-outbox.js";
import { acting, keyOf, typing } from "./annotate-keys.js";
import { scrollBy, syncPanes } from "./annotate-reading.js";

const find = (id) => document.getElementById(id);
const workspace = find("workspace");
const stage = find("stage");
const { campaign, person } = workspace.dataset;
const base = `/campaigns/${campaign}/annotate`;
const LOOK_EVERY = 20_000;
const RENEW_EVERY = 4 * 60_000;
const REREAD = 300; // ms in which a second key press belongs to the comparison before
const DRAFT_DAYS = 14;

const ahead = []; // views, drawn and waiting, the next first
let last = null; // the latest answer: {view, entry}
let counted = { done: 0, left: 0, more: false };
let swappedAt = 0;
let lastSeen = Date.now();
let pointing = false;
let looking = false;

document.documentElement.classList.add("scripted");

// ---- what is where ----
const formIn = (view) => view?.querySelector("form.comparison") ?? null;
const idOf = (view) => formIn(view)?.dataset.assignment ?? null;
const view = () => stage.querySelector(".view");
const form = () => formIn(view());
const holding = () => [...[view(), ...ahead].map(idOf), ...outbox.all().map((entry) => entry.assignment)].filter(Boolean);
const say = (text) => (find("say").textContent = text);

// ---- the top line ----
const drawProgress = () => {
  const pending = outbox.waiting().filter((entry) => entry.campaign === campaign && !entry.skip).length;
  const done = counted.done + pending;
  const total = Math.max(counted.done + counted.left, done);
  find("done").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")}${counted.more ? "+" : ""}`;
  find("done-bar").max = total || 1;
  find("done-bar").value = done;
};
const learn = (fresh) => {
  counted = { done: Number(fresh.dataset.done), left: Number(fresh.dataset.left), more: "more" in fresh.dataset };
  drawProgress();
};
const answers = (count) => (count === 1 ? "1 answer" : `${count} answers`);
const report = (state, waiting, words) => {
  const saved = find("saved");
  const before = saved.dataset.state;
  saved.dataset.state = state;
  saved.textContent = { saving: "saving…", saved: "saved ✓", offline: `offline, ${waiting} waiting`, locked: `${waiting} waiting` }[state];
  if (state === before) return;
  if (state === "offline") {
    say(`The server cannot be reached. ${answers(waiting)} kept in this browser; sent as soon as it is back.`);
    if (!form() && !view()?.querySelector("[data-nothing]")) wait();
  }
  if (state === "saved" && before === "offline") say("Connected again. Everything is saved.");
  drawLock(state === "locked" ? waiting : 0, words);
};

// ---- trouble: what the server said, in its own words, until the person has dealt with it ----
const notice = (id, text, ...buttons) => {
  find(id)?.remove();
  const box = document.createElement("div");
  box.className = "notice notice-bad";
  box.id = id;
  const words = document.createElement("div");
  words.textContent = text;
  const row = document.createElement("div");
  row.className = "row";
  row.append(...buttons);
  box.append(words, row);
  find("trouble").append(box);
  return words;
};
const button = (label, act) => {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "button button-small";
  made.textContent = label;
  made.addEventListener("click", act);
  return made;
};
const drawLock = (waiting, words) => {
  if (!waiting) return find("lock")?.remove();
  const kept = `${answers(waiting)} kept in this browser until then.`;
  if (words) return notice("lock", `${words} ${kept}`, button("Reload the page", () => location.reload()));
  const link = document.createElement("a");
  link.className = "button button-small";
  link.href = `/sign-in?next=${encodeURIComponent(location.pathname)}`;
  link.textContent = "Sign in again";
  return notice("lock", `You have been signed out. Sign in to go on; ${kept}`, link);
};
const drawRefusal = (entry, gone) => {
  const id = `refusal-${entry.assignment}`;
  const settle = () => {
    find(id)?.remove();
    outbox.drop(entry.assignment);
  };
  const buttons = [button("Discard this answer", settle)];
  if (gone) {
    const again = () => {
      settle();
      if (form()) ahead.unshift(view());
      show(gone);
    };
    buttons.unshift(button("Back to it", again));
  }
  const said = entry.skip ? "A skip" : `Your answer “${entry.said}”`;
  const words = notice(id, `${said} was not taken: ${entry.refusal}`, ...buttons);
  if (entry.fields.comment) {
    const comment = document.createElement("blockquote");
    comment.textContent = entry.fields.comment;
    words.append(comment);
  }
};

// ---- the outbox ----
const gone = new Map(); // views of answers on their way, in case one comes back
const outbox = new Outbox(person, {
  report,
  holding,
  stored: (entry, fresh) => {
    gone.delete(entry.assignment);
    channel?.postMessage({ settled: entry.assignment });
    if (entry.campaign === campaign && fresh) take(fresh);
  },
  refused: (entry) => {
    drawRefusal(entry, gone.get(entry.assignment));
    drawProgress();
    if (!form()) look();
  },
});

// ---- drafts ----
const draftKey = (id) => `tiebreak.draft.${person}.${id}`;
const keepDraft = () => {
  const { choice, comment } = form().elements;
  store.set(draftKey(form().dataset.assignment), { choice: choice.value, comment: comment.value, at: Date.now() });
};
const restoreDraft = (target) => {
  const draft = store.get(draftKey(target.dataset.assignment));
  if (!draft) return;
  for (const radio of target.querySelectorAll("input[name=choice]")) radio.checked = radio.value === draft.choice;
  target.elements.comment.value = draft.comment;
};
for (const key of store.keys(`tiebreak.draft.${person}.`)) {
  if (Date.now() - (store.get(key)?.at ?? 0) > DRAFT_DAYS * 86_400_000) store.remove(key);
}

// ---- time spent looking ----
const clock = { spent: 0, since: null };
const startClock = () => Object.assign(clock, { spent: 0, since: document.hidden ? null : performance.now() });
const spent = () => Math.round(clock.spent + (clock.since === null ? 0 : performance.now() - clock.since));
document.addEventListener("visibilitychange", () => {
  clock.spent = spent();
  clock.since = document.hidden ? null : performance.now();
});

// ---- showing ----
const prepare = () => {
  const target = form();
  if (!target) return;
  target.noValidate = true;
  restoreDraft(target);
  drawChoice();
  syncPanes(target);
  startClock();
};
const show = (fresh) => {
  stage.replaceChildren(fresh);
  swappedAt = performance.now();
  prepare();
  fresh.querySelector("[data-heading]")?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  idle(!form());
};
const wait = () => {
  const box = document.createElement("div");
  box.className = "view";
  const inner = document.createElement("section");
  inner.className = "nothing";
  inner.tabIndex = -1;
  inner.dataset.heading = "";
  const offline = find("saved").dataset.state === "offline";
  inner.textContent = offline
    ? "The server cannot be reached at the moment. What you answered is kept in this browser and sent as soon as it is back; leave this page open."
    : "Fetching the next comparison…";
  box.append(inner);
  show(box);
};
const advance = () => (ahead.length ? show(ahead.shift()) : wait());

// A view that the server sent: on screen if nothing else is, else behind what there is.
const take = (fresh) => {
  learn(fresh);
  const id = idOf(fresh);
  if (!id) {
    if (!form()) show(fresh);
    return;
  }
  if (idOf(view()) === id || ahead.some((other) => idOf(other) === id) || outbox.has(id)) return;
  if (form()) {
    ahead.push(fresh);
    return;
  }
  show(fresh);
  say("The next comparison is here.");
  look();
};
const look = async () => {
  if (looking || ahead.length) return;
  looking = true;
  const reply = await send(`${base}/next`, holding().map((id) => ["holding", id]));
  looking = false;
  if (reply.view) take(reply.view);
  else if (reply.status === 401) report("locked", outbox.waiting().length);
  else if (reply.refused) notice("lost", reply.refused, button("Reload the page", () => location.reload()));
};

// ---- with nothing on screen: listen, and look every 20 s regardless ----
let stream = null;
let timer = null;
let soon = null;
const idle = (yes) => {
  if (!yes) {
    stream?.close();
    clearInterval(timer);
    stream = timer = null;
  } else if (!timer) {
    timer = setInterval(() => document.hidden || look(), LOOK_EVERY);
    stream = new EventSource(`/campaigns/${campaign}/live`);
    stream.addEventListener("nudge", () => (soon ??= setTimeout(() => ((soon = null), look()), 500)));
  }
};
document.addEventListener("visibilitychange", () => document.hidden || form() || look());

// ---- choosing and submitting ----
const chosen = () => form()?.querySelector("input[name=choice]:checked") ?? null;
const drawChoice = () => {
  form().querySelector(".readout").textContent = chosen()?.getAttribute("aria-label") ?? "";
  form().querySelector(".bar-error")?.remove();
};
const complain = (text) => {
  const error = form().querySelector(".bar-error") ?? document.createElement("p");
  error.className = "bar-error";
  error.textContent = text;
  form().querySelector(".bar").prepend(error);
  say(text);
};
const submit = (since = performance.now()) => {
  const target = form();
  const choice = chosen();
  if (!choice) {
    complain(`Choose an answer first: keys 1 to ${target.querySelector(".scale").dataset.steps}, or one of the three below.`);
    return;
  }
  const entry = {
    assignment: target.dataset.assignment,
    campaign,
    url: target.getAttribute("action"),
    fields: { choice: choice.value, comment: target.elements.comment.value, elapsed_ms: spent(), key: newKey() },
    said: choice.getAttribute("aria-label"),
    skip: choice.value === "cannot_judge",
    at: Date.now(),
  };
  leave(entry, since);
};
const leave = (entry, since) => {
  const old = view();
  last = { view: old, entry };
  gone.set(entry.assignment, old);
  outbox.put(entry);
  store.remove(draftKey(entry.assignment));
  drawProgress();
  advance();
  snack(entry.skip ? "Skipped." : `${entry.said}.`, true);
  say(form() ? `${entry.said}. Next comparison.` : `${entry.said}.`);
  measure(since);
};
// From the key press to the frame that shows the next comparison; `performance.getEntriesByName("submit to next")`.
const measure = (since) => {
  const painted = new MessageChannel();
  painted.port1.onmessage = () => performance.measure("submit to next", { start: since, end: performance.now() });
  requestAnimationFrame(() => painted.port2.postMessage(null));
};
const skip = (reason, words) => {
  const dialog = find("skip");
  const { action } = dialog.querySelector("form");
  dialog.close();
  const entry = {
    assignment: form().dataset.assignment,
    campaign,
    url: new URL(action).pathname,
    fields: { reason, comment: form().elements.comment.value, key: newKey() },
    said: `Skipped: ${words}`,
    skip: true,
    at: Date.now(),
  };
  leave(entry, performance.now());
};

// ---- undo ----
let snackTimer = null;
const snack = (text, undoable) => {
  clearTimeout(snackTimer);
  find("snack-text").textContent = text;
  find("snack").querySelector("button").hidden = !undoable;
  find("snack").hidden = false;
  snackTimer = setTimeout(() => (find("snack").hidden = true), 6_000);
};
const bringBack = (fresh, text) => {
  if (form()) ahead.unshift(view());
  show(fresh);
  snack(text, false);
  say(text);
};
const undo = async () => {
  find("snack").hidden = true;
  if (outbox.waiting().length) await Promise.race([outbox.flush(), new Promise((done) => setTimeout(done, 2_500))]);
  const waiting = outbox.waiting();
  if (waiting.length) {
    // It has not left this browser as far as we know. Had it, answering again would be its next version.
    const latest = waiting.at(-1);
    if (last?.entry.assignment !== latest.assignment) {
      snack("Not now: answers of an earlier visit are still waiting for the server.", false);
      return;
    }
    outbox.drop(latest.assignment);
    bringBack(last.view, "Not sent yet: open again.");
    drawProgress();
    return;
  }
  const reply = await send(`${base}/undo`, []);
  if (reply.view) {
    learn(reply.view);
    const id = idOf(reply.view);
    const index = ahead.findIndex((other) => idOf(other) === id);
    if (index >= 0) ahead.splice(index, 1);
    if (idOf(view()) !== id) bringBack(reply.view, "The last one is open again.");
  } else snack(reply.refused ?? "The server cannot be reached, so nothing was undone.", false);
};

// ---- guidelines: opened by themselves the first time and whenever they have changed ----
const guidelines = find("guidelines");
const seenKey = `tiebreak.guidelines.${person}.${campaign}`;
const openGuidelines = (open) => {
  if (!guidelines) return;
  workspace.classList.toggle("with-guidelines", open);
  find("guidelines-button").setAttribute("aria-expanded", String(open));
  if (open) return;
  store.set(seenKey, workspace.dataset.guidelines);
  find("guidelines-changed").hidden = true;
};
const toggleGuidelines = () => {
  const open = !workspace.classList.contains("with-guidelines");
  openGuidelines(open);
  if (open) guidelines.focus({ preventScroll: true });
  else view().querySelector("[data-heading]")?.focus({ preventScroll: true });
};
if (guidelines) {
  find("guidelines-changed").hidden = [null, workspace.dataset.guidelines].includes(store.get(seenKey));
  workspace.classList.toggle("with-guidelines", Boolean(form()) && store.get(seenKey) !== workspace.dataset.guidelines);
  for (const id of ["guidelines-button", "guidelines-close", "guidelines-done"]) {
    find(id).addEventListener("click", (event) => {
      event.preventDefault();
      toggleGuidelines();
    });
  }
}

// ---- submit on choice ----
const atOnce = find("at-once");
atOnce.checked = store.get("tiebreak.at-once") === true;
atOnce.addEventListener("change", () => store.set("tiebreak.at-once", atOnce.checked));
const maybeSubmit = (since) => {
  if (atOnce.checked && chosen() && chosen().value !== "cannot_judge") submit(since);
};

// ---- events ----
stage.addEventListener("submit", (event) => {
  event.preventDefault();
  if (event.target.matches("[data-skip]")) skip(event.submitter.value, event.submitter.textContent.trim().replace(/^\d\s*/, ""));
  else submit(event.timeStamp);
});
find("undo-form").addEventListener("submit", (event) => {
  event.preventDefault();
  undo();
});
stage.addEventListener("input", () => form() && keepDraft());
stage.addEventListener("change", (event) => {
  if (event.target.name !== "choice") return;
  drawChoice();
  if (pointing) maybeSubmit(event.timeStamp);
});
document.addEventListener("pointerdown", () => {
  pointing = true;
  lastSeen = Date.now();
});

const pick = (key, since) => {
  const radio = form()?.querySelector(`input[data-key="${CSS.escape(key)}"]`);
  if (!radio) return false;
  if (atOnce.checked && performance.now() - swappedAt < REREAD) return true; // a second press was meant for the one before
  radio.checked = true;
  keepDraft();
  drawChoice();
  say(radio.getAttribute("aria-label"));
  maybeSubmit(since);
  return true;
};
const ACTS = {
  Enter: (event) => form() && performance.now() - swappedAt > REREAD && submit(event.timeStamp),
  c: () => form()?.elements.comment.focus(),
  x: () => form() && find("skip").showModal(),
  z: () => undo(),
  r: () => workspace.classList.toggle("plain-text"),
  g: () => toggleGuidelines(),
  "?": () => find("keys").showModal(),
  ArrowDown: () => form() && scrollBy(form(), 0.15),
  ArrowUp: () => form() && scrollBy(form(), -0.15),
  PageDown: () => form() && scrollBy(form(), 0.85),
  PageUp: () => form() && scrollBy(form(), -0.85),
  " ": (event) => form() && scrollBy(form(), event.shiftKey ? -0.85 : 0.85),
};
const known = (key) => key in ACTS || Boolean(form()?.querySelector(`input[data-key="${CSS.escape(key)}"]`));

const inSkipDialog = (event) => {
  const key = keyOf(event, () => false);
  const reason = find("skip").querySelector(`button[data-key="${CSS.escape(key)}"]`);
  if (reason) {
    event.preventDefault();
    reason.click();
  }
};
const leaveField = (target) => {
  if (typing(target)) view().querySelector("[data-heading]")?.focus({ preventScroll: true });
  else if (workspace.classList.contains("with-guidelines")) toggleGuidelines();
};
document.addEventListener("keydown", (event) => {
  pointing = false;
  lastSeen = Date.now();
  const { target } = event;
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (find("skip")?.open) return inSkipDialog(event);
  if (document.querySelector("dialog[open], details.menu[open]")) return;
  if (event.key === "Escape") return leaveField(target);
  if (typing(target)) return;
  const radio = target.matches?.("input");
  const own = { Enter: acting(target), " ": acting(target) || radio, ArrowDown: radio, ArrowUp: radio };
  const key = keyOf(event, known);
  if (own[key]) return;
  const repeats = key.startsWith("Arrow") || key.startsWith("Page") || key === " ";
  if (event.repeat && !repeats) return known(key) && event.preventDefault();
  if (pick(key, event.timeStamp)) event.preventDefault();
  else if (ACTS[key]) {
    event.preventDefault();
    ACTS[key](event);
  }
});

// ---- other tabs of the same person ----
const channel = "BroadcastChannel" in window ? new BroadcastChannel(`tiebreak.${person}`) : null;
channel?.addEventListener("message", ({ data }) => {
  const index = ahead.findIndex((other) => idOf(other) === data.settled);
  if (index >= 0) ahead.splice(index, 1);
  // Nothing was said of it here: what the other tab said stands.
  if (idOf(view()) === data.settled && !store.get(draftKey(data.settled))) advance();
  look();
});

// ---- leases are kept while somebody is at it ----
setInterval(() => {
  if (document.hidden || Date.now() - lastSeen > RENEW_EVERY || !form()) return;
  send(`${base}/renew`, holding().map((id) => ["holding", id]));
}, RENEW_EVERY);

// ---- beginning ----
learn(view());
for (const entry of outbox.all()) if (entry.refusal) drawRefusal(entry);
if (form() && outbox.has(form().dataset.assignment)) wait(); // answered before the reload, and on its way
prepare();
idle(!form());
if (outbox.waiting().length) outbox.flush();
look();
