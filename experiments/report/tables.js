"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const visible = data.runs.map(() => true); // by the filter
const finite = (value) => value !== null && value !== undefined;

/* Numbers, as the page's tables write them. */
function number(value) {
  if (!finite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en-US").replace("-", "−");
  return (size < 1e-4 || size >= 1e7 ? value.toExponential(3).replace(/\.?0+e/, "e") : String(+value.toPrecision(4))).replaceAll("-", "−");
}
function withSpread(mean, half) {
  if (!(half > 0)) return `${number(mean)} ± ${number(half)}`;
  const digits = 1 - Math.floor(Math.log10(half));
  if (digits < 0 || digits > 6) return `${number(mean)} ± ${+half.toPrecision(2)}`;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return `${mean.toLocaleString("en-US", options)} ± ${half.toFixed(digits)}`.replaceAll("-", "−");
}

/* Mean and half the 95% interval of the mean; a single value has no interval. */
function interval(values) {
  const n = values.length;
  if (!n) return { n, mean: null, half: null };
  let mean = values.reduce((sum, value) => sum + value, 0) / n;
  if (n === 1) return { n, mean, half: null };
  mean = Math.min(Math.max(mean, Math.min(...values)), Math.max(...values)); // equal values: exactly theirs
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1));
  return { n, mean, half: data.quantiles[n] * deviation / Math.sqrt(n) };
}

/* What tells a run's data from that of others: measurements on other data are never compared. */
const dataKeys = Object.keys(data.keys).filter((key) => key.split(".")[0] === "data" && key !== "data.data_dir");
const allData = data.runs.map((_, run) => dataKeys.map((key) => data.keys[key][run] ?? "(absent)").join(", "));
const named = data.runs.map((_, run) => String(data.keys["data.name"]?.[run]));
const dataNames = new Set(named).size === new Set(allData).size ? named : allData; // the name, if it is enough
const dataOf = (run) => dataNames[run];

/* A click on a heading sorts, a second one turns the order round. */
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

/* Means over the visible runs of a config, bold where one beats all others of its data by intervals that part. */
function showMeans() {
  const rows = all(".means tbody tr"), read = rows.map((row) => dataOf(data.groups[row.dataset.group].members[0]));
  const found = rows.map((row) => {
    const members = data.groups[row.dataset.group].members.filter((run) => visible[run]);
    const complete = members.filter((run) => data.runs[run].status === "complete").length;
    const count = row.querySelector(".complete");
    count.textContent = `${complete} of ${members.length}`;
    count.dataset.v = complete;
    return data.metrics.map((_, column) => interval(members.map((run) => data.runs[run].metrics[column]).filter(finite)));
  });
  rows.forEach((row, place) => all(".mean", row).forEach((cell) => {
    const column = +cell.dataset.metric;
    const own = found[place][column];
    cell.textContent = own.n > 1 ? withSpread(own.mean, own.half) : own.n ? number(own.mean) : "";
    cell.dataset.v = own.mean ?? "";
    cell.dataset.half = own.half ?? "";
    const sign = data.better[column];
    const others = found.filter((_, other) => other !== place && read[other] === read[place]).map((metrics) => metrics[column]).filter((other) => other.n);
    const apart = (other) => other.n > 1 && sign * (own.mean - other.mean) > own.half + other.half;
    cell.classList.toggle("best", sign !== 0 && own.n > 1 && others.length > 0 && others.every(apart));
  }));
}

