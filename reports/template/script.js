// ---------------------------------------------------------------------------------------------------- tables

// The sort key of a cell: its data-order, the number at the start of its text, or its text.
function order(cell) {
  const marked = cell?.querySelector("[data-order]");
  if (marked) return Number(marked.dataset.order);
  const text = (cell?.textContent ?? "").trim().replace("\u2212", "-");
  if (text === "" || text === "\u2013") return NaN;
  return /^[-+]?\d[\d.]*(e[-+]?\d+)?(?=\s|%|$)/i.test(text) ? parseFloat(text) : text.toLowerCase();
}

const isNumber = (x) => typeof x === "number" && !Number.isNaN(x);
const rank = (x) => (isNumber(x) ? 0 : typeof x === "string" ? 1 : 2); // numbers first, then text, then empty cells

function compare(x, y) {
  if (rank(x) !== rank(y)) return { fixed: rank(x) - rank(y) };
  if (Number.isNaN(x)) return { fixed: 0 };
  if (typeof x === "number" && typeof y === "number") return { free: x - y };
  return { free: String(x).localeCompare(String(y), "en", { numeric: true }) };
}

const isHeading = (row) => row.classList.contains("gt_group_heading_row");

// Filter and sort a table's rows as its `state` says. A sorted table drops the families and lists all methods together;
// only UNRANKED_GROUPS stay below them. Empty cells are last in both directions. Returns the number of matching rows.
function arrange(table, state) {
  const [body, words] = [table.tBodies[0], state.query.toLowerCase().split(/\s+/).filter(Boolean)];
  const tiers = [[]];
  let family = "";
  let matches = 0;
  let heading = null;
  for (const row of state.rows) {
    const unranked = isHeading(row) && UNRANKED_GROUPS.includes(row.textContent.trim());
    if (isHeading(row)) {
      [heading, family] = [row, row.textContent.toLowerCase()];
      row.hidden = true;
      if (unranked) tiers.push([]);
    } else {
      const text = `${family} ${row.textContent.toLowerCase()}`;
      row.hidden = !words.every((word) => text.includes(word));
      matches += !row.hidden;
      const withHeading = state.direction === "none" || UNRANKED_GROUPS.includes(heading?.textContent.trim());
      if (heading && !row.hidden && withHeading) heading.hidden = false;
    }
    tiers.at(-1).push(row);
  }
  if (state.direction === "none") body.append(...state.rows);
  else for (const tier of tiers) {
    const rows = tier.filter((row) => !isHeading(row));
    rows.sort((a, b) => {
      const { fixed, free } = compare(order(a.cells[state.column]), order(b.cells[state.column]));
      return fixed ?? (state.direction === "descending" ? -free : free);
    });
    body.append(...tier.filter(isHeading), ...rows);
  }
  return matches;
}

// The lowest heading cell above each column, where headings may span rows and columns.
function headings(table) {
  const taken = [];
  [...table.tHead.rows].forEach((row, at) => {
    let column = 0;
    for (const cell of row.cells) {
      while (taken[at]?.[column]) column += 1;
      for (let down = 0; down < cell.rowSpan; down += 1)
        for (let along = 0; along < cell.colSpan; along += 1) (taken[at + down] ||= [])[column + along] = cell;
      column += cell.colSpan;
    }
  });
  return taken.at(-1);
}

// A table that fits its place keeps its headings at the top of the window. A wider one scrolls in place, and says so.
const fitting = new ResizeObserver((entries) => {
  for (const box of new Set(entries.map(({ target }) => target.closest(".scroll")))) {
    const fits = box.scrollWidth <= box.clientWidth + 1;
    box.classList.toggle("fits", fits);
    box.classList.toggle("cut", !fits);
  }
});
function observeFit(table) {
  fitting.observe(table);
  fitting.observe(table.parentElement);
}

const MIN_ROWS_FOR_SEARCH = 8;

