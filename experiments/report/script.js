"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const visible = data.runs.map(() => true); // by the filter
const hidden = new Set(); // by the legend
const style = (run) => ({ colour: `var(--s${rank[run] % 8})`, dash: ["", "7 3", "2 2.5", "8 3 2 3"][(rank[run] + (rank[run] >> 3)) % 4] });
const rank = []; // a run's place in its experiment chooses its colour and dash
for (const legend of all(".legend")) legend.dataset.members.split(" ").forEach((run, place) => { rank[+run] = place; });

/* Numbers, as the tables write them. */
function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US").replace("-", "−");
  const size = Math.abs(value);
  return (size < 1e-4 || size >= 1e7 ? value.toExponential(3) : String(+value.toPrecision(4))).replace("-", "−");
}

/* Tables: a click on a heading sorts, a second one turns the order round. */
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.v ?? "", row]);
    const numeric = keyed.every(([key]) => key === "" || !Number.isNaN(Number(key)));
    keyed.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last
      return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }));
}

/* Metric columns: those chosen, less those empty in every visible row. */
const picks = all(".picks input");
function showColumns() {
  for (const pick of picks) {
    const cells = all(`[data-column="${pick.value}"]`);
    const filled = cells.some((cell) => cell.dataset.v && !cell.parentElement.hidden);
    for (const cell of cells) cell.hidden = !(pick.checked && filled);
  }
}
picks.forEach((pick) => pick.addEventListener("change", showColumns));

/* The filter narrows every section. */
const form = document.querySelector(".filters");
function filter() {
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.fromEntries(all("select", form).map((s) => [s.dataset.filter, s.value]));
  data.runs.forEach((run, i) => {
    visible[i] = words.every((word) => run.words.includes(word))
      && (!chosen.experiments || run.experiment === chosen.experiments)
      && (!chosen.states || run.status === chosen.states);
  });
  for (const element of all("[data-run]")) element.hidden = !visible[element.dataset.run];
  for (const element of all("[data-runs]")) element.hidden = !element.dataset.runs.split(" ").some((i) => visible[i]);
  const count = visible.filter(Boolean).length;
  const total = data.runs.length;
  form.querySelector("output").value = count === total ? `${total} runs` : `${count} of ${total} runs`;
  document.querySelector(".nothing").hidden = count > 0;
  showColumns();
  redraw();
}
if (form) {
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}

/* Legends: point at a run to see it in every chart, click to leave it out. */
function label(run, members) {
  const parts = members.map((i) => data.runs[i].name.split("/"));
  let shared = 0;
  while (members.length > 1 && parts.every((p) => p.length > shared + 1 && p[shared] === parts[0][shared])) shared += 1;
  return data.runs[run].name.split("/").slice(shared).join("/");
}
const short = [];
for (const legend of all(".legend")) {
  const members = legend.dataset.members.split(" ").map(Number);
  const group = legend.parentElement;
  for (const run of members) {
    short[run] = label(run, members);
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.run = run;
    button.title = data.runs[run].name;
    button.setAttribute("aria-pressed", "true");
    const sample = shape("svg", { width: 26, height: 10, "aria-hidden": "true" }, button);
    const { colour, dash } = style(run);
    shape("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dash }, sample);
    button.append(short[run]);
    button.addEventListener("click", () => {
      if (!hidden.delete(run)) hidden.add(run);
      button.setAttribute("aria-pressed", String(!hidden.has(run)));
      redraw(group);
    });
    const focus = (on) => all(".plot svg", group).forEach((svg) => highlight(svg, on ? run : null));
    button.addEventListener("pointerenter", () => focus(!hidden.has(run)));
    button.addEventListener("pointerleave", () => focus(false));
    button.addEventListener("focus", () => focus(!hidden.has(run)));
    button.addEventListener("blur", () => focus(false));
    legend.append(button);
  }
}

/* Charts. */
function shape(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}
function highlight(svg, run) {
  svg.classList.toggle("focused", run !== null);
  for (const curve of all(".curve", svg)) curve.classList.toggle("hot", +curve.dataset.curve === run);
}
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step && found.length < 20; k += 1) found.push(+(k * step).toPrecision(12));
  return found;
}
function logTicks(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) return ticks(low, high, 4).filter((t) => t > 0);
  const every = Math.ceil((last - first + 1) / 6);
  return Array.from({ length: Math.floor((last - first) / every) + 1 }, (_, k) => +(10 ** (first + k * every)).toPrecision(12));
}
function smoothed(y, weight) {
  let mean = 0, mass = 0;
  return y.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass; // without the mass the curve would start at zero
  });
}
const MANY = 12; // curves whose dashes would be noise
const FEW = 30; // points that smoothing would delay more than smooth
const control = (name) => document.querySelector(`[data-control=${name}]`).value;
function clock(seconds) {
  return seconds < 200 ? [1, "s"] : seconds < 12000 ? [60, "min"] : [3600, "h"];
}

