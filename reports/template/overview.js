// The overview: the table of methods × tasks, its filters, the details of a cell, the comparison of two methods, and the
// figure of results against costs. OVERVIEW holds their numbers (floral/report/overview.py). Every change of the `view` is
// followed by one showTable().

const DEFAULT_SORT = { column: OVERVIEW.tasks.length > 1 ? "rank" : OVERVIEW.tasks[0]?.id, turned: 1 };
const view = { mode: "mean", query: "", families: new Set(), tasks: new Set(), cheap: new Set(), only: null, intervals: false, sort: DEFAULT_SORT };
const table = document.querySelector("table.heat");
const methodsById = new Map(OVERVIEW.methods.map((method) => [method.id, method]));
const tasksById = new Map(OVERVIEW.tasks.map((task) => [task.id, task]));
const reference = methodsById.get(OVERVIEW.reference);
const COSTS = { bytes: "Bytes sent by and to all clients in a run", client_passes: "Forward-backward passes of all clients in a run" };

const shownTasks = () => OVERVIEW.tasks.filter((task) => view.tasks.size === 0 || view.tasks.has(task.id));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const clamp = (share) => Math.min(1, Math.max(0, share));
function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.round(share * (sorted.length - 1))];
}

// ------------------------------------------------------------------------------------------------- values

// The number of a cell in a mode, or NaN. Larger is better: errors are turned into negative logarithms.
function score(method, task, mode = view.mode) {
  const cell = method.cells[task.id];
  const value = mode === "mean" ? cell?.mean : mode === "rank" ? cell?.rank : cell?.difference?.value;
  if (value === undefined) return NaN;
  if (mode === "rank") return -value;
  return task.log ? -Math.log(Math.max(value, Number.MIN_VALUE)) : value;
}

// The text of a cell in the current mode, with its interval if `whole`.
function text(method, task, whole) {
  const cell = method.cells[task.id];
  if (!cell) return "";
  if (view.mode === "rank") return cell.rank === undefined ? "–" : String(cell.rank);
  if (view.mode === "difference") {
    if (method === reference) return "reference";
    return cell.difference ? (whole ? cell.difference.interval : cell.difference.text) : "–";
  }
  return whole ? cell.interval ?? cell.text : cell.text;
}

// Whether a difference is decided. `p` is null with one seed.
const isSignificant = (p) => p !== null && p < 0.05;

// How strongly a cell is coloured (0 to 1), and in which colour. The worst tenth of the methods share the palest one.
function shade(method, task) {
  const value = score(method, task);
  const others = OVERVIEW.methods.filter((other) => other.ranked).map((other) => score(other, task)).filter((x) => !Number.isNaN(x));
  if (Number.isNaN(value) || others.length < 2) return { share: 0, colour: "good" };
  if (view.mode === "difference") {
    const largest = quantile(others.map(Math.abs), 0.8) || 1;
    const decided = isSignificant(method.cells[task.id].difference.p);
    return { share: decided ? 0.25 + 0.75 * clamp(Math.abs(value) / largest) : 0, colour: value < 0 ? "bad" : "good" };
  }
  const [low, high] = [quantile(others, 0.1), Math.max(...others)];
  return { share: high > low ? clamp((value - low) / (high - low)) : 0, colour: "good" };
}

// A method's cost as a multiple of the reference's: the geometric mean over the shown tasks that both have.
function relativeCost(method, cost) {
  const ratios = shownTasks()
    .map((task) => [method.cells[task.id]?.[cost], reference?.cells[task.id]?.[cost]])
    .filter(([own, other]) => own !== undefined && other > 0)
    .map(([own, other]) => own / other);
  if (ratios.length === 0) return NaN;
  return ratios.includes(0) ? 0 : Math.exp(mean(ratios.map(Math.log)));
}

// The mean rank over the shown tasks, or NaN if the method has no rank on one of them.
function meanRank(method) {
  const ranks = shownTasks().map((task) => method.cells[task.id]?.rank ?? NaN);
  return mean(ranks);
}