// Make the columns of a table sortable, and add a search box above a long one.
function makeSortable(table) {
  const state = { rows: [...table.tBodies[0].rows], query: "", column: 0, direction: "none" };
  const heads = headings(table);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) button.append("Method");
    head.append(button);
    button.addEventListener("click", () => {
      const turn = { none: "descending", descending: "ascending", ascending: "none" };
      const numbers = state.rows.some((row) => !isHeading(row) && isNumber(order(row.cells[column])));
      if (!numbers) Object.assign(turn, { none: "ascending", ascending: "descending", descending: "none" });
      const direction = turn[head.getAttribute("aria-sort") || "none"];
      for (const head of heads) head.removeAttribute("aria-sort");
      if (direction !== "none") head.setAttribute("aria-sort", direction);
      Object.assign(state, { column, direction });
      arrange(table, state);
    });
  });
  const all = state.rows.filter((row) => !isHeading(row)).length;
  if (all < MIN_ROWS_FOR_SEARCH) return;
  const box = document.createElement("p");
  box.className = "search";
  box.innerHTML = '<label>Search <input type="search" autocomplete="off"></label> <span role="status"></span>';
  const [input, status] = [box.querySelector("input"), box.querySelector("span")];
  input.addEventListener("input", () => {
    state.query = input.value;
    const matches = arrange(table, state);
    status.textContent = state.query.trim() ? `${matches} of ${all} rows` : "";
  });
  table.parentElement.before(box);
}

// --------------------------------------------------------------------------------------------------- figures

// The colour of a mark is that of its method. Choosing methods in a legend dims all other marks in all figures.
const names = new Map(OVERVIEW.methods.map((method) => [method.colour, method.short]));
const owner = (mark) => [mark.getAttribute("stroke"), mark.getAttribute("fill")].find((colour) => names.has(colour));
const followed = new Set();

function showFollowed(root) {
  for (const button of root.querySelectorAll(".legend button"))
    button.setAttribute("aria-pressed", String(followed.has(button.dataset.colour)));
  for (const mark of root.querySelectorAll("figure svg .role-mark *")) {
    const colour = owner(mark);
    if (colour) mark.classList.toggle("dim", followed.size > 0 && !followed.has(colour));
  }
}
function follow(colour) {
  if (!followed.delete(colour)) followed.add(colour);
  showFollowed(document);
}
function followOnly(colour) {
  followed.clear();
  follow(colour);
}

// The value at a pixel of a panel, by the inverse of its scale.
function value(scale, pixel) {
  const share = scale.upward ? 1 - pixel / scale.length : pixel / scale.length;
  const [forward, inverse] = { log: [Math.log, Math.exp], sqrt: [Math.sqrt, (v) => v * v] }[scale.type] ?? [Number, Number];
  const [low, high] = scale.domain.map((end) => forward(end));
  return inverse(low + share * (high - low));
}
const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]];
function written(number) {
  const [factor, prefix] = PREFIXES.find(([size]) => Math.abs(number) >= size) ?? [1, ""];
  const rounded = Number((number / factor).toPrecision(4));
  return `${String(Math.abs(rounded) < 1e-9 ? 0 : rounded).replace("-", "\u2212")}${prefix && `\u2009${prefix}`}`;
}