function draw(figure) {
  const plot = figure.querySelector(".plot");
  const chart = data.charts[figure.dataset.chart];
  const width = plot.clientWidth || 360, height = 220;
  plot.replaceChildren();
  if (figure.hidden) return;
  const across = control("x"), log = control("y") === "log", weight = +control("smooth");
  const shown = chart.series.filter((s) => visible[s.run] && !hidden.has(s.run)).map((s) => {
    const usable = (v) => v !== null && (!log || v > 0);
    const y = s.y.map((v) => (usable(v) ? v : null));
    return { run: s.run, x: s[across], raw: y, y: weight && y.length > FEW ? smoothed(y, weight) : y };
  });
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const s of shown) s.x.forEach((x, i) => {
    const v = s.raw[i];
    if (v === null || x === null) return;
    x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, v); y1 = Math.max(y1, v);
  });
  if (x0 > x1) {
    const text = document.createElement("p");
    text.className = "empty";
    text.textContent = "Nothing to draw: no finite points" + (log ? " above zero" : "") + " in the runs shown.";
    plot.append(text);
    return;
  }
  const [unit, unitName] = across === "t" ? clock(x1) : [1, "step"];
  if (x0 > 0 && x0 < 0.25 * x1) x0 = 0;
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const flat = y0 === y1 ? Math.abs(y0) * 0.05 || 0.5 : 0;
  const scale = log ? Math.log10 : (v) => v;
  let v0 = scale(log ? y0 / (flat ? 1.1 : 1) : y0 - flat), v1 = scale(log ? y1 * (flat ? 1.1 : 1) : y1 + flat);
  const pad = 0.04 * (v1 - v0);
  v0 -= pad; v1 += pad;
  const yTicks = log ? logTicks(10 ** v0, 10 ** v1) : ticks(v0, v1, 5);
  const left = 14 + 6.3 * Math.max(1, ...yTicks.map((t) => number(t).length)), bottom = 36, top = 8, right = 12;
  const px = (x) => left + (width - left - right) * (x - x0) / (x1 - x0);
  const py = (v) => top + (height - top - bottom) * (1 - (scale(v) - v0) / (v1 - v0));
  const last = shown.map((s) => s.raw.filter((v) => v !== null).at(-1)).filter((v) => v !== undefined);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
    "aria-label": `${chart.metric}: ${shown.length} runs, last values from ${number(Math.min(...last))} to ${number(Math.max(...last))}. Arrow keys move along the curves.` }, plot);
  if (shown.length > MANY) svg.classList.add("many");
  for (const t of yTicks) {
    shape("line", { class: "grid", x1: left, x2: width - right, y1: py(t), y2: py(t) }, svg);
    shape("text", { x: left - 6, y: py(t) + 4, "text-anchor": "end" }, svg).textContent = number(t);
  }
  for (const t of ticks(x0 / unit, x1 / unit, Math.max(2, Math.floor(width / 70)))) {
    const x = px(t * unit);
    if (x < left - 1 || x > width - right + 1) continue;
    shape("line", { class: "grid", x1: x, x2: x, y1: height - bottom, y2: height - bottom + 4 }, svg);
    const text = number(t);
    const anchor = x + 3.2 * text.length > width - 2 ? "end" : "middle";
    shape("text", { x: anchor === "end" ? width - 2 : x, y: height - bottom + 16, "text-anchor": anchor }, svg).textContent = text;
  }
  shape("text", { x: left + (width - left - right) / 2, y: height - 4, "text-anchor": "middle" }, svg).textContent = across === "t" ? `time (${unitName})` : "step";
  for (const s of shown) {
    const { colour, dash } = style(s.run);
    const path = (y) => {
      let d = "", pen = false, points = 0;
      s.x.forEach((x, i) => {
        if (y[i] === null || x === null) { pen = false; return; }
        d += `${pen ? "L" : "M"}${px(x).toFixed(1)} ${py(y[i]).toFixed(1)}`;
        pen = true; points += 1;
      });
      return points === 1 ? d + "h0.01" : d;
    };
    const common = { class: "curve", stroke: colour, "data-curve": s.run, "stroke-linecap": "round" };
    if (s.y !== s.raw) shape("path", { ...common, class: "curve raw", d: path(s.raw) }, svg);
    shape("path", { ...common, "stroke-dasharray": shown.length > MANY ? "" : dash, d: path(s.y) }, svg);
  }
  explore(plot, svg, shown, { px, py, left, right, width, height, bottom, top, unit, unitName, across });
}