function isShown(method) {
  const words = view.query.toLowerCase().split(/\s+/).filter(Boolean);
  const named = `${method.title} ${method.id} ${method.family}`.toLowerCase();
  return words.every((word) => named.includes(word))
    && (view.families.size === 0 || view.families.has(method.family))
    && (view.only === null || view.only.includes(method.id))
    && [...view.cheap].every((cost) => relativeCost(method, cost) <= 1.0001);
}

// -------------------------------------------------------------------------------------------------- table

const ratio = (value) => (Number.isNaN(value) ? "–" : value === 0 ? "0" : `${Number(value.toPrecision(2))}\u2009×`);
const columnHeadings = [...table.tHead.rows[0].cells];
const bodies = [...table.tBodies]; // the methods that can be best, then those told the clusters, then controls

function showCell(cell, method, task) {
  const { share, colour } = shade(method, task);
  const button = cell.querySelector("button");
  const record = method.cells[task.id];
  button.textContent = text(method, task, view.intervals) || "–";
  button.disabled = !record;
  cell.className = `${colour}${view.mode === "mean" && record?.best ? " best" : ""}`;
  cell.style.setProperty("--share", `${Math.round(55 * share)}%`);
}

function sortKey(method) {
  const { column } = view.sort;
  if (column === "method") return method.title;
  if (column === "rank") return meanRank(method);
  if (column in COSTS) return relativeCost(method, column);
  return -score(method, tasksById.get(column));
}

// Order of two methods: numbers from low to high, then words; those without a value last in both directions.
function compareMethods(a, b) {
  const [x, y] = [sortKey(a), sortKey(b)];
  if (typeof x === "string") return view.sort.turned * x.localeCompare(y, "en", { numeric: true });
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
  return view.sort.turned * (x - y);
}

// Whether the numbers of the sorted column grow from top to bottom. The first click puts the best methods first.
function isAscending() {
  const task = tasksById.get(view.sort.column);
  const largestFirst = task !== undefined && view.mode !== "rank" && !task.log;
  return largestFirst !== (view.sort.turned === 1);
}

const LEGENDS = {
  mean: "Darker is better within its column. Bold: not shown to be worse than the best.",
  difference: `Each cell: the method minus ${reference?.short} (errors: divided by it). Blue is better, orange is worse, after Holm's correction; without colour: not decided. Shades compare within a column only.`,
  rank: "1 is the best mean. Darker is better within its column.",
};
const UNITS = { mean: (task) => task.result, rank: () => "rank", difference: (task) => (task.log ? "ratio" : "points") };

function showTable() {
  const tasks = new Set(shownTasks());
  const [single] = tasks.size === 1 ? tasks : [];
  const rankTitle = single ? `Rank among ${OVERVIEW.methods.filter((method) => method.cells[single.id]?.rank !== undefined).length}` : "Mean rank";
  let count = 0;
  for (const heading of columnHeadings) {
    const task = tasksById.get(heading.dataset.column);
    heading.hidden = task !== undefined && !tasks.has(task);
    const sorted = view.sort.column === heading.dataset.column;
    if (sorted) heading.setAttribute("aria-sort", isAscending() ? "ascending" : "descending");
    else heading.removeAttribute("aria-sort");
    if (task) heading.querySelector("small").textContent = UNITS[view.mode](task);
    if (heading.dataset.column === "rank") heading.querySelector("button").textContent = rankTitle;
  }
  document.getElementById("legend").textContent = LEGENDS[view.mode];
  for (const body of bodies) {
    const rows = [...body.rows].filter((row) => row.dataset.method);
    for (const row of rows) {
      const method = methodsById.get(row.dataset.method);
      row.hidden = !isShown(method);
      count += !row.hidden;
      columnHeadings.forEach((heading, at) => {
        const [column, cell] = [heading.dataset.column, row.cells[at]];
        const task = tasksById.get(column);
        cell.hidden = heading.hidden;
        if (task) showCell(cell, method, task);
        else if (column === "rank") cell.textContent = Number.isNaN(meanRank(method)) ? "–" : single ? String(meanRank(method)) : meanRank(method).toFixed(1);
        else if (column in COSTS) cell.textContent = ratio(relativeCost(method, column));
      });
    }
    rows.sort((a, b) => compareMethods(methodsById.get(a.dataset.method), methodsById.get(b.dataset.method)));
    body.append(...rows);
    const title = body.querySelector(".tier");
    if (title) title.hidden = rows.every((row) => row.hidden);
  }
  const all = OVERVIEW.methods.length;
  document.getElementById("shown").textContent = count === all ? `${all} methods` : `${count} of ${all} methods`;
  document.getElementById("reset").hidden = count === all && view.tasks.size === 0 && view.sort === DEFAULT_SORT;
}

