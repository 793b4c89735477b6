"use strict";

// Sort a table's rows, group by group, by the column whose heading is pressed.
function order(cell) {
  const marked = cell && cell.querySelector("[data-order]");
  return marked ? Number(marked.dataset.order) : NaN;
}

function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const groups = [[]];
  for (const row of [...body.rows]) {
    if (row.classList.contains("gt_group_heading_row")) groups.push([row]);
    else groups.at(-1).push(row);
  }
  for (const group of groups) {
    const heading = group[0] && group[0].classList.contains("gt_group_heading_row") ? [group.shift()] : [];
    group.sort((a, b) => {
      const [x, y] = [order(a.cells[column]), order(b.cells[column])];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return descending ? y - x : x - y;
    });
    body.append(...heading, ...group);
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
      const descending = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
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