/* Pointing at a chart, or arrow keys on it, tells the values there. */
function explore(plot, svg, shown, at) {
  let cursor = null, tip = null, place = -1;
  const clear = () => { cursor?.remove(); tip?.remove(); cursor = tip = null; highlight(svg, null); };
  const show = (x, aim) => {
    const near = shown.map((s) => {
      let best = -1;
      s.x.forEach((v, i) => {
        if (v !== null && s.y[i] !== null && (best < 0 || Math.abs(at.px(v) - x) < Math.abs(at.px(s.x[best]) - x))) best = i;
      });
      return best < 0 ? null : { run: s.run, x: s.x[best], y: s.y[best], away: Math.abs(at.px(s.x[best]) - x) };
    }).filter((n) => n && n.away < 60);
    clear();
    if (!near.length) return;
    const closest = (n) => (aim === null ? 0 : Math.abs(at.py(n.y) - aim)) + n.away;
    near.sort((a, b) => closest(a) - closest(b));
    const hot = near[0];
    if (shown.length > 1) highlight(svg, hot.run);
    cursor = shape("g", {}, svg);
    shape("line", { class: "cursor", x1: at.px(hot.x), x2: at.px(hot.x), y1: at.top, y2: at.height - at.bottom }, cursor);
    shape("circle", { cx: at.px(hot.x), cy: at.py(hot.y), r: 3.5, fill: style(hot.run).colour }, cursor);
    tip = document.createElement("div");
    tip.className = "tip";
    const title = document.createElement("div");
    title.textContent = at.across === "t" ? `${number(+(hot.x / at.unit).toPrecision(4))} ${at.unitName}` : `step ${number(hot.x)}`;
    tip.append(title);
    for (const n of near.slice(0, 6).sort((a, b) => b.y - a.y)) {
      const row = document.createElement("div");
      if (n === hot) row.className = "hot";
      const dot = document.createElement("i"), name = document.createElement("span"), value = document.createElement("span");
      dot.style.background = style(n.run).colour;
      name.textContent = short[n.run];
      value.textContent = number(+n.y.toPrecision(4));
      row.append(dot, name, value);
      tip.append(row);
    }
    if (near.length > 6) tip.append(Object.assign(document.createElement("div"), { textContent: `and ${near.length - 6} more` }));
    const middle = at.px(hot.x) / at.width;
    tip.style[middle > 0.5 ? "right" : "left"] = `${100 * (middle > 0.5 ? 1 - middle : middle) + 3}%`;
    plot.append(tip);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), zoom = at.width / box.width;
    show((event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom);
  });
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") clear();
    if (!turn) return;
    event.preventDefault();
    const stops = shown[0].x.filter((x, i) => x !== null && shown[0].y[i] !== null);
    if (!stops.length) return;
    place = Math.min(stops.length - 1, Math.max(0, place < 0 ? (turn > 0 ? 0 : stops.length - 1) : place + turn * Math.ceil(stops.length / 60)));
    show(at.px(stops[place]), null);
  });
}

/* Charts are drawn when they come near the window, again when it changes, all before printing. */
const figures = all(".chart");
const drawn = new WeakMap();
const redraw = (root = document) => all(".chart", root).forEach((f) => { if (drawn.has(f)) draw(f); });
const watch = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting && !drawn.has(target)) { drawn.set(target, target.clientWidth); draw(target); }
  }
}, { rootMargin: "600px" });
const size = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (drawn.has(target) && drawn.get(target) !== target.clientWidth) { drawn.set(target, target.clientWidth); draw(target); }
  }
});
figures.forEach((figure) => { watch.observe(figure); size.observe(figure); });
all("[data-control]").forEach((select) => select.addEventListener("change", () => redraw()));
addEventListener("beforeprint", () => figures.forEach((f) => { if (!drawn.has(f)) { drawn.set(f, f.clientWidth); draw(f); } }));

/* Figures: a click enlarges, arrow keys go on. */
const dialog = document.querySelector("dialog");
let current = 0;
const cards = () => all(".gallery .enlarge").filter((b) => b.offsetParent !== null);
function enlarge(index) {
  const list = cards();
  current = (index + list.length) % list.length;
  const source = list[current].querySelector("img");
  const image = dialog.querySelector("img");
  image.src = source.src;
  image.alt = source.alt;
  dialog.querySelector("p").textContent = `${source.alt} (${current + 1} of ${list.length})`;
  if (!dialog.open) dialog.showModal();
}
document.addEventListener("click", (event) => {
  const button = event.target.closest(".enlarge");
  if (button) enlarge(cards().indexOf(button));
});
dialog.addEventListener("click", (event) => {
  const go = event.target.closest("[data-go]");
  if (go) enlarge(current + Number(go.dataset.go));
  else if (!event.target.closest("img, p")) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
  const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (turn) { event.preventDefault(); enlarge(current + turn); }
});

/* A link to a run opens its details. */
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  if (event.target.closest?.('a[href^="#run-"]')) setTimeout(openTarget);
});
openTarget();
showColumns();
