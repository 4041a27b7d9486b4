// Sorting, filtering and choosing columns. A row is a tbody: a model with its runs beneath it.
const rows = new Map();  // by the id of the model; published rows have none
const every = [];
const shown = new Map();  // the id of a model: its dots, bars, evaluations, curves
const missing = (value) => value === "" || Number.isNaN(value);

function collect(where) {
  for (const element of all(where, "[data-m]:not(tbody)")) {
    for (const id of element.dataset.m.split(" ")) {
      if (!shown.has(id)) shown.set(id, []);
      shown.get(id).push(element);
    }
  }
}

const words = (head) => /c-(model|source|verdict|flags|suite|strongest)/.test(head.className);
function value(row, column, text) {
  row.values ??= [];
  return (row.values[column] ??= text
    ? row.body.rows[0].cells[column].textContent.trim()
    : parseFloat(row.body.rows[0].cells[column].textContent.replaceAll(",", "")));
}

// Of many rows the first hundred are laid out: a table of a thousand takes a second.
const page = 100;
function limit(panel, most = panel.whole ? Infinity : page) {
  const found = panel.rows.filter((row) => !row.body.hidden);
  for (const row of panel.rows) row.body.classList.remove("beyond");
  found.slice(most).forEach((row) => row.body.classList.add("beyond"));
  if (panel.sorted) panel.querySelector(".board thead").after(...found.slice(0, most).map((row) => row.body));
  const bars = all(panel, ".bars li:not([hidden])");
  bars.forEach((bar, at) => bar.classList.toggle("beyond", at >= most));
  const more = panel.querySelector(".rest");
  more.hidden = found.length <= most;
  more.textContent = `Show all ${found.length.toLocaleString("en")} rows`;
}

const collator = new Intl.Collator(undefined, { numeric: true });
function sort(head) {
  const table = head.closest("table"), panel = head.closest(".panel"), column = head.cellIndex;
  const text = words(head), before = head.getAttribute("aria-sort");
  const rising = before ? before !== "ascending" : text || head.classList.contains("c-rank");
  for (const other of all(table, "thead th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const way = rising ? 1 : -1;
  panel.rows.sort((one, other) => {
    const a = value(one, column, text), b = value(other, column, text);
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return way * (text ? collator.compare(a, b) : a - b);
  });
  panel.sorted = true;
  limit(panel);
}

// "trades", "black_box", "robust>0.5 certified>=0.1": words that a row has, and bounds on columns.
function query(text) {
  const bounds = [], words = [];
  for (const word of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    const found = /^(\w+)(>=|<=|>|<|=)(-?[\d.]+)$/.exec(word);
    if (found) bounds.push([found[1], found[2], parseFloat(found[3])]);
    else words.push(word);
  }
  return { bounds, words };
}

const tests = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "=": (a, b) => a === b };
function fits(row, { bounds, words }) {
  row.text ??= `${row.body.textContent} ${row.body.querySelector("[title]")?.title}`.toLowerCase();
  return words.every((word) => row.text.includes(word)) && bounds.every(([name, sign, bound]) => {
    const cell = row.body.rows[0].querySelector(`.c-${CSS.escape(name)}`);
    return cell && tests[sign](value(row, cell.cellIndex, false), bound);
  });
}

const control = (id) => document.getElementById(id);
const choices = ["verdict", "suite", "source"];
function narrow() {
  const asked = query(control("search").value);
  const chosen = choices.map((name) => [name, control(name).value]).filter(([, wanted]) => wanted);
  const alive = new Map();
  for (const row of every) {
    const fit = chosen.every(([name, wanted]) => (row.body.dataset[name] ?? "").split(", ").includes(wanted)) && fits(row, asked);
    row.body.hidden = !fit;
    if (row.id) alive.set(row.id, fit);
  }
  for (const elements of shown.values()) {
    for (const element of elements) {
      element.toggleAttribute("hidden", !element.dataset.m.split(" ").some((id) => alive.get(id)));
    }
  }
  const own = !control("source").value || control("source").value === "published";
  for (const mark of all(document, "[data-published]")) mark.toggleAttribute("hidden", !own);
  for (const panel of panels) {
    limit(panel);
    front(panel);
  }
  tell();
}

// The Pareto front of the dots that are left; Python draws the same of all (plots.tradeoff).
function front(panel) {
  const line = panel.querySelector("path.front");
  if (!line) return;
  line.dataset.whole ??= line.getAttribute("d");
  const dots = all(panel, ".tradeoff g[data-m]:not([hidden]) .dot").map((dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value]);
  dots.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  const best = dots.filter(([, y], at) => dots.slice(0, at).every((other) => y < other[1])).reverse();
  const ends = /^M([\d.]+),.*,([\d.]+)$/.exec(line.dataset.whole);
  let path = best.length ? `M${ends[1]},${best[0][1]}` : "M0,0";
  best.forEach(([x, y]) => { path += `V${y}H${x}`; });
  line.setAttribute("d", best.length ? `${path}V${ends[2]}` : path);
}

function tell() {
  const panel = panels.find((one) => !one.hidden);
  const found = every.filter((row) => row.panel === panel);
  const left = found.filter((row) => !row.body.hidden).length;
  control("count").textContent = `${left.toLocaleString("en")} of ${found.length.toLocaleString("en")} rows`;
}

function startTables() {
  for (const panel of panels) {
    panel.rows = [];
    for (const body of panel.querySelector(".board").tBodies) {
      const row = { body, panel, id: body.dataset.m };
      every.push(row);
      panel.rows.push(row);
      if (!row.id) continue;
      rows.set(row.id, row);
      const pick = document.createElement("input");
      pick.type = "checkbox";
      pick.className = "pick";
      pick.setAttribute("aria-label", `Compare ${body.querySelector("th a").textContent}`);
      body.rows[0].cells[0].append(pick);
    }
    limit(panel);
  }
  for (const name of choices) {
    const told = new Set(every.flatMap(({ body }) => (body.dataset[name] ?? "").split(", ")).filter(Boolean));
    control(name).append(...[...told].sort(collator.compare).map((text) => new Option(text)));
    control(name).parentElement.hidden = told.size < 2;
    control(name).addEventListener("change", narrow);
  }
  control("search").addEventListener("input", narrow);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => {
    const head = event.target.closest?.(".sort")?.parentElement;
    if (head) sort(head);
    if (event.target.closest?.(".rest")) {
      const panel = event.target.closest(".panel");
      panel.whole = true;
      limit(panel);
    }
    const fold = event.target.closest?.(".fold");
    if (fold) fold.setAttribute("aria-expanded", fold.closest("tbody").classList.toggle("open"));
  });
}

function startColumns() {
  const boxes = all(document, "[data-column]");
  const heads = (name) => all(document, `.board thead .c-${name}`);
  const sync = () => boxes.forEach((box) => {
    box.checked = heads(box.dataset.column).some((head) => getComputedStyle(head).display !== "none");
  });
  for (const box of boxes) box.parentElement.hidden = !heads(box.dataset.column).length;
  const chooser = document.querySelector(".chooser");
  // Which columns are shown depends on the width until one is chosen.
  chooser.addEventListener("toggle", () => { if (!document.querySelector(".board[data-off]")) sync(); });
  chooser.addEventListener("change", () => {
    const off = boxes.filter((box) => !box.checked).map((box) => box.dataset.column).join(" ");
    for (const table of all(document, ".board")) table.dataset.off = off;
  });
  chooser.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    chooser.open = false;
    chooser.querySelector("summary").focus();
  });
  document.addEventListener("pointerdown", (event) => { if (!chooser.contains(event.target)) chooser.open = false; });
}
