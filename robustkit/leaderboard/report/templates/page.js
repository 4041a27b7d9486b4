"use strict";
// The page is whole without this: here it is folded into tabs, and links find what they name.
const all = (where, what) => [...where.querySelectorAll(what)];
const panels = all(document, ".panel");

async function unpack(id) {
  const packed = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function once(make) {
  let made;
  return () => (made ??= make());
}

// Where the evaluations are many, all but the tables is packed: it is unpacked when it is needed.
const packed = once(async () => JSON.parse(await unpack("data-more")));
const unpacked = new Set();
async function unfold(panel) {
  const box = panel.querySelector(".more");
  if (!box || unpacked.has(panel)) return;
  unpacked.add(panel);
  box.innerHTML = (await packed())[box.dataset.more];
  collect(box);
  narrow();
}

const tabs = all(document, ".tabs a");
function choose(panel, focus) {
  for (const other of panels) other.hidden = tabs.length > 0 && other !== panel;
  for (const tab of tabs) {
    const chosen = tab.hash === `#${panel.id}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) tab.focus();
  }
  tell();
}

function startTabs() {
  document.querySelector(".tabs")?.setAttribute("role", "tablist");
  tabs.forEach((tab, at) => {
    tab.parentElement.setAttribute("role", "presentation");
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[at].id);
    panels[at].setAttribute("role", "tabpanel");
    tab.addEventListener("click", (event) => {
      event.preventDefault();
      event.stopPropagation();
      choose(panels[at]);
      history.replaceState(null, "", tab.hash);
    });
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      choose(panels[step % tabs.length], true);
    });
  });
}

// Shows what a link names, wherever it is: in another tab, folded, filtered out, not unpacked yet.
async function reveal(hash) {
  if (hash.length < 2) return;
  const id = decodeURIComponent(hash.slice(1));
  if (!document.getElementById(id)) for (const panel of panels) await unfold(panel);
  const aim = document.getElementById(id);
  if (!aim) return;
  const panel = aim.closest(".panel");
  if (panel) choose(panel);
  for (let at = aim; at; at = at.parentElement) {
    if (at instanceof HTMLDetailsElement) at.open = true;
    if (!at.classList.contains("panel")) at.hidden = false;
    at.classList.remove("beyond");
  }
  aim.scrollIntoView();
  (aim.querySelector(":scope > summary") ?? aim).focus({ preventScroll: true });
}

function startLinks() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (link && !link.classList.contains("skip")) reveal(link.hash);
    const dot = event.target.closest?.("svg g[data-m]");
    const row = dot && rows.get(dot.dataset.m.split(" ")[0]);
    if (row) reveal(row.body.querySelector("a").hash);
  });
  addEventListener("hashchange", () => reveal(location.hash));
}

// The popover shows on click, tap, Enter and Escape by itself; here for the mouse and Tab.
function startTips() {
  const balloon = (event) => {
    const tip = event.target.closest?.(".tip");
    return tip && document.getElementById(tip.getAttribute("popovertarget"));
  };
  document.addEventListener("toggle", (event) => {
    if (event.newState !== "open" || !event.target.classList.contains("balloon")) return;
    const at = event.target.previousElementSibling.getBoundingClientRect();
    const size = event.target.getBoundingClientRect();
    const below = at.bottom + size.height + 8 < innerHeight;
    event.target.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    event.target.style.top = `${Math.max(8, below ? at.bottom + 4 : at.top - size.height - 4)}px`;
  }, true);
  document.addEventListener("pointerover", (event) => event.pointerType === "mouse" && balloon(event)?.showPopover());
  document.addEventListener("pointerout", (event) => event.pointerType === "mouse" && balloon(event)?.hidePopover());
  document.addEventListener("focusin", (event) => event.target.matches(".tip:focus-visible") && balloon(event).showPopover());
  document.addEventListener("focusout", (event) => balloon(event)?.hidePopover());
}

async function startDownloads() {
  for (const link of all(document, "a[data-packed]")) {
    link.href = URL.createObjectURL(new Blob([await unpack(link.dataset.packed)], { type: link.type }));
  }
}
