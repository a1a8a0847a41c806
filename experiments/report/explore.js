/* Pointing at a chart, or arrow keys on it, tells the values there; dragging across it zooms. */
const shownLines = new WeakMap(); // what a figure shows, for its download
function finish(figure, plot, at, lines, title) {
  shownLines.set(figure, lines);
  const { svg } = at;
  let cursor = null, tip = null, place = -1, from = null, box = null;
  const clear = () => { cursor?.remove(); tip?.remove(); cursor = tip = null; highlight(svg, null); };
  const inside = (x) => x >= at.left - 1 && x <= at.width - at.right + 1;
  const show = (x, aim) => {
    const near = lines.map((line, index) => {
      let best = -1;
      line.x.forEach((v, i) => {
        if (!finite(v) || !finite(line.y[i]) || !inside(at.px(v))) return;
        if (best < 0 || Math.abs(at.px(v) - x) < Math.abs(at.px(line.x[best]) - x)) best = i;
      });
      return best < 0 ? null : { line, index, best, x: line.x[best], y: line.y[best], away: Math.abs(at.px(line.x[best]) - x) };
    }).filter((n) => n && n.away < 60);
    clear();
    if (!near.length) return;
    const closest = (n) => (aim === null ? 0 : Math.abs(at.py(n.y) - aim)) + n.away;
    near.sort((a, b) => closest(a) - closest(b));
    const hot = near[0];
    if (lines.length > 1) highlight(svg, (line) => +line.dataset.line === hot.index);
    cursor = shape("g", {}, svg);
    shape("line", { class: "cursor", x1: at.px(hot.x), x2: at.px(hot.x), y1: at.top, y2: at.height - at.bottom }, cursor);
    shape("circle", { cx: at.px(hot.x), cy: at.py(hot.y), r: 3.5, fill: hot.line.colour }, cursor);
    tip = Object.assign(document.createElement("div"), { className: "tip" });
    tip.append(Object.assign(document.createElement("div"), { textContent: title(hot.x) }));
    for (const n of near.slice(0, 6).sort((a, b) => b.y - a.y)) {
      const row = document.createElement("div");
      if (n === hot) row.className = "hot";
      const [dot, name, value] = ["i", "span", "span"].map((kind) => document.createElement(kind));
      dot.style.background = n.line.colour;
      name.textContent = n.line.names?.[n.best] ?? n.line.name;
      const half = n.line.half?.[n.best];
      value.textContent = finite(half) ? `${withSpread(n.y, half)}, n = ${n.line.n[n.best]}` : number(+n.y.toPrecision(4));
      row.append(dot, name, value);
      tip.append(row);
    }
    if (near.length > 6) tip.append(Object.assign(document.createElement("div"), { textContent: `and ${near.length - 6} more` }));
    const middle = at.px(hot.x) / at.width;
    tip.style[middle > 0.5 ? "right" : "left"] = `${100 * (middle > 0.5 ? 1 - middle : middle) + 3}%`;
    plot.append(tip);
  };
  const where = (event) => {
    const { left, top, width } = svg.getBoundingClientRect();
    return [(event.clientX - left) * at.width / width, (event.clientY - top) * at.width / width];
  };
  const zooms = figure.dataset.chart !== undefined;
  const zoomTo = (ends, focus) => {
    if (ends === null) zoom.delete(figure);
    else zoom.set(figure, ends);
    const back = figure.querySelector("[data-reset]");
    if (back) back.hidden = ends === null;
    draw(figure);
    if (focus) plot.querySelector("svg")?.focus();
  };
  svg.addEventListener("pointerdown", (event) => {
    if (!zooms || event.button !== 0) return;
    from = Math.min(Math.max(where(event)[0], at.left), at.width - at.right);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = where(event);
    if (from === null) { show(x, y); return; }
    clear();
    box ??= shape("rect", { class: "box", y: at.top, height: at.height - at.top - at.bottom }, svg);
    const to = Math.min(Math.max(x, at.left), at.width - at.right);
    box.setAttribute("x", Math.min(from, to));
    box.setAttribute("width", Math.abs(to - from));
  });
  svg.addEventListener("pointerup", (event) => {
    const to = Math.min(Math.max(where(event)[0], at.left), at.width - at.right);
    const ends = from === null ? [0, 0] : [Math.min(from, to), Math.max(from, to)];
    from = null;
    box?.remove();
    box = null;
    if (ends[1] - ends[0] > 8) zoomTo(ends.map(at.back), false);
  });
  svg.addEventListener("pointercancel", () => { from = null; box?.remove(); box = null; });
  svg.addEventListener("dblclick", () => { if (zooms) zoomTo(null, false); });
  svg.addEventListener("pointerleave", () => { if (from === null) clear(); });
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
    const stops = lines[0].x.filter((x, i) => finite(x) && finite(lines[0].y[i]) && inside(at.px(x)));
    if (zooms && ["+", "=", "-", "0"].includes(event.key)) {
      event.preventDefault();
      const middle = stops[place] ?? (at.x0 + at.x1) / 2, reach = (at.x1 - at.x0) * (event.key === "-" ? 1 : 0.25);
      zoomTo(event.key === "0" ? null : [middle - reach, middle + reach], true);
    }
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!turn || !stops.length) return;
    event.preventDefault();
    place = Math.min(stops.length - 1, Math.max(0, place < 0 ? (turn > 0 ? 0 : stops.length - 1) : place + turn * Math.ceil(stops.length / 60)));
    show(at.px(stops[place]), null);
  });
}
for (const figure of all(".chart[data-chart]")) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Reset zoom", hidden: true });
  button.dataset.reset = "";
  button.addEventListener("click", () => { zoom.delete(figure); button.hidden = true; draw(figure); });
  figure.querySelector("figcaption").append(button);
}
