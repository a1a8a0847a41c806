/* Legends: point at a config to see it in every chart, click to leave it out. */
const hidden = new Set(); // groups, by the legend
const rank = []; // a group's place in its experiment chooses its colour and dash
const DASHES = ["", "7 3", "2 2.5", "8 3 2 3"];
const paint = (place) => ({ colour: `var(--s${place % 8})`, dash: DASHES[(place + (place >> 3)) % 4] });
function shape(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}
function sample({ colour, dash }, parent) {
  const drawing = shape("svg", { width: 26, height: 10, "aria-hidden": "true" }, parent);
  shape("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dash }, drawing);
}
for (const legend of all(".legend[data-groups]")) {
  const section = legend.parentElement;
  legend.dataset.groups.split(" ").map(Number).forEach((group, place) => {
    rank[group] = place;
    const { name, members } = data.groups[group];
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.runs = members.join(" ");
    button.title = members.map((run) => data.runs[run].name).join("\n");
    button.setAttribute("aria-pressed", "true");
    sample(paint(place), button);
    button.append(members.length > 1 ? `${name} (${members.length} runs)` : name);
    button.addEventListener("click", () => {
      if (!hidden.delete(group)) hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      redraw(section);
    });
    const focus = (on) => all(".plot > svg", section).forEach((svg) => highlight(svg, on ? (line) => line.dataset.group === String(group) : null));
    button.addEventListener("pointerenter", () => focus(!hidden.has(group)));
    button.addEventListener("pointerleave", () => focus(false));
    button.addEventListener("focus", () => focus(!hidden.has(group)));
    button.addEventListener("blur", () => focus(false));
    legend.append(button);
  });
}
function highlight(svg, hot) {
  svg.classList.toggle("focused", hot !== null);
  for (const line of all(".curve, .band", svg)) line.classList.toggle("hot", hot !== null && hot(line));
}

/* Axes. */
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
const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/* Axes from x0 to x1 and y0 to y1. The vertical one begins at `floor` exactly, if that is given. */
function frame(plot, { x0, x1, y0, y1, floor, logX, logY, unit = 1, xLabel, names, aria }) {
  const width = plot.clientWidth || 360, slanted = names && names.reduce((sum, name) => sum + Math.min(name.length, 18) + 2, 0) * 6.3 > width - 70;
  const top = 8, right = 12, bottom = slanted ? 44 + 3.9 * Math.min(18, Math.max(...names.map((name) => name.length))) : 36;
  const height = 184 + bottom;
  if (x0 === x1) { x0 = logX ? x0 / 1.5 : x0 - 0.5; x1 = logX ? x1 * 1.5 : x1 + 0.5; }
  const flat = y0 === y1 ? Math.abs(y0) * 0.05 || 0.5 : 0;
  const scale = logY ? Math.log10 : (v) => v, across = logX ? Math.log10 : (v) => v;
  let v0 = scale(logY ? y0 / (flat ? 1.1 : 1) : y0 - flat), v1 = scale(logY ? y1 * (flat ? 1.1 : 1) : y1 + flat);
  const pad = 0.04 * (v1 - v0);
  v0 = floor === undefined ? v0 - pad : scale(floor);
  v1 += pad;
  const yTicks = logY ? logTicks(10 ** v0, 10 ** v1) : ticks(v0, v1, 5);
  const left = 14 + 6.3 * Math.max(1, ...yTicks.map((t) => number(t).length));
  const px = (x) => left + (width - left - right) * (across(x) - across(x0)) / (across(x1) - across(x0));
  const py = (v) => top + (height - top - bottom) * (1 - (scale(v) - v0) / (v1 - v0));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": aria }, plot);
  for (const t of yTicks) {
    shape("line", { class: "grid", x1: left, x2: width - right, y1: py(t), y2: py(t) }, svg);
    shape("text", { x: left - 6, y: py(t) + 4, "text-anchor": "end" }, svg).textContent = number(t);
  }
  const most = Math.max(2, Math.floor(width / 70));
  const xTicks = names ? names.map((_, place) => place) : logX ? logTicks(x0, x1) : ticks(x0 / unit, x1 / unit, most).map((t) => t * unit);
  for (const t of xTicks) {
    const x = px(t);
    if (x < left - 1 || x > width - right + 1) continue;
    shape("line", { class: "grid", x1: x, x2: x, y1: height - bottom, y2: height - bottom + 4 }, svg);
    const text = names ? shorten(names[t], 18) : number(+(t / unit).toPrecision(12));
    const end = !names && x + 3.2 * text.length > width - 2;
    const label = shape("text", { x: end ? width - 2 : x, y: height - bottom + 16, "text-anchor": slanted || end ? "end" : "middle" }, svg);
    if (slanted) label.setAttribute("transform", `rotate(-35 ${x} ${height - bottom + 12})`);
    label.textContent = text;
  }
  shape("text", { x: left + (width - left - right) / 2, y: height - 4, "text-anchor": "middle" }, svg).textContent = xLabel;
  const inside = [left - 4, top - 4, width - left - right + 8, height - top - bottom + 8]; // an inner svg cuts what leaves it
  const ink = shape("svg", { x: inside[0], y: inside[1], width: inside[2], height: inside[3], viewBox: inside.join(" ") }, svg);
  const back = (x) => { const v = across(x0) + (x - left) / (width - left - right) * (across(x1) - across(x0)); return logX ? 10 ** v : v; };
  return { svg, ink, px, py, back, left, right, top, bottom, width, height, x0, x1, low: logY ? 10 ** v0 : v0 };
}
function nothing(plot, text) {
  plot.append(Object.assign(document.createElement("p"), { className: "empty", textContent: text }));
}

/* Baselines of a metric, by data: what the runs shown measured for chance, pixels or an untrained encoder. */
function baselines(metric, runs) {
  const name = metric.replace(/^eval\//, ""), read = [...new Set(runs.map(dataOf))];
  return read.flatMap((source) => ["chance", "pixels", "untrained"].map((kind) => {
    const column = data.metrics.indexOf(`${name}_${kind}`), own = runs.filter((run) => dataOf(run) === source);
    const value = column < 0 ? null : interval(own.map((run) => data.runs[run].metrics[column]).filter(finite)).mean;
    return { kind: read.length > 1 ? `${kind}, ${source}` : kind, value };
  })).filter((baseline) => baseline.value !== null);
}
function floorOf(found, y0) {
  const lowest = Math.min(...found.map((baseline) => baseline.value));
  return lowest <= y0 ? lowest : undefined;
}
function drawBaselines(at, found) {
  for (const { kind, value } of found) {
    const y = at.py(value);
    if (!(y >= at.top && y <= at.height - at.bottom + 0.5)) continue;
    shape("line", { class: "baseline", x1: at.left, x2: at.width - at.right, y1: y, y2: y }, at.svg);
    shape("text", { class: "baseline", x: at.width - at.right, y: y - 3, "text-anchor": "end" }, at.svg).textContent = kind;
  }
}

/* Curves. */
function smoothed(y, weight) {
  let mean = 0, mass = 0;
  return y.map((value) => {
    if (!finite(value)) return null;
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
const groupOf = (series) => data.runs[series.run].group;

/* A line for each run, its dash by its place among the runs of its config. */
function runLines(shown, across) {
  return shown.map((s) => {
    const group = groupOf(s), { members } = data.groups[group];
    const dash = members.length > 1 ? DASHES[members.indexOf(s.run) % 4] : paint(rank[group]).dash;
    return { group, run: s.run, name: data.runs[s.run].name, colour: paint(rank[group]).colour, dash, x: s[across], y: s.y };
  });
}

/* A line for each config: the mean over its runs at every step, with the interval of the mean. */
function meanLines(shown, across) {
  return [...new Set(shown.map(groupOf))].map((group) => {
    const at = new Map(); // by step, as runs take different times to it
    for (const s of shown.filter((own) => groupOf(own) === group)) s.x.forEach((step, i) => {
      if (!at.has(step)) at.set(step, { across: [], values: [] });
      if (s.y[i] === null || s[across][i] === null) return;
      at.get(step).across.push(s[across][i]);
      at.get(step).values.push(s.y[i]);
    });
    const points = [...at.entries()].sort(([a], [b]) => a - b).map(([, found]) => ({ x: interval(found.across).mean, ...interval(found.values) }));
    return {
      group, name: data.groups[group].name, ...paint(rank[group]), x: points.map((p) => p.x), y: points.map((p) => p.mean),
      half: points.map((p) => p.half), n: points.map((p) => p.n),
    };
  });
}
const zoom = new WeakMap(); // a figure's stretch of the horizontal axis

function drawCurves(figure, plot) {
  const chart = data.charts[figure.dataset.chart];
  const across = control("x"), log = control("y") === "log", weight = +control("smooth");
  const series = chart.series.filter((s) => visible[s.run] && !hidden.has(groupOf(s)));
  const lines = control("show") === "means" ? meanLines(series, across) : runLines(series, across);
  const [from, to] = zoom.get(figure) ?? [-Infinity, Infinity];
  const usable = (v) => finite(v) && (!log || v > 0);
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const line of lines) {
    line.raw = line.y.map((v) => (usable(v) ? v : null));
    line.y = weight && line.raw.length > FEW ? smoothed(line.raw, weight) : line.raw;
    const half = line.half?.some(finite) ? (line.y === line.raw ? line.half : smoothed(line.half, weight)) : null;
    line.bounds = half && line.y.map((v, i) => (finite(v) && finite(half[i]) ? [v - half[i], v + half[i]].map((end) => (usable(end) ? end : v)) : null));
    line.x.forEach((x, i) => {
      const values = [line.raw[i], line.y[i], ...(line.bounds?.[i] ?? [])].filter(finite);
      if (!values.length || !finite(x) || x < from || x > to) return;
      x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, ...values); y1 = Math.max(y1, ...values);
    });
  }
  if (x0 > x1) { nothing(plot, `Nothing to draw: no finite points${log ? " above zero" : ""} in the runs shown.`); return; }
  const zoomed = zoom.has(figure);
  if (zoomed) [x0, x1] = [from, to];
  else if (x0 > 0 && x0 < 0.25 * x1) x0 = 0;
  const found = chart.metric.startsWith("eval/") ? baselines(chart.metric, series.map((s) => s.run)) : [];
  const floor = zoomed || log ? undefined : floorOf(found, y0);
  if (!zoomed) for (const { value } of found) y1 = Math.max(y1, value);
  const [unit, unitName] = across === "t" ? clock(x1) : [1, "step"];
  const last = lines.map((line) => line.raw.filter(finite).at(-1)).filter(finite);
  const at = frame(plot, {
    x0, x1, y0: floor ?? y0, y1, floor, logY: log, unit, xLabel: across === "t" ? `time (${unitName})` : "step",
    aria: `${chart.metric}: ${lines.length} curves, last values from ${number(Math.min(...last))} to ${number(Math.max(...last))}. Arrow keys move along the curves, + and − zoom.`,
  });
  drawBaselines(at, found);
  if (lines.length > MANY) at.svg.classList.add("many");
  lines.forEach((line, place) => {
    const marks = { "data-line": place, "data-group": line.group };
    const path = (y) => {
      let d = "", pen = false, points = 0;
      line.x.forEach((x, i) => {
        if (!finite(y[i]) || !finite(x)) { pen = false; return; }
        d += `${pen ? "L" : "M"}${at.px(x).toFixed(1)} ${at.py(y[i]).toFixed(1)}`;
        pen = true; points += 1;
      });
      return points === 1 ? d + "h0.01" : d;
    };
    if (line.bounds) {
      const known = line.x.map((x, i) => [x, line.bounds[i]]).filter(([x, bound]) => finite(x) && bound);
      const edge = (side, points) => points.map(([x, bound]) => `${at.px(x).toFixed(1)} ${at.py(bound[side]).toFixed(1)}`);
      shape("path", { ...marks, class: "band", fill: line.colour, d: `M${[...edge(1, known), ...edge(0, known.reverse())].join("L")}Z` }, at.ink);
    }
    const common = { ...marks, class: "curve", stroke: line.colour, "stroke-linecap": "round" };
    if (line.y !== line.raw) shape("path", { ...common, class: "curve raw", d: path(line.raw) }, at.ink);
    shape("path", { ...common, "stroke-dasharray": lines.length > MANY ? "" : line.dash, d: path(line.y) }, at.ink);
  });
  finish(figure, plot, at, lines, (x) => (across === "t" ? `${number(+(x / unit).toPrecision(4))} ${unitName}` : `step ${number(x)}`));
}

/* A metric against a key of the config: each run a dot, each config its mean and interval. */
function drawPlane(figure, plot) {
  const [metric, key, by] = ["y", "x", "by"].map((name) => document.querySelector(`[data-plot=${name}]`).value);
  const column = data.metrics.indexOf(metric);
  const points = data.groups.map(({ name, members }) => {
    const runs = members.filter((run) => visible[run] && finite(data.runs[run].metrics[column]) && data.keys[key][run] !== null);
    const values = runs.map((run) => data.runs[run].metrics[column]);
    const part = [by && `${by}: ${data.keys[by][runs[0]] ?? "(absent)"}`, dataKeys.length && !dataKeys.includes(key) && dataOf(runs[0])].filter(Boolean).join(", ");
    return { name, runs, values, x: data.keys[key][runs[0]], part, ...interval(values) };
  }).filter((point) => point.n);
  figure.querySelector("figcaption span").textContent = `${metric} against ${key}`;
  const legend = figure.previousElementSibling;
  legend.replaceChildren();
  if (!points.length) { nothing(plot, "Nothing to draw: no complete run shown has both."); return; }
  const numeric = points.every((point) => typeof point.x === "number");
  const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });
  const names = numeric ? undefined : [...new Set(points.map((point) => String(point.x)))].sort(natural);
  for (const point of points) point.at = numeric ? point.x : names.indexOf(String(point.x));
  const places = points.map((point) => point.at);
  const logX = numeric && Math.min(...places) > 0 && Math.max(...places) / Math.min(...places) >= 20;
  const ends = points.flatMap((point) => [...point.values, ...(point.half === null ? [] : [point.mean - point.half, point.mean + point.half])]);
  const room = numeric ? 0.06 * (Math.max(...places) - Math.min(...places)) : 0.5;
  const found = baselines(metric, points.flatMap((point) => point.runs));
  const y0 = Math.min(...ends), floor = floorOf(found, y0);
  const at = frame(plot, {
    x0: logX ? Math.min(...places) / 1.3 : Math.min(...places) - room, x1: logX ? Math.max(...places) * 1.3 : Math.max(...places) + room,
    y0: floor ?? y0, y1: Math.max(...ends, ...found.map((b) => b.value)), floor, logX, names, xLabel: key,
    aria: `${metric} against ${key}: ${points.length} configs. Arrow keys move along them.`,
  });
  drawBaselines(at, found);
  const parts = [...new Set(points.map((point) => point.part))].sort(natural);
  const lines = parts.map((part, place) => {
    const own = points.filter((point) => point.part === part).sort((a, b) => a.at - b.at || natural(a.name, b.name));
    const once = numeric && new Set(own.map((point) => point.at)).size === own.length;
    const { colour, dash } = paint(place);
    if (part) {
      const entry = document.createElement("span");
      sample({ colour, dash }, entry);
      entry.append(part);
      legend.append(entry);
    }
    if (once && own.length > 1) shape("path", { class: "curve", "data-line": place, stroke: colour, "stroke-dasharray": dash, d: `M${own.map((p) => `${at.px(p.at).toFixed(1)} ${at.py(p.mean).toFixed(1)}`).join("L")}` }, at.ink);
    own.forEach((point, index) => {
      const beside = once ? 5 * (place - (parts.length - 1) / 2) : 9 * (index - own.findIndex((p) => p.at === point.at)) + 5 * place;
      const x = at.px(point.at) + beside, marks = { class: "curve", "data-line": place, stroke: colour };
      if (point.half !== null) {
        const [low, high] = [at.py(point.mean - point.half), at.py(point.mean + point.half)];
        shape("path", { ...marks, d: `M${x} ${low}V${high}M${x - 4} ${low}h8M${x - 4} ${high}h8` }, at.ink);
        for (const value of point.values) shape("circle", { class: "dot", cx: x, cy: at.py(value), r: 2.5, fill: colour }, at.ink);
      }
      shape("circle", { cx: x, cy: at.py(point.mean), r: 4.5, fill: colour }, at.ink);
    });
    return { name: part || metric, colour, dash, names: own.map((p) => p.name), x: own.map((p) => p.at), y: own.map((p) => p.mean), half: own.map((p) => p.half), n: own.map((p) => p.n) };
  });
  finish(figure, plot, at, lines, (x) => `${key} ${numeric ? number(x) : names[x]}`);
}

/* Charts are drawn when they come near the window, again when it changes, all before printing. */
const figures = all(".chart");
const drawn = new WeakMap();
function draw(figure) {
  const plot = figure.querySelector(".plot");
  plot.replaceChildren();
  if (figure.hidden) return;
  (figure.dataset.chart === undefined ? drawPlane : drawCurves)(figure, plot);
}
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
all("[data-control]").forEach((select) => select.addEventListener("change", () => {
  if (select.dataset.control === "x") figures.forEach((figure) => zoom.delete(figure)); // in the other unit
  redraw();
}));
all("[data-plot]").forEach((select) => select.addEventListener("change", () => redraw()));
addEventListener("beforeprint", () => figures.forEach((f) => { if (!drawn.has(f)) { drawn.set(f, f.clientWidth); draw(f); } }));