// The points of an SVG that have a value: {mark, x and y in the mark's panel, text}.
function places(svg) {
  const plane = JSON.parse(svg.dataset.plane);
  const points = [];
  const inside = (x, y) => x >= -1 && x <= plane.x.length + 1 && (!plane.y || (y >= -1 && y <= plane.y.length + 1));
  const add = (mark, x, y, text) => { if (inside(x, y)) points.push({ mark, x, y, text: `${names.get(owner(mark))}: ${text}` }); };
  const point = (x, y) => plane.y
    ? `${written(value(plane.y, y))} at ${written(value(plane.x, x))} (${plane.x.title})`
    : written(value(plane.x, x));
  for (const mark of svg.querySelectorAll(".role-mark:not([class*='leader']):not([class*='key']) > *")) {
    if (!owner(mark) || mark.tagName === "text") continue;
    const at = (mark.getAttribute("transform") ?? "").match(/translate\(([-\d.e]+),([-\d.e]+)\)/);
    const [x, y] = at ? [Number(at[1]), Number(at[2])] : [0, 0];
    const group = mark.parentElement.classList;
    const path = (mark.getAttribute("d") ?? "").match(/-?[\d.]+(e-?\d+)?/g)?.map(Number) ?? [];
    if (group.contains("mark-symbol")) add(mark, x, y, point(x, y));
    else if (group.contains("mark-line")) for (let i = 0; i < path.length; i += 2) add(mark, path[i], path[i + 1], point(path[i], path[i + 1]));
    else if (group.contains("mark-rule")) {
      const [dx, dy] = ["x2", "y2"].map((name) => Number(mark.getAttribute(name)));
      const vertical = plane.y && Math.abs(dy) > 0;
      const [scale, ...ends] = vertical ? [plane.y, y, y + dy] : plane.y ? [plane.y, y, y] : [plane.x, x, x + dx];
      const [low, high] = ends.map((end) => value(scale, end)).sort((a, b) => a - b).map(written);
      if (low === high) add(mark, x + dx / 2, y + dy / 2, low);
      else for (const share of [0, 1]) add(mark, x + share * dx, y + share * dy, `${low} to ${high}`); // its middle is under the dot
    } else if (group.contains("mark-rect") && plane.y) {
      const share = Number(mark.getAttribute("opacity")) || 0;
      const [client, cluster] = [value(plane.x, path[0]), value(plane.y, path[1])].map(Math.round);
      add(mark, path[0] + path[2] / 2, path[1] + path[3] / 2, `${plane.x.title} ${client}, ${plane.y.title} ${cluster}: weight ${written(share)}`);
    } else if (group.contains("mark-rect") && path.length >= 4) { // a box, or a tick as thin as a line
      const [low, high] = [path[0] + x, path[0] + x + path[2]];
      const thin = path[2] <= 2.5;
      const middle = path[1] + y + path[3] / 2;
      const text = [low, high].map((end) => written(value(plane.x, end))).join(" to ");
      if (thin) add(mark, (low + high) / 2, middle, written(value(plane.x, (low + high) / 2)));
      else for (const end of [low, high]) add(mark, end, middle, text);
    }
  }
  return points;
}

