try {
  startTabs();
  startTables();
  startColumns();
  collect(document);
  startLinks();
  startTips();
  startCompare();
  choose(panels[0]);
  for (const panel of panels) new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting)) unfold(panel);
  }, { rootMargin: "600px" }).observe(panel.querySelector(".more") ?? panel);
  addEventListener("beforeprint", () => panels.forEach((panel) => limit(panel, Infinity)));
  await reveal(location.hash);
} catch (reason) {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `This browser cannot run a part of the page (${reason}); every number is in a table.`;
  trouble.hidden = false;
}
document.documentElement.dataset.ready = "yes";
startDownloads();
