// Tables of systems: sorted by a click on a head, filtered by area and verdict, without a server.
"use strict";

const VERDICTS = [
  "holds", "one run: met", "not reproduced", "one run: missed", "undecided", "vacuous",
  "not measured", "not built",
];
const FEW = 12; // rows that need no filter

for (const table of document.querySelectorAll("table.systems")) {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  const names = heads.map((head) => head.textContent.trim());
  const text = (row, name) => row.cells[names.indexOf(name)].textContent.trim();
  const place = (row, name) =>
    name === "verdict" ? String.fromCharCode(65 + VERDICTS.indexOf(text(row, name))) : text(row, name);

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = names[column];
    button.title = `Sort by ${names[column]}`;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => place(a, names[column]).localeCompare(place(b, names[column]));
      const sorted = rows.toSorted((a, b) => (down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...sorted);
    });
    head.replaceChildren(button);
  });

  if (rows.length <= FEW) continue;
  const line = document.createElement("p");
  line.className = "filters";
  const shown = document.createElement("span");
  shown.setAttribute("role", "status");
  const selects = ["area", "verdict"].map((name) => {
    const select = document.createElement("select");
    const values = [...new Set(rows.map((row) => text(row, name)))];
    values.sort((a, b) => VERDICTS.indexOf(a) - VERDICTS.indexOf(b) || a.localeCompare(b));
    select.append(new Option(`every ${name}`, ""), ...values.map((value) => new Option(value)));
    select.setAttribute("aria-label", name);
    select.addEventListener("change", filter);
    return [name, select];
  });
  function filter() {
    for (const row of rows)
      row.hidden = selects.some(([name, { value }]) => value && value !== text(row, name));
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = `${count} of ${rows.length} systems`;
  }
  line.append(...selects.map(([, select]) => select), shown);
  table.before(line);
  filter();
}
