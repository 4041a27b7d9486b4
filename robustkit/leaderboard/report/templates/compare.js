// Two to four models of one table, point by point: exact McNemar tests, points that only one loses,
// and the same images side by side.
const points = once(async () => JSON.parse(await unpack("data-points")));
const safe = (letter) => letter === "c" || letter === "r";
const state = { c: "certified", r: "robust", b: "broken", m: "misclassified" };

function make(tag, text, ...inside) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...inside);
  return element;
}

// Two-sided, exact: under equal accuracy the fewer of the two counts is binomial(b + c, 1/2).
function mcnemar(b, c) {
  const n = b + c;
  let term = -n * Math.LN2, sum = 0;
  for (let k = 0; k <= Math.min(b, c); k++) {
    sum += Math.exp(term);
    term += Math.log((n - k) / (k + 1));
  }
  return n ? Math.min(1, 2 * sum) : 1;
}

// Holm's step-down: all p-values together err as often as one of them says.
function holm(values) {
  const order = values.map((_, at) => at).sort((a, b) => values[a] - values[b]);
  const adjusted = [];
  let most = 0;
  order.forEach((at, step) => { adjusted[at] = most = Math.min(1, Math.max(most, (values.length - step) * values[at])); });
  return adjusted;
}

function grid(caption, heads, lines) {
  const table = make("table", "", make("caption", caption));
  table.className = "attacks";
  const cells = (texts, tag) => texts.map((text, at) => {
    const cell = text instanceof Node ? make("td", "", text) : make(at === 0 || tag === "th" ? "th" : "td", String(text));
    if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
    return cell;
  });
  table.append(make("thead", "", make("tr", "", ...cells(heads, "th"))));
  table.append(make("tbody", "", ...lines.map((line) => make("tr", "", ...cells(line, "td")))));
  const box = make("div", "", table);
  box.className = "scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", caption);
  return box;
}

function pairs(models) {
  const found = [];
  models.forEach((a, at) => models.slice(at + 1).forEach((b) => {
    if (a.set !== b.set) return;
    let onlyA = 0, onlyB = 0;
    for (let i = 0; i < a.letters.length; i++) {
      onlyA += safe(a.letters[i]) && !safe(b.letters[i]);
      onlyB += safe(b.letters[i]) && !safe(a.letters[i]);
    }
    found.push({ a, b, onlyA, onlyB, p: mcnemar(onlyA, onlyB) });
  }));
  const adjusted = holm(found.map((pair) => pair.p));
  return found.map((pair, at) => [
    `${pair.a.label} – ${pair.b.label}`,
    ((pair.onlyA - pair.onlyB) / pair.a.letters.length).toFixed(3),
    pair.onlyA, pair.onlyB, adjusted[at] < 1e-4 ? "< 0.0001" : adjusted[at].toFixed(4),
  ]);
}

// Points that one model alone loses; of more than 40 the first 40 are named.
function alone(models, set) {
  return models.map((model) => {
    const lost = [];
    for (let i = 0; i < model.letters.length; i++) {
      if (!safe(model.letters[i]) && models.every((other) => other === model || safe(other.letters[i]))) lost.push(i);
    }
    const named = lost.slice(0, 40).map((i) => `${set.index[i]} (${set.names[set.label[i]]})`).join(", ");
    return [model.label, lost.length, named + (lost.length > 40 ? ", …" : "") || "–"];
  });
}

function pictures(models, set) {
  const places = new Map();
  models.forEach((model, at) => {
    for (const element of shown.get(model.id) ?? []) {
      for (const figure of all(element, "figure[data-point]")) {
        const point = Number(figure.dataset.point);
        if (!set.index.includes(point)) continue;  // of a run on other points
        if (!places.has(point)) places.set(point, []);
        places.get(point)[at] ??= figure;
      }
    }
  });
  const copy = (figure, at) => {
    const image = all(figure, "img")[at], box = make("div", "", image.cloneNode());
    box.append(make("span", all(figure, ".triple span")[at].textContent));
    return box;
  };
  return [...places].sort((a, b) => a[0] - b[0]).map(([point, figures]) => {
    const at = set.index.indexOf(point);
    const cells = models.map((model, i) => (figures[i] ? copy(figures[i], 1) : make("span", state[model.letters[at]])));
    return [`point ${point}`, copy(figures.find(Boolean), 0), ...cells];
  });
}

async function compare(panel) {
  const box = panel.querySelector(".compare"), out = box.querySelector(".pairs");
  const ids = all(panel, ".pick:checked").map((pick) => pick.closest("tbody").dataset.m);
  box.hidden = ids.length < 2;
  if (box.hidden) return;
  await unfold(panel);
  const told = await points();
  const models = ids.map((id) => ({ id, set: told.models[id][0], letters: told.models[id][1], label: told.models[id][2] }));
  const set = told.sets[models[0].set];
  const same = models.every((model) => model.set === models[0].set);
  const lines = pairs(models);
  const parts = [];
  if (lines.length) {
    parts.push(grid("Paired, on the same points: exact McNemar tests, with Holm's correction over these pairs",
      ["models", "difference of robust accuracy", "robust: only the first", "only the second", "p"], lines));
  }
  if (same) {
    parts.push(grid("Points that one model alone loses, misclassified or broken", ["model", "points", "which (class)"], alone(models, set)));
    const images = pictures(models, set);
    if (images.length) parts.push(grid("The same images, as each model's attack left them", ["point", "clean", ...models.map((model) => model.label)], images));
  } else {
    parts.push(make("p", "Not all of these models were evaluated on the same points: those that were not cannot be paired."));
  }
  out.replaceChildren(...parts);
}

function startCompare() {
  document.addEventListener("change", (event) => {
    if (!event.target.matches(".pick")) return;
    const panel = event.target.closest(".panel");
    if (all(panel, ".pick:checked").length > 4) {
      event.target.checked = false;
      control("count").textContent = "At most four models can be compared.";
      return;
    }
    compare(panel);
  });
}
