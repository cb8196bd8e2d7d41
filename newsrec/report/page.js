"use strict";
// Sorts and filters tables, shows the numbers of pictures under the pointer. The page says the same without it.

const none = (value) => value !== value;  // of text that has no number
const number = (text) => parseFloat(text.replaceAll(",", "").replace("−", "-"));

for (const table of document.querySelectorAll("table.sort")) {
  const rows = [...table.querySelectorAll("tbody > tr:not(.head)")];
  const homes = rows.map((row) => row.parentNode);
  const cell = (row, column) => row.cells[column]?.textContent.trim() ?? "";
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (heading.classList.contains("chart") || !heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      const next = { ascending: "descending", descending: null }[now] ?? (now ? null : "ascending");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      table.classList.toggle("sorted", next !== null);
      if (next === null) return rows.forEach((row, place) => homes[place].append(row));
      heading.setAttribute("aria-sort", next);
      const words = rows.every((row) => none(number(cell(row, column))));
      const sign = next === "ascending" ? 1 : -1;
      const order = (a, b) => {
        const [one, two] = [cell(a, column), cell(b, column)];
        if (words) return sign * one.localeCompare(two);
        const [x, y] = [number(one), number(two)];
        return none(x) - none(y) || sign * (x - y);  // rows without a number come last
      };
      table.tBodies[0].append(...[...rows].sort(order));
    });
  });
}

for (const table of document.querySelectorAll("table.sift")) {
  const rows = [...table.querySelectorAll("tbody > tr:not(.head)")];
  const heads = [...table.querySelectorAll("tr.head")].map((head) => [head, [...head.parentNode.rows].slice(1)]);
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "filter rows";
  box.setAttribute("aria-label", "filter rows");
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  const line = document.createElement("div");
  line.className = "filter";
  line.append(box, said);
  table.closest(".scroll").before(line);
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    for (const [head, own] of heads) head.hidden = own.every((row) => row.hidden);
    const shown = rows.filter((row) => !row.hidden).length;
    said.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
function show(text, x, y) {
  tip.textContent = text;
  tip.hidden = !text;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
  tip.style.top = `${y - height - 12 < 4 ? y + 18 : y - height - 12}px`;
}
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();  // the browser would show it a second time
}
document.addEventListener("pointermove", (event) => {
  const picture = event.target.closest?.("svg.lines[data-table]");
  if (picture) return follow(picture, event);
  show(event.target.closest?.("[data-tip]")?.dataset.tip ?? "", event.clientX, event.clientY);
});
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

for (const figure of document.querySelectorAll(".curves")) {
  figure.querySelector("svg").dataset.table = "";
}
function follow(picture, event) {
  const table = picture.closest(".curves").querySelector("table");
  const box = picture.getBoundingClientRect();
  const at = ((event.clientX - box.left) / box.width) * picture.viewBox.baseVal.width;
  const points = [...picture.querySelector("polyline").points];
  const near = points.reduce((best, point, place) =>
    Math.abs(point.x - at) < Math.abs(points[best].x - at) ? place : best, 0);
  let cross = picture.querySelector(".cross");
  if (!cross) {
    cross = picture.querySelector("line").cloneNode();
    cross.setAttribute("class", "cross");
    cross.setAttribute("y1", "8");
    cross.setAttribute("y2", "150");
    picture.append(cross);
  }
  cross.setAttribute("x1", points[near].x);
  cross.setAttribute("x2", points[near].x);
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const values = [...table.tBodies[0].rows[near].cells].map((cell) => cell.textContent);
  show(names.map((name, column) => `${name} ${values[column]}`).join("\n"), event.clientX, event.clientY);
}
for (const picture of document.querySelectorAll(".curves svg")) {
  picture.addEventListener("pointerleave", () => { picture.querySelector(".cross")?.remove(); tip.hidden = true; });
}

for (const group of document.querySelectorAll(".examples")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "all";
  const all = [...group.querySelectorAll("details")];
  const name = () => { button.textContent = all.every((one) => one.open) ? "close all" : "open all"; };
  button.addEventListener("click", () => {
    const open = !all.every((one) => one.open);
    for (const one of all) one.open = open;
    name();
  });
  name();
  group.prepend(button);
}

const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed.splice(0)) one.open = false; });
