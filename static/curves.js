// The curves of a run, drawn with uPlot into the figures that the server has laid out and put into words.
// The last promoted round lies behind, thin and dashed: it differs by line, not by colour alone.

const HEIGHT = 144;
const FINAL = new Set(["succeeded", "failed", "cancelled"]);

const ink = (plot, name) => {
  const probe = document.createElement("span");
  probe.className = `curve-${name}`;
  plot.append(probe);
  const colour = getComputedStyle(probe).color; // resolved, where the custom property is a light-dark()
  probe.remove();
  return colour;
};
const brief = (value, unit) => {
  if (value === null || value === undefined) return "–";
  if (unit === "%") return `${Math.round(value * 100)} %`;
  const size = Math.abs(value);
  if (size >= 10_000) return `${Math.round(value / 1000)}k`;
  if (size < 1e-6) return "0";
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
};

// A step that only the other curve has is undefined here, one without this figure null.
const points = (values) => values.filter((value) => value !== null && value !== undefined).length;

class Chart {
  constructor(figure, group) {
    this.figure = figure;
    this.plot = figure.querySelector(".curve-plot");
    this.last = figure.querySelector('[data-told="last"]');
    this.unit = figure.dataset.unit;
    this.group = group;
    new ResizeObserver(() => {
      const width = this.plot.clientWidth;
      if (width && this.chart && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
      else if (width && !this.chart) this.draw();
    }).observe(this.plot);
  }

  show(run) {
    const own = run.curves[this.figure.dataset.curve];
    if (!own) return;
    for (const [name, text] of Object.entries(own)) {
      const place = this.figure.querySelector(`[data-told="${name}"]`);
      if (place) place.textContent = text;
    }
    const behind = run.ghost?.curves[this.figure.dataset.curve];
    this.data = uPlot.join([
      [run.steps, own.values],
      behind ? [run.ghost.steps, behind.values] : [[], []],
    ]);
    const ends = [run.total, run.steps.at(-1), behind && run.ghost.steps.at(-1)].filter(Boolean);
    this.span = [Math.min(run.steps[0] ?? 1, 1), Math.max(...ends, 2)];
    if (!run.steps.length) return;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!this.data?.[0].length || !width) return; // nothing yet, or folded away
    if (this.chart) this.chart.setData(this.data);
    else this.chart = new uPlot(this.options(width), this.data, this.plot);
    this.figure.dataset.points = points(this.data[1]);
  }

  redraw() {
    this.chart?.destroy();
    this.chart = undefined;
    this.draw();
  }

  options(width) {
    const soft = getComputedStyle(this.plot).color;
    const grid = { stroke: ink(this.plot, "grid"), width: 1 };
    const axis = { stroke: soft, font: "11px system-ui", grid, ticks: { show: false }, gap: 4 };
    const few = (chart, place) => points(chart.data[place]) < 3;
    return {
      width,
      height: HEIGHT,
      padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: this.group }, drag: { x: false, y: false }, y: false, points: { size: 7 } },
      scales: { x: { time: false, range: () => this.span }, y: { range: this.unit === "%" ? [0, 1] : undefined } },
      axes: [
        { ...axis, size: 22, space: 50, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000] },
        { ...axis, size: 44, space: 28, values: (_, ticks) => ticks.map((tick) => brief(tick, this.unit)) },
      ],
      series: [
        {},
        { stroke: ink(this.plot, "ink"), width: 2, spanGaps: true, points: { show: few } },
        { stroke: ink(this.plot, "ghost"), width: 1.25, dash: [5, 4], spanGaps: true, points: { show: false } },
      ],
      hooks: { setCursor: [(chart) => this.point(chart)] },
    };
  }

  // Under the pointer the figure's number is the one of that step.
  point(chart) {
    this.resting ??= this.last.textContent;
    const place = chart.cursor.idx;
    const at = place === null || place === undefined ? undefined : this.data[1][place];
    if (at === null || at === undefined) {
      this.last.textContent = this.resting;
      this.resting = undefined;
    } else this.last.textContent = `step ${this.data[0][place]}: ${brief(at, this.unit)}`;
  }
}

const line = (dashed) => {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 28 8");
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", dashed ? "curve-ghost" : "curve-ink");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M0 4h28");
  path.setAttribute("stroke", "currentColor");
  path.setAttribute("stroke-width", dashed ? "1.25" : "2");
  if (dashed) path.setAttribute("stroke-dasharray", "5 4");
  drawing.append(path);
  return drawing;
};
const explain = (section, label) => {
  if (!label || section.querySelector(".curve-key")) return;
  const row = document.createElement("div");
  row.className = "row";
  for (const [text, dashed] of [["this round", false], [`${label}, the last promoted`, true]]) {
    const key = document.createElement("span");
    key.className = "curve-key";
    key.append(line(dashed), text);
    row.append(key);
  }
  section.querySelector(".curves").before(row);
};

const charts = new Map(); // section → its charts; a section that the server replaced is another one
const settled = new WeakSet();

const load = async (section) => {
  if (!charts.has(section)) {
    charts.set(section, [...section.querySelectorAll("[data-curve]")].map((figure) => new Chart(figure, section.dataset.run)));
  }
  if (settled.has(section) || !charts.get(section).length) return;
  const response = await fetch(`/runs/${section.dataset.run}/metrics.json`, { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const run = await response.json();
  if (FINAL.has(run.state)) settled.add(section);
  for (const chart of charts.get(section)) chart.show(run);
  explain(section, run.ghost?.label);
};
const loadAll = () => {
  for (const section of charts.keys()) if (!section.isConnected) charts.delete(section);
  for (const section of document.querySelectorAll("[data-run]")) load(section).catch((error) => console.warn(error));
};
const redraw = () => {
  for (const drawn of charts.values()) for (const chart of drawn) chart.redraw();
};

document.addEventListener("refreshed", loadAll);
new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"]) matchMedia(query).addEventListener("change", redraw);
loadAll();

// A form that came back with an error is open already; where there is a script, as the dialog that it was.
for (const dialog of document.querySelectorAll("dialog[open][data-modal]")) {
  dialog.close();
  dialog.showModal();
  dialog.querySelector("[aria-invalid]")?.focus();
}
