"use strict";
// Tables sort by a click on a header and are saved as CSV, pictures are saved as they are. Nothing leaves the page.

function save(name, href) {
  const link = document.createElement("a");
  link.download = name;
  link.href = href;
  link.click();
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// A cell as it is stored: a rounded figure has its whole value beside it.
function whole(cell) {
  const data = cell.querySelector("data");
  return data ? data.value : cell.textContent;
}

function isNumber(text) {
  return /^[-+\u2212]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text);
}

function field(text) {
  const safe = !isNumber(text) && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;  // a spreadsheet would run it
  return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function csv(head, rows) {
  const lines = [head.map((cell) => field(cell.textContent)), ...rows.map((r) => [...r.cells].map((c) => field(whole(c))))];
  return "\ufeff" + lines.map((line) => line.join(",") + "\r\n").join("");
}

function key(cell) {
  const text = whole(cell).replace("\u2212", "-").trim();
  const first = text.split(" ")[0];  // before an interval or a name
  return isNumber(first) ? parseFloat(first) : text;
}

function compare(a, b) {
  const numbers = [a, b].filter((x) => typeof x === "number").length;
  if (numbers === 2) return a - b;
  if (numbers === 1) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, "en", { numeric: true });
}

function sortable(table, head, rows) {
  const last = rows.filter((row) => /^(chance|pool)$/.test(row.cells[0].textContent));  // what others are held against
  const others = rows.filter((row) => !last.includes(row));
  head.forEach((cell, column) => {
    const sort = button("", "sort by " + cell.textContent, () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[cell.getAttribute("aria-sort")];
      for (const other of head) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", next);
      const order = [...others];
      if (next !== "none") order.sort((a, b) => compare(key(a.cells[column]), key(b.cells[column])));
      if (next === "descending") order.reverse();
      table.tBodies[0].append(...order, ...last);
    });
    sort.append(...cell.childNodes);
    cell.setAttribute("aria-sort", "none");
    cell.append(sort);
  });
}

document.querySelectorAll("table").forEach((table, n) => {
  const box = table.parentElement, title = box.getAttribute("aria-label");
  const head = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60) + "-" + (n + 1) + ".csv";
  const bar = document.createElement("p");
  bar.className = "get";
  bar.append(button("CSV", "save as CSV: " + title, () => {
    const href = URL.createObjectURL(new Blob([csv(head, rows)], { type: "text/csv" }));
    save(name, href);
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  }));
  box.before(bar);
  if (rows.length > 1) sortable(table, head, rows);
});

for (const image of document.querySelectorAll("figure img")) {
  const bar = image.closest("figure").querySelector(".get"), name = image.dataset.name;
  bar.prepend(button("PNG", "save as PNG: " + image.alt, () => save(name + ".png", image.src)));
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
