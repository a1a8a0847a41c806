/* Downloads: tables as CSV and as LaTeX with booktabs, charts as SVG, all of what is in view. */
function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const fileName = (text) => text.replace(/[^A-Za-z0-9.-]+/g, "_").replace(/^[_.]+|_+$/g, "").slice(0, 80) || "report";

/* The cells of a table in view: headings, then rows. */
function cellsOf(table) {
  const shown = (row) => [...row.cells].filter((cell) => !cell.hidden);
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden).map(shown);
  return table.tHead ? [shown(table.tHead.rows[0]), ...rows] : rows;
}
const plainText = (cell) => (cell.dataset.text ?? cell.textContent).replace(/\s+/g, " ").trim();
function csv(table) {
  const [head, ...rows] = cellsOf(table);
  const wide = head.map((_, column) => rows.some((row) => row[column]?.dataset.half !== undefined));
  const quote = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const line = (row, title) => row.flatMap((cell, column) => {
    const { v, text, half } = cell.dataset, exact = half !== undefined || (text === undefined && v && !Number.isNaN(Number(v)));
    const value = exact && !title ? v : plainText(cell);
    if (!wide[column]) return [value];
    return title ? [value, `${value} (half of 95% interval)`] : [value, half ?? ""];
  }).map(quote).join(",");
  return [head, ...rows].map((row, place) => line(row, table.tHead && place === 0)).join("\r\n") + "\r\n";
}
const LATEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "%": "\\%", "#": "\\#", "_": "\\_", "~": "\\textasciitilde{}",
  "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$", "−": "$-$", "≥": "$\\geq$", "≤": "$\\leq$",
  "×": "$\\times$", "·": "$\\cdot$", "∞": "$\\infty$", "–": "--", "…": "\\dots{}", "⚠": "", "✓": "", "✗": "", "◐": "", "▸": "", "\u00a0": "~",
};
const latexText = (text) => [...text].map((character) => LATEX[character] ?? character).join("").trim();
function latex(table) {
  const rows = cellsOf(table);
  const cell = (c) => (c.classList.contains("best") ? `\\textbf{${latexText(plainText(c))}}` : latexText(plainText(c)));
  const lines = rows.map((row) => `  ${row.map(cell).join(" & ")} \\\\`);
  const columns = rows[0].map((c) => (c.classList.contains("number") ? "r" : "l")).join("");
  const [head, ...body] = table.tHead ? ["  \\toprule", lines[0], "  \\midrule", ...lines.slice(1)] : ["  \\toprule", ...lines];
  return ["% needs \\usepackage{booktabs}", `\\begin{tabular}{${columns}}`, head, ...body, "  \\bottomrule", "\\end{tabular}", ""].join("\n");
}
function button(text, title, action) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, title });
  made.addEventListener("click", action);
  return made;
}
for (const box of all(".scroll")) {
  const table = box.querySelector("table"), name = fileName(box.getAttribute("aria-label"));
  const bar = Object.assign(document.createElement("div"), { className: "downloads" });
  bar.append(
    button("CSV", "Download this table as CSV", () => save(csv(table), `${name}.csv`, "text/csv")),
    button("LaTeX", "Download this table for LaTeX (booktabs)", () => save(latex(table), `${name}.tex`, "text/x-tex")),
  );
  box.after(bar);
}

/* A chart with its title and legend, its colours written out. */
const LOOKS = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order", "opacity", "font-size", "font-family", "font-weight"];
function svgText(figure) {
  const svg = figure.querySelector(".plot > svg");
  if (!svg) return null;
  const lines = shownLines.get(figure), [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const copy = svg.cloneNode(true), originals = [svg, ...all("*", svg)];
  [copy, ...all("*", copy)].forEach((element, i) => {
    const computed = getComputedStyle(originals[i]);
    for (const look of LOOKS) {
      if (element.tagName !== "svg" && (element.tagName === "text" || !look.startsWith("font"))) element.setAttribute(look, computed.getPropertyValue(look));
    }
    for (const name of ["class", "tabindex"]) element.removeAttribute(name);
  });
  const top = 24, keys = lines.length > 1 ? lines : [];
  const ink = getComputedStyle(figure).color, total = top + height + 16 * keys.length + 6;
  const whole = shape("svg", { xmlns: "http://www.w3.org/2000/svg", width, height: total, viewBox: `0 0 ${width} ${total}`, "font-family": "sans-serif" });
  shape("rect", { width, height: total, fill: getComputedStyle(figure).backgroundColor }, whole);
  shape("text", { x: 8, y: 16, fill: ink, "font-size": 13, "font-weight": 600 }, whole).textContent = figure.querySelector("figcaption span").textContent;
  for (const [name, value] of Object.entries({ x: 0, y: top, width, height })) copy.setAttribute(name, value);
  whole.append(copy);
  keys.forEach((line, i) => {
    const y = top + height + 16 * i + 8, colour = getComputedStyle(figure).getPropertyValue(line.colour.slice(4, -1));
    shape("line", { x1: 10, x2: 36, y1: y, y2: y, stroke: colour, "stroke-width": 2, "stroke-dasharray": line.dash }, whole);
    shape("text", { x: 42, y: y + 4, fill: ink, "font-size": 11 }, whole).textContent = line.name;
  });
  return new XMLSerializer().serializeToString(whole);
}
for (const figure of figures) {
  const title = () => fileName(figure.querySelector("figcaption span").textContent);
  figure.querySelector("figcaption").append(button("SVG", "Download this chart as SVG", () => {
    const text = svgText(figure);
    if (text) save(text, `${title()}.svg`, "image/svg+xml");
  }));
}
