"use strict";
(() => {
  const stored = (action) => { try { return action(window.localStorage); } catch { return null; } };
  const root = document.documentElement;
  const theme = stored((s) => s.getItem("fsseg-theme"));
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    stored((s) => s.setItem("fsseg-theme", root.dataset.theme));
  });

  // What a cell is sorted by: data-v, or its first number, or its text. What has none comes last, either way round.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    if (text === "" || text === "\u2014") return null;
    const number = /^[+-]?\d+(\.\d+)?(?=$|[\s%*(])/.exec(text);
    return number ? Number(number[0]) : text;
  };
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === typeof b) return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true}));
    return typeof a === "number" ? -1 : 1;
  };
  const sort = (table, column, sign) => {
    const bodies = [...table.tBodies];
    const together = bodies.every((body) => !body.rows[0] || !body.rows[0].classList.contains("lead")) && bodies.length > 1;
    const ordered = (items, row) => items
      .map((item) => [key(row(item), column), item]).sort((a, b) => compare(a[0], b[0], sign)).map((pair) => pair[1]);
    if (together) table.append(...ordered(bodies, (body) => body.rows[0]));
    else for (const body of bodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("lead"));
      body.append(...ordered(rows, (row) => row));
    }
  };
  for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => {
    const heading = button.closest("th"), table = button.closest("table");
    const rising = heading.getAttribute("aria-sort") === "descending" || heading.getAttribute("aria-sort") === "none"
      && heading.cellIndex === 0 || heading.getAttribute("aria-sort") === "none" && table.classList.contains("words");
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    sort(table, heading.cellIndex, rising ? 1 : -1);
  });

  for (const field of document.querySelectorAll(".filter input")) field.addEventListener("input", () => {
    const listing = field.closest(".listing"), words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...listing.querySelectorAll("tbody tr")];
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const cells = [...row.cells].map((cell) => cell.textContent.toLowerCase());
      row.hidden = !words.every((word) => word.startsWith("=") ? cells.includes(word.slice(1)) : text.includes(word));
      shown += !row.hidden;
    }
    listing.querySelector(".found").textContent = words.length ? `${shown} of ${rows.length}` : "";
  });

  // Paper shows everything.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; });

  // A page that renews itself stays where its reader was.
  if (document.querySelector('meta[http-equiv="refresh"]')) {
    const name = "fsseg-place", session = (action) => { try { return action(window.sessionStorage); } catch { return null; } };
    addEventListener("pagehide", () => session((s) => s.setItem(name, JSON.stringify({
      y: scrollY, open: [...document.querySelectorAll("details")].map((one) => one.open),
      words: [...document.querySelectorAll(".filter input")].map((one) => one.value),
    }))));
    try {
      const place = JSON.parse(session((s) => s.getItem(name)) || "null");
      if (place) {
        const all = [...document.querySelectorAll("details")];
        if (all.length === place.open.length) all.forEach((one, i) => { one.open = place.open[i]; });
        document.querySelectorAll(".filter input").forEach((one, i) => {
          one.value = place.words[i] || "";
          one.dispatchEvent(new Event("input"));
        });
        scrollTo(0, place.y);
      }
    } catch { /* nothing was kept */ }
  }
})();
