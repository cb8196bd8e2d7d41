// Small helpers. Every text becomes a text node, so that a title is never read as markup.

export const $ = (id) => document.getElementById(id);

/** Build an element; a name that begins with "on" adds a listener, null is left out, and so is false but in ARIA. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") && typeof value === "boolean") node.setAttribute(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.classList.add("icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(svg.namespaceURI, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Show or hide a node with a text; an empty text hides it. */
export function tell(node, text) {
  node.textContent = text;
  node.hidden = !text;
}

/** Have a screen reader say something. */
export const speak = (text) => ($("spoken").textContent = text);

export const number = (value) => value.toLocaleString("en");
export const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
const sign = (value, plus) => (Math.abs(value) < 0.005 ? "" : value < 0 ? "\u2212" : plus);
export const score = (value) => sign(value, "") + Math.abs(value).toFixed(2);
export const signed = (value) => sign(value, "+") + Math.abs(value).toFixed(2);
export const milliseconds = (value) => value.toFixed(value < 10 ? 1 : 0);
export const short = (text, most = 60) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);

export function duration(hours) {
  if (hours < 1) return `${Math.max(1, Math.round(hours * 60))} min`;
  if (hours < 48) return `${Math.round(hours)} h`;
  return plural(Math.round(hours / 24), "day");
}

const hues = new Map(); // category of a click -> 1 to 8

/** Give the categories of the clicks a colour each, and keep those that have one. */
export function giveHues(categories) {
  for (const category of hues.keys()) if (!categories.includes(category)) hues.delete(category);
  for (const category of categories) {
    const free = [1, 2, 3, 4, 5, 6, 7, 8].find((hue) => ![...hues.values()].includes(hue));
    if (!hues.has(category) && free) hues.set(category, free);
  }
}

/** The class that has a category's colour; grey for one that no click has. */
export const hueOf = (category) => `hue-${hues.get(category) ?? 0}`;

/** A news item's category, subcategory and age. */
export function facts(news, ...more) {
  const parts = [news.category || "no category", news.subcategory];
  const published = news.published && new Date(news.published);
  const hours = news.age_hours ?? (published && (Date.now() - published) / 36e5);
  if (hours > 24 * 60 && published) parts.push(published.toLocaleDateString("en", { dateStyle: "medium" }));
  else if (hours > 0) parts.push(`${duration(hours)} old`);
  return el("span", { class: "facts soft small" }, el("i", { class: `dot ${hueOf(news.category)}` }),
    el("span", { dir: "auto" }, parts.filter(Boolean).join(" · ")), ...more);
}

export const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Change the children of a list and let those that stay slide to their new places. */
export function slide(list, change) {
  const tops = new Map([...list.children].map((row) => [row.dataset.id, row.getBoundingClientRect().top]));
  change();
  if (isStill() || document.hidden || !tops.size) return;
  for (const row of list.children) {
    const before = tops.get(row.dataset.id);
    const moved = before - row.getBoundingClientRect().top;
    const ease = { duration: 380, easing: "cubic-bezier(.2, .7, .2, 1)" };
    if (before === undefined) row.animate({ opacity: [0, 1] }, ease);
    else if (moved) row.animate({ transform: [`translateY(${moved}px)`, "none"] }, ease);
  }
}

/** Call a function once, a moment after the last of many calls. */
export function later(call, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), wait);
  };
}
