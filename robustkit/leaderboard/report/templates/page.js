"use strict";
// Draws what is in the page: the table is the one in the HTML, the plots are those of #data-plots.
const night = matchMedia("(prefers-color-scheme: dark)");
const part = (id) => document.getElementById(id).textContent;

async function unpack(id) {
  const bytes = Uint8Array.from(atob(part(id)), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function address(id) {
  return URL.createObjectURL(new Blob([await unpack(id)], { type: "text/javascript" }));
}

// Where the evaluations are many, their details and the downloads come packed.
async function unfold() {
  if (document.getElementById("data-details")) {
    document.getElementById("details").innerHTML = await unpack("data-details");
  }
  for (const link of document.querySelectorAll("a[data-packed]")) {
    link.href = URL.createObjectURL(new Blob([await unpack(link.dataset.packed)], { type: link.type }));
  }
}

// Balloons: the popover shows on click, tap, Enter and Escape by itself; here for the mouse and Tab.
function balloons() {
  for (const button of document.querySelectorAll(".tip")) {
    const balloon = document.getElementById(button.getAttribute("popovertarget"));
    balloon.addEventListener("toggle", (event) => {
      if (event.newState !== "open") return;
      const at = button.getBoundingClientRect(), size = balloon.getBoundingClientRect();
      const below = at.bottom + size.height + 8 < innerHeight;
      balloon.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
      balloon.style.top = `${Math.max(8, below ? at.bottom + 4 : at.top - size.height - 4)}px`;
    });
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") balloon.showPopover();
    });
    button.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") balloon.hidePopover();
    });
    button.addEventListener("focus", () => {
      if (button.matches(":focus-visible")) balloon.showPopover();
    });
    button.addEventListener("blur", () => balloon.hidePopover());
  }
}

async function leaderboard() {
  const style = document.createElement("style");
  style.textContent = await unpack("data-table-style");
  document.head.prepend(style);
  const { default: DataTable } = await import(await address("data-table"));
  const filters = { text: [["search"]], number: [["search"]], pick: [["searchList"]], drawn: [] };
  const types = { number: "num", pick: "string" };
  const heads = [...document.querySelectorAll("#leaderboard thead th")];
  new DataTable("#leaderboard", {
    autoWidth: false,
    order: [],
    pageLength: 50,
    paging: document.querySelectorAll("#leaderboard tbody tr").length > 50,
    layout: { topStart: "search", topEnd: null, bottomStart: "info", bottomEnd: "paging" },
    language: { search: "Filter all columns:", info: "Rows _START_ to _END_ of _TOTAL_", infoFiltered: "(of _MAX_)", infoEmpty: "No row" },
    initComplete: () => heads.forEach((head) => {
      const name = head.querySelector(".dt-column-title").textContent.trim();
      head.querySelector(".dtcc-button")?.setAttribute("aria-label", `Filter by ${name}`);
    }),
    columnDefs: heads.map((head, i) => ({
      targets: i,
      ...(types[head.dataset.kind] ? { type: types[head.dataset.kind] } : {}),
      columnControl: filters[head.dataset.kind],
    })),
  });
}

function theme(plot) {
  const css = getComputedStyle(document.documentElement), value = (name) => css.getPropertyValue(name);
  const axis = { gridcolor: value("--rule"), linecolor: value("--faint"), tickcolor: value("--faint") };
  const { layout } = plot;
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: value("--ink") },
    hoverlabel: { align: "left", bgcolor: value("--panel"), font: { color: value("--ink") } },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

async function plots() {
  const found = JSON.parse(await unpack("data-plots"));
  const script = document.createElement("script");
  script.src = await address("data-plotly");
  await new Promise((done, failed) => {
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
  const draw = (box) => {
    const plot = found[box.dataset.plot];
    return Plotly.react(box, plot.data, theme(plot), { displayModeBar: false, responsive: true });
  };
  const drawn = new Set();
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting || drawn.has(target)) continue;
      drawn.add(target);
      draw(target);
    }
  }, { rootMargin: "400px" });
  document.querySelectorAll(".plot").forEach((box) => seen.observe(box));
  night.addEventListener("change", () => drawn.forEach(draw));
}

// A link to an evaluation opens it.
function reveal() {
  const aim = location.hash && document.getElementById(location.hash.slice(1));
  if (aim instanceof HTMLDetailsElement) {
    aim.open = true;
    aim.scrollIntoView();
  }
}

const shade = () => document.documentElement.classList.toggle("dark", night.matches);
shade();
night.addEventListener("change", shade);
addEventListener("hashchange", reveal);
balloons();
const details = unfold().then(reveal);
const jobs = await Promise.allSettled([details, leaderboard(), details.finally(plots)]);
for (const { reason } of jobs.filter((job) => job.status === "rejected")) {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `This browser cannot run a part of the page (${reason}); every number is in a table.`;
  trouble.hidden = false;
}
document.documentElement.dataset.ready = "yes";