for (const heading of columnHeadings) {
  heading.querySelector("button").addEventListener("click", () => {
    const { column } = heading.dataset;
    if (view.sort.column !== column) view.sort = { column, turned: 1 };
    else view.sort = view.sort.turned === 1 ? { column, turned: -1 } : DEFAULT_SORT;
    showTable();
  });
}

// ------------------------------------------------------------------------------------------------ filters

const controls = document.getElementById("controls");
const chips = [...controls.querySelectorAll("[data-chip]")];
const modes = [...controls.querySelectorAll("[data-mode]")];

function showControls() {
  for (const chip of chips) chip.setAttribute("aria-pressed", String(view[chip.dataset.chip].has(chip.value)));
  for (const button of modes) button.setAttribute("aria-pressed", String(view.mode === button.dataset.mode));
  document.getElementById("intervals").checked = view.intervals;
  document.getElementById("find").value = view.query;
  showTable();
}

// Scroll to the controls if the table below them is out of sight.
function showResult() {
  if (table.getBoundingClientRect().top > innerHeight - 250) document.getElementById("overview").scrollIntoView();
}

for (const chip of chips) {
  chip.addEventListener("click", () => {
    const chosen = view[chip.dataset.chip];
    if (!chosen.delete(chip.value)) chosen.add(chip.value);
    if (view.tasks.has(chip.value)) plotTask(chip.value);
    showControls();
    showResult();
  });
}
for (const button of modes) button.addEventListener("click", () => { view.mode = button.dataset.mode; showControls(); showResult(); });
document.getElementById("intervals").addEventListener("change", (event) => { view.intervals = event.target.checked; showTable(); showResult(); });
document.getElementById("find").addEventListener("input", (event) => { view.query = event.target.value; showTable(); showResult(); });
function clearFilters() {
  for (const chosen of [view.families, view.tasks, view.cheap]) chosen.clear();
  Object.assign(view, { query: "", only: null, sort: DEFAULT_SORT });
}
document.getElementById("reset").addEventListener("click", () => { clearFilters(); showControls(); });

// The answers at the top lead to the methods that they count and to the task's column. The browser's Back returns to them.
function leadTo(task, part) {
  clearFilters();
  Object.assign(view, { mode: "mean", only: task[part], tasks: new Set([task.id]), sort: { column: task.id, turned: 1 } });
  plotTask(task.id);
  showControls();
  history.pushState(null, "", "#overview");
  document.getElementById("overview").scrollIntoView();
}
for (const button of document.querySelectorAll("button[data-only]"))
  button.addEventListener("click", () => leadTo(tasksById.get(button.dataset.only), button.value));

// ------------------------------------------------------------------------------------------ copy the table

