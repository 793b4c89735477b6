"use strict";

// Sort a table's rows by the column whose heading is pressed: downwards, upwards, then as it was.
function order(cell) {
  const marked = cell && cell.querySelector("[data-order]");
  return marked ? Number(marked.dataset.order) : NaN;
}

// Families are for reading: sorted, all methods stand in one column of ranks, and only what stands apart stays apart.
function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const original = table.original ||= [...body.rows];
  const tiers = [[]];
  for (const row of original) {
    const heading = row.classList.contains("gt_group_heading_row");
    row.hidden = heading && direction !== "none" && !APART.includes(row.textContent.trim());
    if (heading && APART.includes(row.textContent.trim())) tiers.push([]);
    tiers.at(-1).push(row);
  }
  if (direction === "none") { body.append(...original); return; }
  for (const tier of tiers) {
    const [headings, rows] = [true, false].map(
      (wanted) => tier.filter((row) => row.classList.contains("gt_group_heading_row") === wanted));
    rows.sort((a, b) => {
      const [x, y] = [order(a.cells[column]), order(b.cells[column])];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return direction === "descending" ? y - x : x - y;
    });
    body.append(...headings, ...rows);
  }
}

for (const table of document.querySelectorAll(".gt_table")) {
  const heads = [...table.tHead.rows].at(-1).cells;
  const offset = table.tHead.rows.length > 1 ? 1 : 0; // the stub's heading spans both rows of the head
  [...heads].forEach((head, at) => {
    const column = at + offset;
    if (column === 0) return;
    head.tabIndex = 0;
    head.title = "Sort by this column";
    const sort = () => {
      const before = head.getAttribute("aria-sort") || "none";
      const direction = { none: "descending", descending: "ascending", ascending: "none" }[before];
      for (const other of heads) other.removeAttribute("aria-sort");
      if (direction !== "none") head.setAttribute("aria-sort", direction);
      sortBy(table, column, direction);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}

// Follow a method through all figures: a mark belongs to the method whose colour it has.
const buttons = [...document.querySelectorAll(".legend button")];
const colours = new Set(buttons.map((button) => button.dataset.colour));
const marks = [...document.querySelectorAll("figure svg *")].filter(
  (mark) => colours.has(mark.getAttribute("stroke")) || colours.has(mark.getAttribute("fill")));
function follow() {
  const chosen = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => b.dataset.colour));
  for (const mark of marks) {
    const own = chosen.has(mark.getAttribute("stroke")) || chosen.has(mark.getAttribute("fill"));
    mark.classList.toggle("dim", chosen.size > 0 && !own);
  }
}
for (const button of buttons) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    follow();
  });
}

// Paper has no disclosure triangles: print everything, then close what was closed.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => { for (const details of closed) details.open = false; });