/* Claims over the visible runs. */
const VERDICTS = {
  "holds": ["holds", "✓"], "one run: met": ["holds", "✓"], "not reproduced": ["fails", "✗"],
  "one run: missed": ["fails", "✗"], "undecided": ["mixed", "◐"],
  "vacuous": ["fails", "○"],
};
const passes = (words) => words === "holds" || words === "one run: met";
function verdict(claim, values, nulls) {
  const own = judge(claim, values);
  return passes(own) && nulls.length && nulls.every(finite) && passes(judge(claim, nulls)) ? "vacuous" : own;
}
function judge(claim, values) {
  const { mean, half, n } = interval(values);
  if (claim.threshold === null || n === 0 || ![">=", "<="].includes(claim.relation)) return "undecided";
  const meets = (value) => (claim.relation === ">=" ? value >= claim.threshold : value <= claim.threshold);
  if (n === 1) return meets(mean) ? "one run: met" : "one run: missed";
  const [low, high] = [meets(mean - half), meets(mean + half)];
  return low !== high ? "undecided" : low ? "holds" : "not reproduced";
}
function showClaims() {
  for (const row of all("[data-claim]")) {
    const claim = data.claims[row.dataset.claim];
    const shown = claim.values.filter((_, place) => visible[claim.runs[place]]);
    const values = shown.filter(finite);
    const nulls = claim.nulls.filter((_, place) => visible[claim.runs[place]]);
    const absent = interval(nulls.filter(finite)).mean;
    const null_ = row.querySelector(".null");
    const { n, mean, half } = interval(values);
    null_.querySelector(".mean").textContent = absent === null || absent === undefined ? "–" : number(absent);
    Object.assign(null_.dataset, { v: absent ?? "", text: null_.querySelector(".mean").textContent });
    const text = n > 1 ? withSpread(mean, half) : n ? number(mean) : "–";
    const measured = row.querySelector(".measured");
    row.querySelector(".mean").textContent = text;
    Object.assign(measured.dataset, { v: mean ?? "", half: half ?? "", text });
    const members = row.querySelector(".members");
    members.querySelector(".count").textContent = `${shown.length} run${shown.length === 1 ? "" : "s"}`;
    members.dataset.v = members.dataset.text = shown.length;
    if (!claim.judged) continue;
    const words = values.length < shown.length ? "undecided" : verdict(claim, values, nulls);
    const [kind, symbol] = VERDICTS[words];
    const cell = row.querySelector(".verdict");
    cell.className = `verdict ${kind}`;
    cell.querySelector(".symbol").textContent = symbol;
    cell.querySelector(".words").textContent = words;
    cell.dataset.v = cell.dataset.text = words;
  }
}

/* The filter narrows every section: each word must match, key=value a value of the config. */
function matches(run, word) {
  const config = [...Object.entries(data.shared), ...Object.entries(data.keys).map(([key, values]) => [key, values[run]])];
  const entries = config.filter(([, value]) => value !== null).map(([key, value]) => [key.toLowerCase(), String(value).toLowerCase()]);
  const [, key, wanted] = /^([^=]+)=(.*)$/.exec(word) ?? [];
  if (key === undefined) return data.runs[run].words.includes(word) || entries.some(([name, value]) => `${name}=${value}`.includes(word));
  const equal = (value) => value === wanted || (wanted !== "" && value !== "" && Number(value) === Number(wanted));
  return entries.some(([name, value]) => (name === key || name.endsWith(`.${key}`)) && (wanted === "" || equal(value)));
}
const form = document.querySelector(".filters");
function filter() {
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.fromEntries(all("select", form).map((s) => [s.dataset.filter, s.value]));
  data.runs.forEach((run, i) => {
    visible[i] = words.every((word) => matches(i, word))
      && (!chosen.experiments || run.experiment === chosen.experiments)
      && (!chosen.states || run.status === chosen.states);
  });
  for (const element of all("[data-run]")) element.toggleAttribute("hidden", !visible[element.dataset.run]);
  for (const element of all("[data-runs]")) element.hidden = !element.dataset.runs.split(" ").some((i) => visible[i]);
  const count = visible.filter(Boolean).length;
  const total = data.runs.length;
  form.querySelector("output").value = count === total ? `${total} runs` : `${count} of ${total} runs`;
  document.querySelector(".nothing").hidden = count > 0;
  showMeans();
  showClaims();
  showColumns();
  redraw();
}
if (form) {
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}