function escapeLatex(word) {
  return word.replace(/([%&#_$])/g, "\\$1").replaceAll("±", "$\\pm$").replaceAll("−", "$-$").replaceAll("÷", "$\\div$").replace(/[\u2009\u00a0]/g, "~");
}
function rowsToCopy() {
  const tasks = shownTasks();
  const titles = tasks.map((task) => `${task.title} (${view.mode === "difference" ? task.difference : UNITS[view.mode](task)})`);
  const shown = [...table.querySelectorAll("tr[data-method]")].filter((row) => !row.hidden).map((row) => methodsById.get(row.dataset.method));
  const rows = shown.map((method) => [method.title, ...tasks.map((task) => text(method, task, true))]);
  const bold = shown.map((method) => [false, ...tasks.map((task) => view.mode === "mean" && Boolean(method.cells[task.id]?.best))]);
  return { titles: ["Method", ...titles], rows, bold };
}
const FORMATS = {
  CSV: ({ titles, rows }) => [titles, ...rows].map((row) => row.map((word) => `"${word.replaceAll('"', '""')}"`).join(",")).join("\n"),
  Markdown: ({ titles, rows, bold }) => [titles, titles.map((_, at) => (at ? "--:" : ":--")), ...rows.map((row, at) => row.map((word, column) => (bold[at][column] ? `**${word}**` : word)))]
    .map((row) => `| ${row.join(" | ")} |`).join("\n"),
  LaTeX: ({ titles, rows, bold }) => [
    "% needs \\usepackage{booktabs}",
    `\\begin{tabular}{l${"r".repeat(titles.length - 1)}}`,
    "\\toprule",
    `${titles.map(escapeLatex).join(" & ")} \\\\`,
    "\\midrule",
    ...rows.map((row, at) => `${row.map((word, column) => (bold[at][column] ? `\\textbf{${escapeLatex(word)}}` : escapeLatex(word))).join(" & ")} \\\\`),
    "\\bottomrule",
    "\\end{tabular}",
  ].join("\n"),
};
for (const button of controls.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => copyText(FORMATS[button.dataset.format](rowsToCopy()), button));
}

// ---------------------------------------------------------------------------------------- details of a cell

const details = document.getElementById("cell");
const line = (name, value) => (value ? `<div><dt>${name}</dt><dd>${value}</dd></div>` : "");
const escaped = (words) => words.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function showDetails(method, task) {
  const cell = method.cells[task.id];
  const compared = reference && method !== reference && cell.difference ? comparison(method, reference, task) : null;
  const runs = cell.seeds.map(([seed, value, state, name]) => `<tr><td>${seed}</td><td>${value === null ? "–" : asText(value, task.digits)}</td><td>${state}</td><td><code>floral show ${escaped(name)}</code></td></tr>`);
  details.querySelector("h2").textContent = `${method.title} on ${task.label}`;
  details.querySelector(".inside").innerHTML = `<dl class="facts">
    ${line("Task", escaped(task.title))}
    ${line(escaped(task.result), cell.interval && `${cell.interval} (mean and 95 % interval over ${cell.n} seed${cell.n === 1 ? "" : "s"})`)}
    ${line("Runs without a result", cell.note)}
    ${line("Comparison", compared && `<strong>${escaped(compared.verdict)}</strong> ${escaped(compared.numbers)}`)}
    ${line("Rank", cell.rank && `${cell.rank}`)}
    ${line("Bytes in a run", cell.bytes !== undefined && withUnit(cell.bytes, "B"))}
    ${line("Passes in a run", cell.client_passes !== undefined && withUnit(cell.client_passes, ""))}
    ${line("Settings", escaped(cell.settings) || "as in the method's file")}
    </dl><div class="scroll"><table class="plain"><thead><tr><th>Seed</th><th>Result</th><th>State</th><th>Show the run, its curves and its configuration</th></tr></thead><tbody>${runs.join("")}</tbody></table></div>`;
  details.querySelector("#to-curves").onclick = () => { details.close(); followOnly(method.colour); openSection("curves"); };
  details.querySelector("#to-curves").hidden = !document.getElementById("curves");
  details.showModal();
  details.querySelector("h2").focus(); // and not the first button or table, to which a small screen would scroll
  details.scrollTop = 0;
}
table.addEventListener("click", (event) => {
  const cell = event.target.closest("td[data-task] button")?.closest("td");
  if (cell) showDetails(methodsById.get(cell.parentElement.dataset.method), tasksById.get(cell.dataset.task));
});
for (const button of document.querySelectorAll("button.name"))
  button.addEventListener("click", () => showDetails(methodsById.get(button.dataset.method), tasksById.get(button.dataset.task)));
details.addEventListener("click", (event) => { if (event.target === details) details.close(); });

// ------------------------------------------------------------------------------ comparison of two methods

// A number with the decimals of its task, or with three significant digits (errors have `digits` null). With `more`, it has
// more digits. The rules are those of `number` in floral/report/tables.py.
function asText(value, digits, more = 0) {
  const significant = 3 + more;
  const [mantissa, power] = value.toExponential(significant - 1).split("e").map(Number);
  let words = value.toPrecision(significant);
  if (digits !== null) words = value.toFixed(digits + more);
  else if (power < -4 || power >= significant) words = `${mantissa.toFixed(significant - 1)}e${power < 0 ? "" : "+"}${power}`;
  return (Number(words) === 0 ? words.replace("-", "") : words).replaceAll("-", "\u2212");
}

// The mean difference of two methods on a task with its 95 % interval, paired by seed (for errors: the ratio of their geometric
// means), or null if they share no seed. It is the paired t-test of floral/report/paired.py.
function pairedDifference(first, second, task) {
  const [values, others] = [first, second].map((method) => {
    const cell = method.cells[task.id];
    const done = cell?.mean === undefined ? [] : cell.seeds.filter(([, value, state]) => state === "done" && value !== null);
    return new Map(done.map(([seed, value]) => [seed, value]));
  });
  const pairs = [...values.keys()].filter((seed) => others.has(seed)).map((seed) => [values.get(seed), others.get(seed)]);
  const differences = task.log
    ? pairs.filter(([value, other]) => value > 0 && other > 0).map(([value, other]) => Math.log(value / other))
    : pairs.map(([value, other]) => value - other);
  const n = differences.length;
  if (n === 0) return null;
  const middle = mean(differences);
  const deviation = Math.sqrt(differences.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (n - 1));
  const half = n > 1 ? OVERVIEW.quantiles[n] * deviation / Math.sqrt(n) : NaN;
  const [low, high] = n > 1 ? [middle - half, middle + half] : [null, null];
  const inUnit = (end) => (end !== null && task.log ? Math.exp(end) : end);
  return {
    n, mean: inUnit(middle), low: inUnit(low), high: inUnit(high), neutral: task.log ? 1 : 0,
    isEqual: differences.every((value) => value === 0), excludesNeutral: n > 1 && (low > 0 || high < 0),
  };
}

const unbroken = (words) => words.replaceAll(" %", "\u00a0%").replace(/ ([=<]) /g, "\u00a0$1\u00a0").replace(/(\S+) to (\S+) (points|times)/, "$1\u00a0to\u00a0$2\u00a0$3");

// One sentence on which of two methods is better on a task, and one with the numbers: {verdict, numbers}. A difference to the
// reference is decided after Holm's correction. Other pairs have no correction, which the sentence says.
function comparison(first, second, task) {
  if (first === second) return { verdict: "Choose two different methods.", numbers: "" };
  const difference = pairedDifference(first, second, task);
  const names = `${first.title} and ${second.title}`;
  if (difference === null) {
    const why = [first, second].filter((method) => method.cells[task.id]?.mean === undefined)
      .map((method) => `${method.title} has no mean${method.cells[task.id]?.note ? ` (${method.cells[task.id].note})` : ""}`);
    return { verdict: `${names} cannot be compared on ${task.label}.`, numbers: `${why.join("; ") || "They share no seed"}.` };
  }
  const { n, low, high, neutral, excludesNeutral } = difference;
  const withReference = [[first, second], [second, first]].find(([, other]) => other === reference);
  const p = withReference?.[0].cells[task.id].difference?.p;
  const isDecided = excludesNeutral && (withReference ? isSignificant(p) : true);
  const isBetter = (difference.mean > neutral) !== task.log;

  // Enough digits to see whether the interval contains the value of no difference.
  const rounded = (end, more) => Number(asText(end, task.digits, more).replaceAll("\u2212", "-"));
  const looksDecided = (more) => rounded(low, more) > neutral || rounded(high, more) < neutral;
  let more = 0;
  while (n > 1 && more < 4 && looksDecided(more) !== excludesNeutral) more += 1;
  const turned = isDecided && !task.log && difference.mean < 0 ? -1 : 1; // "worse by 3 points", not "by -3 points"
  const written = (value) => asText(turned * value, task.digits, more);
  const unit = task.log ? "times" : "points";
  const means = [first, second].map((method) => method.cells[task.id].text).join(" against ");
  const ends = [low, high].sort((a, b) => turned * (a - b)).map(written).join(" to ");
  const numbers = [
    task.log ? `Errors: ${means}` : `${means} %`,
    n > 1 && `95 % interval: ${ends} ${unit}`,
    n > 1 ? `${n} seeds` : "one seed, so no interval",
    p !== undefined && p !== null && `p ${p < 0.001 ? "< 0.001" : `= ${p.toFixed(3)}`} after Holm's correction`,
  ].filter(Boolean).join("; ");
  const size = task.log ? `its error is ${written(difference.mean)} times as large` : `by ${written(difference.mean)} points`;
  const told = [first, second].filter((method) => method.family === UNRANKED_GROUPS[0]).map((method) => ` ${method.title} is told the true clusters.`);
  const rest = (remark = "") => `${numbers}.${remark}${told.join("")}`;
  if (difference.isEqual) return { verdict: `${names} have equal results on ${task.label}.`, numbers: rest() };
  if (isDecided) {
    const words = `${first.title} is ${isBetter ? "better" : "worse"} than ${second.title} on ${task.label}${task.log ? ": " : ", "}${size}.`;
    if (withReference) return { verdict: words, numbers: rest() };
    return { verdict: `As a single pair: ${words}`, numbers: rest(" Not corrected for several comparisons.") };
  }
  const gap = task.log ? `error ratio ${written(difference.mean)}` : `mean difference ${written(difference.mean)} points`;
  return {
    verdict: `Not decided${excludesNeutral ? " after Holm's correction" : ""} on ${task.label}: ${first.title} or ${second.title} may be better (${gap}).`,
    numbers: rest(),
  };
}

const pair = document.getElementById("compare");
if (pair) {
  const { first, second, task } = pair.elements;
  const others = [...OVERVIEW.tasks[0].near, ...methodsById.keys()].filter((id) => id !== OVERVIEW.reference);
  let chosen = [others[0], OVERVIEW.reference ?? others.find((id) => id !== others[0])];
  const showPair = () => {
    const { verdict, numbers } = comparison(methodsById.get(first.value), methodsById.get(second.value), tasksById.get(task.value));
    const strong = Object.assign(document.createElement("strong"), { textContent: verdict });
    pair.querySelector("[role=status]").replaceChildren(strong, ` ${unbroken(numbers)}`);
  };
  [first.value, second.value] = chosen;
  pair.addEventListener("change", () => {
    if (first.value === second.value) [first.value, second.value] = [chosen[1], chosen[0]]; // they change places
    chosen = [first.value, second.value];
    showPair();
  });
  showPair();
}

// -------------------------------------------------------------------------------- result against costs

const PREFIXES_OF_1000 = ["", "k", "M", "G", "T", "P"];
function withUnit(value, unit) {
  if (value === 0) return unit ? `0\u2009${unit}` : "0";
  const power = Math.max(0, Math.min(PREFIXES_OF_1000.length - 1, Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9)));
  return `${Number((value / 1000 ** power).toPrecision(3))}\u2009${PREFIXES_OF_1000[power]}${unit}`.trim();
}

const plot = document.getElementById("tradeoff");
const drawing = plot.querySelector("svg");
const FEW = 8; // with fewer methods, all of them are inside the axis
const MARGIN = { left: 58, right: 24, top: 30, bottom: 44 };

// Round numbers between two ends: about five on a linear axis, powers of ten on a logarithmic one.
function roundTicks(low, high, log) {
  if (log) {
    const powers = [];
    for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * 1.0001; power += 1) powers.push(10 ** power);
    return powers.length > 1 ? powers : [low, high].map((value) => Number(value.toPrecision(2)));
  }
  const rough = (high - low) / 5;
  const step = [1, 2, 5, 10].map((factor) => factor * 10 ** Math.floor(Math.log10(rough))).find((size) => size >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

// The methods that no other one beats: a better mean with at most the same cost. From cheap to costly.
function frontier(points) {
  return points
    .filter((point) => !points.some((other) => other.cost <= point.cost && other.score > point.score))
    .sort((a, b) => a.cost - b.cost);
}

function drawTradeoff() {
  const task = tasksById.get(plot.querySelector("select").value);
  const cost = plot.querySelector("[name=cost]:checked").value;
  const points = OVERVIEW.methods
    .filter((method) => method.ranked && !Number.isNaN(score(method, task, "mean")) && method.cells[task.id][cost] !== undefined)
    .map((method) => ({ method, cell: method.cells[task.id], cost: method.cells[task.id][cost], score: score(method, task, "mean") }));
  if (points.length === 0) {
    drawing.innerHTML = "";
    plot.querySelector("figcaption").textContent = "No method has a mean on this task.";
    return;
  }
  const width = Math.max(320, Math.min(1000, plot.clientWidth));
  const height = width < 500 ? 330 : 400;
  const best = frontier(points);

  // Vertical axis: methods far below the others are drawn at its lower end, so that they do not squeeze it.
  const scores = points.map((point) => point.score);
  const top = Math.max(...scores);
  const leastDrawn = scores.length < FEW ? -Infinity : top - 1.6 * (top - quantile(scores, 0.5));
  const bottom = Math.max(Math.min(...scores), leastDrawn);
  const room = 0.06 * (top - bottom) || 1;
  const [low, high] = [bottom - room, top + room];
  let ceiling = MARGIN.top;
  const up = (value) => ceiling + (height - ceiling - MARGIN.bottom) * (1 - Math.max(0, value - low) / (high - low));

  // Names stand above and left of their points, where no other point can be; each is above that of the point before.
  function nameHeights() {
    let floor = Infinity;
    return best.map((point) => { floor = Math.min(up(point.score) - 9, floor - 14); return floor; });
  }
  for (let tries = 0; tries < 8 && nameHeights().at(-1) < 12 && ceiling < height / 2; tries += 1) ceiling += 12 - nameHeights().at(-1);

  // Horizontal axis: logarithmic; what costs nothing stands at the left, after a gap.
  const positive = points.map((point) => point.cost).filter((value) => value > 0);
  const [least, most] = positive.length ? [Math.min(...positive), Math.max(...positive)] : [1, 10];
  const gap = positive.length < points.length ? 46 : 0;
  const inner = width - MARGIN.left - MARGIN.right - gap - 20;
  const spread = Math.log(most / least) || 1;
  const across = (value) => MARGIN.left + (value > 0 ? gap + 10 + inner * (Math.log(value / least) / spread) : 14);

  const [start, stop] = [low, high].map((value) => (task.log ? Math.exp(-value) : value)).sort((a, b) => a - b);
  const asScore = (value) => (task.log ? -Math.log(value) : value);
  const unit = cost === "bytes" ? "B" : "";
  const parts = [];
  for (const tick of roundTicks(start, stop, task.log)) {
    parts.push(`<line class="rule" x1="${MARGIN.left}" x2="${width - MARGIN.right}" y1="${up(asScore(tick))}" y2="${up(asScore(tick))}"/>`);
    parts.push(`<text class="tick" x="${MARGIN.left - 8}" y="${up(asScore(tick)) + 4}" text-anchor="end">${task.log ? tick.toPrecision(1) : tick}</text>`);
  }
  const foot = height - MARGIN.bottom;
  for (const tick of roundTicks(least, most, true)) {
    parts.push(`<line class="rule" x1="${across(tick)}" x2="${across(tick)}" y1="${ceiling}" y2="${foot}"/>`);
    parts.push(`<text class="tick" x="${across(tick)}" y="${foot + 17}" text-anchor="middle">${withUnit(tick, unit)}</text>`);
  }
  if (gap) parts.push(`<text class="tick" x="${across(0)}" y="${foot + 17}" text-anchor="middle">0</text>`);
  parts.push(`<text class="tick" x="0" y="12">${escaped(task.result)}</text>`);
  parts.push(`<text class="tick" x="${width - MARGIN.right}" y="${height - 6}" text-anchor="end">${COSTS[cost]}</text>`);
  const steps = best.map((point, at) => `${at ? `H${across(point.cost)}V` : `M${across(point.cost)},`}${up(point.score)}`).join("");
  parts.push(`<path class="frontier" d="${steps}"/>`);
  points.forEach((point, at) => {
    const outside = point.score < low;
    const [x, y] = [across(point.cost), up(point.score)];
    const shape = outside ? `<path d="M${x - 5},${y - 9}h10l-5,8z"` : `<circle cx="${x}" cy="${y}" r="${best.includes(point) ? 6 : 4.5}"`;
    parts.push(`${shape} class="dot${best.includes(point) ? " leader" : ""}" style="--c:${point.method.colour}" data-point="${at}"/>`);
  });
  const narrow = width < 600; // too narrow for names: numbers, which the caption explains
  nameHeights().forEach((y, at) => {
    const [x, point] = [across(best[at].cost), best[at]];
    const name = narrow ? String(at + 1) : point.method.short;
    const left = x - 7.2 * name.length > MARGIN.left;
    if (up(point.score) - y > 16) parts.push(`<line class="rule" x1="${x}" x2="${x}" y1="${up(point.score) - 7}" y2="${y + 3}"/>`);
    parts.push(`<text class="name" x="${x + (left ? -3 : 2)}" y="${y}" text-anchor="${left ? "end" : "start"}">${escaped(name)}</text>`);
  });
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("aria-label", `${task.result} against ${COSTS[cost].toLowerCase()}, ${task.title}. No other method is better at the same cost than: ${best.map((point) => `${point.method.title} ${point.cell.text} with ${withUnit(point.cost, unit)}`).join("; ")}.`);
  drawing.innerHTML = parts.join("");
  for (const label of drawing.querySelectorAll(".tick")) { // those at an end of an axis move inside the figure
    const { x, width: length } = label.getBBox();
    const inside = Math.max(0, Math.min(x, width - length));
    if (inside !== x) label.setAttribute("x", Number(label.getAttribute("x")) + inside - x);
  }
  for (const mark of drawing.querySelectorAll("[data-point]")) {
    const { method, cell, cost: spent } = points[Number(mark.dataset.point)];
    const words = `${method.title}: ${cell.interval} with ${withUnit(spent, unit)}`;
    mark.addEventListener("pointerenter", () => showTipAt(mark.getBoundingClientRect(), words));
    mark.addEventListener("pointerleave", hideTip);
    mark.addEventListener("click", () => showDetails(method, task));
  }
  const below = points.filter((point) => point.score < low).length;
  plot.querySelector("figcaption").textContent = `No other method has a better mean at the same cost or less than ${best.map((point, at) => `${narrow ? `${at + 1} ` : ""}${point.method.short}`).join(", ")} (line).`
    + ` ${matchMedia("(hover: none)").matches ? "Select a mark for its name and its runs." : "Point at a mark for its name, and select it for its runs."}${below ? ` ▾ ${below} method${below > 1 ? "s are" : " is"} below the axis.` : ""}`;
}
function plotTask(id) {
  plot.querySelector("select").value = id;
  drawTradeoff();
}
plot.addEventListener("change", drawTradeoff);
let drawnWidth = 0;
new ResizeObserver(() => {
  if (plot.clientWidth !== drawnWidth) { drawnWidth = plot.clientWidth; drawTradeoff(); }
}).observe(plot);

showControls();
observeFit(table);
