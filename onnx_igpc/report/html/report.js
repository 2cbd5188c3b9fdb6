"use strict";
document.documentElement.classList.add("scripted");
document.addEventListener("DOMContentLoaded", () => {
  const table = document.getElementById("site-table");
  if (!table) return;
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const status = document.getElementById("status");
  const shown = document.getElementById("shown");
  // Each site has two rows: the one that is always there, and what it opens to.
  const sites = [...body.querySelectorAll("tr.site")].map((row) => ({
    row,
    detail: row.nextElementSibling,
    button: row.querySelector("button.opens"),
    text: row.dataset.text,
  }));
  const letters = new Intl.Collator("en", { numeric: true });

  function open(site, wanted) {
    site.detail.classList.toggle("open", wanted);
    site.button.setAttribute("aria-expanded", String(wanted));
  }

  function key(site, column, kind) {
    const cell = site.row.cells[column];
    if (kind === "text") return cell.querySelector("bdi").textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  }

  function sort(column) {
    const heading = headings[column];
    const kind = heading.dataset.kind;
    // Numbers first go down, since the large ones are asked for; names, and the order of the network, up.
    const first = kind === "text" || column === 0 ? "ascending" : "descending";
    const second = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? second : first;
    for (const each of headings) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = sites.map((site, place) => ({ site, place, value: key(site, column, kind) }));
    keyed.sort((a, b) => {
      if (a.value === null || b.value === null) {
        return (a.value === null) - (b.value === null) || a.place - b.place;
      }
      const order = kind === "text" ? letters.compare(a.value, b.value) : a.value - b.value;
      return sign * order || a.place - b.place;
    });
    body.append(...keyed.flatMap(({ site }) => [site.row, site.detail]));
  }

  function select() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const site of sites) {
      const fits = words.every((word) => site.text.includes(word))
        && (!status.value || site.row.classList.contains(status.value));
      site.row.hidden = !fits;
      site.detail.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${sites.length} sites`;
  }

  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sort(column));
  });
  headings[0].setAttribute("aria-sort", "ascending");
  filter.addEventListener("input", select);
  status.addEventListener("change", select);
  for (const site of sites) {
    site.row.addEventListener("click", (event) => {
      // Marking text to copy it is no click; the button's own clicks arrive here as well.
      if (String(window.getSelection()) && !event.target.closest("button")) return;
      open(site, !site.detail.classList.contains("open"));
    });
  }
  // Where the browser kept what was typed before a reload.
  select();
});