const REACH_PX = 22; // largest distance from the pointer to a point
const tip = document.getElementById("tip");
const cachedPlaces = new WeakMap();
function placesOf(svg) {
  if (!cachedPlaces.has(svg)) cachedPlaces.set(svg, places(svg));
  return cachedPlaces.get(svg);
}
function screen(place) {
  const matrix = place.mark.parentElement.getScreenCTM();
  return { x: matrix.a * place.x + matrix.e, y: matrix.d * place.y + matrix.f };
}
function showTip(place) {
  const { x, y } = screen(place);
  showTipAt({ right: x, top: y }, place.text);
}
function showTipAt({ right: x, top: y }, text) {
  tip.textContent = text;
  tip.className = "shown";
  const wide = tip.offsetWidth;
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - wide - 8)) + scrollX}px`;
  tip.style.top = `${Math.max(4, y - 34) + scrollY}px`;
}
function hideTip() { tip.className = ""; tip.textContent = ""; }

// Show the values of a figure to the pointer and to the arrow keys.
function makeReadable(svg) {
  if (!("x" in JSON.parse(svg.dataset.plane))) return;
  svg.tabIndex = 0;
  let at = -1;
  svg.addEventListener("pointermove", (event) => {
    let [nearest, distance] = [null, REACH_PX];
    const panels = new Map();
    for (const place of placesOf(svg)) {
      const panel = place.mark.parentElement;
      if (!panels.has(panel)) panels.set(panel, panel.getScreenCTM());
      const matrix = panels.get(panel);
      const away = Math.hypot(matrix.a * place.x + matrix.e - event.clientX, matrix.d * place.y + matrix.f - event.clientY);
      if (away < distance) [nearest, distance] = [place, away];
    }
    if (nearest) showTip(nearest); else hideTip();
  });
  svg.addEventListener("pointerleave", hideTip);
  svg.addEventListener("blur", hideTip);
  svg.addEventListener("keydown", (event) => {
    const all = placesOf(svg);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hideTip();
    if (!all.length || (!step && event.key !== "Home" && event.key !== "End")) return;
    event.preventDefault();
    at = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : (Math.max(at, step > 0 ? -1 : 0) + step + all.length) % all.length;
    showTip(all[at]);
  });
}

async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // no clipboard for local files in this browser: select the text, so that its copy command works
    const box = Object.assign(document.createElement("textarea"), { value: text });
    button.after(box);
    box.select();
    const copied = document.execCommand("copy");
    if (copied) box.remove();
    button.textContent = copied ? "Copied" : "Selected: press Ctrl-C";
  }
  setTimeout(() => { button.textContent = label; }, 2000);
}

// ------------------------------------------------------------------------------------------------- sections

// The content of a section is compressed and base64-coded in the page. It is unpacked when the section is opened.
async function unpack(packed) {
  if (!("DecompressionStream" in window)) {
    packed.replaceWith("This browser cannot unpack the section. Use a browser of 2023 or later, or read the files beside this page.");
    return;
  }
  const bytes = Uint8Array.from(atob(packed.textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const content = document.createElement("div");
  content.innerHTML = await new Response(stream).text();
  packed.replaceWith(content);
  enliven(content);
}

function enliven(root) {
  for (const table of root.querySelectorAll(".gt_table, .plain")) { makeSortable(table); observeFit(table); }
  for (const svg of root.querySelectorAll("figure svg[data-plane]")) makeReadable(svg);
  for (const button of root.querySelectorAll(".legend button")) button.addEventListener("click", () => follow(button.dataset.colour));
  for (const button of root.querySelectorAll("button[data-copy]"))
    button.addEventListener("click", () => copyText(document.getElementById(button.dataset.copy).textContent, button));
  if (document.body.dataset.files) addLinks(root);
  showFollowed(root);
}

// Links to the files beside the page: tables as LaTeX, figures as data and as drawings.
function addLinks(root) {
  const link = (href, textContent) => Object.assign(document.createElement("a"), { href, textContent, download: "", ariaLabel: href });
  const beside = (tag, ...links) => {
    const files = Object.assign(document.createElement(tag), { className: "files" });
    files.append(...links);
    return files;
  };
  for (const figure of root.querySelectorAll("figure.plot")) {
    const kinds = ["csv", "svg", "pdf"].map((kind) => link(`figures/${figure.id}.${kind}`, kind.toUpperCase()));
    figure.querySelector("figcaption").append(" ", beside("span", kinds[0], " · ", kinds[1], " · ", kinds[2]));
  }
  for (const block of root.querySelectorAll("[data-table]"))
    block.after(beside("p", link(`tables/${block.dataset.table}.tex`, "LaTeX")));
}

async function openFold(fold) {
  fold.open = true;
  const packed = fold.querySelector("script[type='text/packed']");
  if (packed && !packed.dataset.begun) {
    packed.dataset.begun = "yes"; // a second event must not unpack it again
    await unpack(packed);
  }
}
async function openSection(id) {
  const target = document.getElementById(id);
  const fold = target?.closest("section")?.querySelector("details.fold");
  if (fold) await openFold(fold);
  document.getElementById(id)?.scrollIntoView();
}
const folds = [...document.querySelectorAll("details.fold")];
for (const fold of folds) fold.addEventListener("toggle", () => { if (fold.open) openFold(fold); });
addEventListener("hashchange", () => openSection(location.hash.slice(1)));
document.addEventListener("click", (event) => { // also where the address already ends with this section
  const link = event.target.closest("a[href^='#']");
  if (link) openSection(link.hash.slice(1));
});
if (location.hash) openSection(location.hash.slice(1));

const unfold = document.getElementById("unfold");
unfold.addEventListener("click", async () => {
  const opening = folds.some((fold) => !fold.open);
  for (const fold of folds) {
    if (opening) await openFold(fold);
    else fold.open = false;
    for (const inner of fold.querySelectorAll("details")) inner.open = opening;
  }
  unfold.textContent = opening ? "Fold all sections" : "Unfold all sections";
});

// ------------------------------------------------------------------------------------------------------ page

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const section of document.querySelectorAll("main > section")) seen.observe(section);

const switcher = document.createElement("button");
switcher.type = "button";
switcher.className = "theme";
function label() { switcher.textContent = `Colours: ${document.documentElement.dataset.theme}`; }
switcher.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  show(next);
  storeTheme(next);
  label();
});
label();
document.querySelector("nav").append(switcher);
