// Pages that keep themselves up to date.
//
//   <div data-live="/rounds/…/live" data-from="/…">  the stream, and the page that is fetched again (else this one)
//     <section data-part="gates">…</section>      replaced when the server says something else than last time
//     <section data-part="run-…" data-key="…">    kept while its key stays; the parts inside it are updated one by one
//
// A nudge over SSE or 20 seconds, whichever comes first. A part that says the same stays untouched, so nothing jumps
// and nothing that a person has opened, focused or selected is lost.

const EVERY = 20_000;
const SETTLE = 300;

// Call `look` on every nudge of the stream at `address` and every 20 s, one call at a time, never while nobody looks.
export const watch = (address, look) => {
  let source, timer, soon, busy, again;
  const run = async () => {
    clearTimeout(soon);
    soon = undefined;
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      await look();
    } catch (error) {
      console.warn("could not refresh", error);
    }
    busy = false;
    if (again) {
      again = false;
      nudge();
    }
  };
  const nudge = () => (soon ??= setTimeout(run, SETTLE));
  const connect = () => {
    source = new EventSource(address);
    source.addEventListener("nudge", nudge);
    source.addEventListener("open", nudge); // something may have happened while nobody listened
  };
  const stop = () => {
    source?.close();
    clearInterval(timer);
    clearTimeout(soon);
    source = timer = soon = undefined;
  };
  const start = () => {
    if (timer) return;
    connect();
    timer = setInterval(() => {
      run();
      if (source.readyState === EventSource.CLOSED) connect();
    }, EVERY);
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  window.addEventListener("pagehide", stop);
  window.addEventListener("pageshow", (event) => event.persisted && start());
  if (!document.hidden) start();
  return stop;
};

const served = new WeakMap(); // what the server last said of a part, which scripts may have changed since
const remember = (part) => {
  served.set(part, part.outerHTML);
  for (const inner of part.querySelectorAll("[data-part]")) served.set(inner, inner.outerHTML);
};
const partsOf = (root) =>
  [...root.querySelectorAll("[data-part]")].filter((part) => part.parentElement.closest("[data-part]") === (root.dataset.part ? root : null));
const named = (parts) => new Map(parts.map((part) => [part.dataset.part, part]));

const replace = (old, fresh) => {
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  remember(fresh);
  old.replaceWith(fresh);
  if (focused?.id) document.getElementById(focused.id)?.focus({ preventScroll: true });
};

const update = (old, fresh) => {
  const keyed = old.dataset.key !== undefined && old.dataset.key === fresh.dataset.key;
  if (keyed) updateParts(old, fresh);
  else if (served.get(old) !== fresh.outerHTML) replace(old, fresh);
};

const updateParts = (old, fresh) => {
  const known = named(partsOf(old));
  let before;
  for (const part of partsOf(fresh)) {
    const same = known.get(part.dataset.part);
    known.delete(part.dataset.part);
    const parent = before?.parentElement ?? (same ?? known.values().next().value)?.parentElement ?? old;
    if (same) update(same, part);
    else {
      remember(part);
      if (before) before.after(part);
      else parent.prepend(part);
    }
    before = old.querySelector(`[data-part="${CSS.escape(part.dataset.part)}"]`);
  }
  for (const gone of known.values()) gone.remove();
};

// Fetch the page's parts and bring `root` up to date; false when that is no longer possible.
const refresh = async (root) => {
  const response = await fetch(root.dataset.from ?? location.href, { headers: { "HX-Request": "true", Accept: "text/html" } });
  if (response.status === 401) {
    const text = "You have been signed out. What you see is no longer updated; reload the page to sign in.";
    document.dispatchEvent(new CustomEvent("toast", { detail: { text, kind: "danger" } }));
    return false;
  }
  if (!response.ok) return true;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.querySelector("[data-live]");
  if (fresh) {
    updateParts(root, fresh);
    root.dispatchEvent(new CustomEvent("refreshed", { bubbles: true }));
  }
  return true;
};

for (const root of document.querySelectorAll("[data-live]")) {
  for (const part of partsOf(root)) remember(part);
  const stop = watch(root.dataset.live, async () => {
    if (!(await refresh(root))) stop();
  });
}
