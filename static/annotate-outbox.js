// Answers on their way to the server. Each is in the browser's storage from the moment it is given until the server has
// said that it is stored, so that neither a reload nor a crash nor a server that is away can lose it. Sending one twice
// is harmless: it carries its key, and the server stores a key once.

const memory = new Map(); // for browsers that keep nothing

const store = {
  keys: (prefix) => {
    try {
      const kept = Object.keys(localStorage).filter((key) => key.startsWith(prefix));
      return [...new Set([...kept, ...[...memory.keys()].filter((key) => key.startsWith(prefix))])];
    } catch {
      return [...memory.keys()].filter((key) => key.startsWith(prefix));
    }
  },
  get: (key) => {
    if (memory.has(key)) return memory.get(key);
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },
  set: (key, value) => {
    try {
      localStorage.setItem(key, JSON.stringify(value));
      memory.delete(key);
    } catch {
      memory.set(key, value);
    }
  },
  remove: (key) => {
    memory.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      // Nothing was kept there.
    }
  },
};
export { store };

// crypto.randomUUID is for secure contexts only, and platforms on a local network often are none.
export const newKey = () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
};

const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 30_000;
const PATIENCE = 15_000;

// Send a form to our own server. Gives one of {view}, {refused: words, status}, {away: true}.
export const send = async (address, fields) => {
  let response;
  try {
    response = await fetch(address, {
      method: "POST",
      headers: {
        "HX-Request": "true",
        "X-CSRF-Token": document.querySelector('meta[name="csrf-token"]').content,
      },
      body: new URLSearchParams(fields),
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (response.status >= 500 || response.status === 429) return { away: true };
    const html = await response.text();
    const made = new DOMParser().parseFromString(html, "text/html");
    const view = made.body.firstElementChild;
    if (response.ok) return { view: view && document.adoptNode(view) };
    const words = made.querySelector("[data-error-message]")?.textContent.trim();
    return { refused: words || `The server refused this (${response.status}).`, status: response.status };
  } catch {
    return { away: true };
  }
};

export class Outbox {
  // `report(state, waiting)` with state "saving", "saved", "offline" or "locked"; `holding()` gives what is at hand;
  // `stored(entry, view)` and `refused(entry)` say how an entry ended.
  constructor(person, { report, holding, stored, refused }) {
    Object.assign(this, { prefix: `tiebreak.answer.${person}.`, report, holding, stored, refused });
    this.running = null;
    this.wake = () => {};
    window.addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => document.hidden || this.retry());
  }

  all() {
    const entries = store.keys(this.prefix).map((key) => store.get(key));
    return entries.filter(Boolean).sort((a, b) => a.at - b.at);
  }

  waiting() {
    return this.all().filter((entry) => !entry.refusal);
  }

  has(assignment) {
    return Boolean(store.get(this.prefix + assignment));
  }

  put(entry) {
    store.set(this.prefix + entry.assignment, entry);
    this.retry();
  }

  drop(assignment) {
    store.remove(this.prefix + assignment);
  }

  retry() {
    this.wake();
    this.flush();
  }

  // Resolves when nothing waits any more, or when nothing can be sent before the person has done something.
  flush() {
    this.running ??= this.run().finally(() => (this.running = null));
    return this.running;
  }

  async run() {
    let pause = FIRST_PAUSE;
    for (let entry; (entry = this.waiting()[0]); ) {
      if (pause === FIRST_PAUSE) this.report("saving", this.waiting().length);
      const reply = await send(entry.url, [...Object.entries(entry.fields), ...this.holding().map((id) => ["holding", id])]);
      if (reply.away) {
        this.report("offline", this.waiting().length);
        await Promise.race([new Promise((done) => setTimeout(done, pause)), new Promise((done) => (this.wake = done))]);
        pause = Math.min(pause * 2, LONGEST_PAUSE);
      } else if (reply.status === 401 || reply.status === 403) {
        this.report("locked", this.waiting().length, reply.status === 401 ? "" : reply.refused);
        return;
      } else {
        pause = FIRST_PAUSE;
        this.settle(entry, reply);
      }
    }
    this.report("saved", 0);
  }

  settle(entry, reply) {
    // Taken back, or given anew, while it was on its way: that one stays.
    const same = store.get(this.prefix + entry.assignment)?.fields.key === entry.fields.key;
    if (reply.refused) {
      entry.refusal = reply.refused;
      if (same) store.set(this.prefix + entry.assignment, entry);
      this.refused(entry);
    } else {
      if (same) this.drop(entry.assignment);
      this.stored(entry, reply.view);
    }
  }
}
