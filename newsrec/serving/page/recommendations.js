// The list of recommendations: places, scores and why.
import { $, el, facts, hueOf, icon, plural, score, short, signed, slide } from "./dom.js";

const MOST_PARTS = 6; // clicks that the table of a news item names
const METHODS = { exact: "exact", shapley: "Shapley values" };
const opened = new Set(); // ids of news whose table is open
let shown = { rows: [], kind: null };
let lit = null; // position of the click whose parts are lit

/**
 * Show rows `{news, place, isHit, isHeadline}` for a history of news items, oldest first.
 * `onPick` gets the news item that the user clicked. Places are compared with those before if the
 * kind of list is the same.
 */
export function showRecommendations(rows, history, kind, onPick) {
  const list = $("recommended");
  const places = new Map(kind === shown.kind ? shown.rows.map((row) => [row.news.news_id, row.place]) : []);
  const focus = document.activeElement;
  const place = list.contains(focus) ? [...list.children].indexOf(focus.closest("li")) : -1;
  const kept = { id: focus?.closest("li")?.dataset.id, part: focus?.dataset.part };
  shown = { rows, kind };
  const scale = scaleOf(rows);
  slide(list, () => list.replaceChildren(...rows.map((row) => item(row, history, scale, places, onPick))));
  if (place >= 0) {
    const row = [...list.children].find((one) => one.dataset.id === kept.id) ?? list.children[Math.min(place, rows.length - 1)];
    row?.querySelector(`[data-part=${kept.part}]`)?.focus();
  }
  showLegend(rows, history);
  lightClick(lit);
}

function item(row, history, scale, places, onPick) {
  const { news, place, isHit, isHeadline } = row;
  const why = news.explanation;
  const number = el("span", { class: "place" }, el("span", { class: "unseen" }, "Place "), String(place));
  const before = places.get(news.news_id);
  if (places.size && before !== place && !isHeadline) {
    const up = before - place;
    number.append(el("span", { class: "moved small" }, before === undefined ? "new" : (up > 0 ? "▲" : "▼") + Math.abs(up)));
  }
  const title = isHeadline
    ? el("span", { class: "title", dir: "auto" }, news.title)
    : el("button", {
      class: "title", type: "button", dir: "auto", "data-part": "title", title: "Click it as the user would",
      onclick: () => onPick(news),
    }, news.title || news.news_id);
  const mark = isHit ? el("b", { class: "mark" }, isHit) : isHeadline ? el("b", { class: "mark" }, "your headline") : null;
  const value = el("span", { class: "score" }, el("span", { class: "unseen" }, "Score "), score(news.score), el("span", { class: "brought small" }));
  const node = el("li", { "data-id": news.news_id, class: [isHit && "hit", isHeadline && "ghost", !why && "plain"].filter(Boolean).join(" ") },
    number, el("div", { class: "what" }, title, facts(news, mark)));
  if (why) node.append(bars(why, history, scale));
  node.append(value);
  if (why) {
    const id = `why-${news.news_id}`;
    const parts = el("div", { class: "parts", id, hidden: true });
    const toggle = (open) => {
      opened[open ? "add" : "delete"](news.news_id);
      more.setAttribute("aria-expanded", open);
      parts.hidden = !open;
      if (open && !parts.childElementCount) parts.append(table(news, history));
    };
    const more = el("button", {
      class: "more quiet square", type: "button", "data-part": "more", "aria-controls": id,
      "aria-label": `Why ${short(news.title)}`, title: "Why", onclick: () => toggle(!opened.has(news.news_id)),
    }, icon("more"));
    toggle(opened.has(news.news_id));
    node.append(more, parts);
  }
  return node;
}

/** Lowest and highest end of all bars: negative parts go left of zero, positive ones right. */
function scaleOf(rows) {
  let low = 0, high = 0;
  for (const { news } of rows) {
    const values = partsOf(news.explanation).map((part) => part.value);
    const sum = (sign) => values.reduce((total, value) => total + Math.max(0, sign * value), 0);
    [low, high] = [Math.min(low, -sum(-1), news.score), Math.max(high, sum(1), news.score)];
  }
  return (value) => (100 * (value - low)) / (high - low || 1);
}

/** Contributions as `{value, kind, at}`; `at` is the click's position in the history. */
function partsOf(why) {
  if (!why) return [];
  const clicks = why.clicks.map(({ value, at }) => ({ value, kind: "click", at }));
  return [...clicks, { value: why.rest, kind: "rest" }, { value: why.age, kind: "age" }];
}

/** Parts in the order of the bar: clicks of a category side by side, then the rest and the age. */
function inOrder(why, history) {
  const first = (part) => history.findIndex((news) => news.category === history[part.at].category);
  const clicks = partsOf(why).filter((part) => part.kind === "click");
  clicks.sort((one, other) => first(one) - first(other) || one.at - other.at);
  return [...clicks, ...partsOf(why).slice(why.clicks.length)];
}

function bars(why, history, scale) {
  const node = el("div", { class: "bars", role: "img", "aria-label": inWords(why, history) });
  const zero = el("i", { class: "zero" });
  zero.style.left = `${scale(0)}%`;
  const ends = { "1": 0, "-1": 0 };
  for (const part of inOrder(why, history)) {
    if (!part.value) continue;
    const sign = Math.sign(part.value);
    const from = ends[sign];
    ends[sign] += part.value;
    const left = scale(Math.min(from, ends[sign]));
    const bar = el("i", { class: `bar ${part.kind === "click" ? hueOf(history[part.at].category) : part.kind}`, "data-click": part.at });
    bar.style.left = `${left}%`;
    bar.style.width = `${scale(Math.max(from, ends[sign])) - left}%`;
    node.append(bar);
  }
  node.append(zero);
  return node;
}

function inWords(why, history) {
  const parts = [...why.clicks].sort((one, other) => Math.abs(other.value) - Math.abs(one.value)).slice(0, 3);
  const words = parts.map(({ value, at }) => `click ${at + 1}, ${short(history[at].title)}: ${signed(value)}`);
  if (why.clicks.length > 3) words.push(`${plural(why.clicks.length - 3, "other click")}`);
  words.push(`the rest ${signed(why.rest)}`);
  if (why.age) words.push(`age ${signed(why.age)}`);
  return words.join("; ");
}

function table(news, history) {
  const why = news.explanation;
  const clicks = [...why.clicks].sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
  const named = clicks.length > MOST_PARTS + 1 ? clicks.slice(0, MOST_PARTS) : clicks;
  const others = clicks.slice(named.length);
  const total = (parts) => parts.reduce((sum, part) => sum + part.value, 0);
  const lines = named.map(({ value, at }) => ({ at, value, hue: hueOf(history[at].category), name: history[at].title || history[at].news_id }));
  if (others.length) lines.push({ value: total(others), hue: "hue-0", name: plural(others.length, "other click") });
  lines.push({ value: why.rest, hue: "rest", name: "the rest, which no click accounts for" });
  if (why.age) lines.push({ value: why.age, hue: "age", name: "age" });
  const low = Math.min(0, ...lines.map((line) => line.value)), high = Math.max(0, ...lines.map((line) => line.value));
  const at = (value) => (100 * (value - low)) / (high - low || 1);
  const rows = lines.map((line) => {
    const bar = el("i", { class: `bar ${line.hue}` });
    bar.style.left = `${at(Math.min(0, line.value))}%`;
    bar.style.width = `${at(Math.max(0, line.value)) - at(Math.min(0, line.value))}%`;
    return el("tr", { "data-click": line.at }, el("td", { class: "order" }, line.at === undefined ? "" : String(line.at + 1)),
      el("td", { class: "name" }, el("span", { dir: "auto" }, line.name)),
      el("td", { class: "line" }, el("div", { class: "bars" }, bar)), el("td", {}, signed(line.value)));
  });
  const sum = el("tr", { class: "sum" }, el("td"), el("td", { class: "name" }, "score"), el("td"), el("td", {}, score(news.score)));
  return el("table", { class: "small" }, el("tbody", {}, ...rows, sum));
}

function showLegend(rows, history) {
  const whys = rows.map((row) => row.news.explanation).filter(Boolean);
  $("legend").hidden = !whys.length || !history.length;
  if ($("legend").hidden) return;
  const entry = (hue, name) => el("span", {}, el("i", { class: `dot ${hue}` }), name);
  const categories = [...new Set(history.map((news) => news.category))];
  const coloured = categories.filter((category) => hueOf(category) !== "hue-0");
  const entries = coloured.map((category) => entry(hueOf(category), short(category || "no category", 28)));
  if (coloured.length < categories.length) entries.push(entry("hue-0", "other categories"));
  entries.push(entry("rest", "the rest"));
  if (whys.some((why) => why.age)) entries.push(entry("age", "age"));
  const { method } = whys[0];
  $("legend").replaceChildren(el("span", { class: "soft" }, `What the clicks brought (${METHODS[method] ?? method}):`), ...entries);
}

/** Light up what one click brought to every news item; null puts all lights out. */
export function lightClick(at) {
  lit = at;
  document.body.classList.toggle("lit", at !== null);
  for (const node of document.querySelectorAll("[data-click].on")) node.classList.remove("on");
  for (const node of at === null ? [] : document.querySelectorAll(`[data-click="${at}"]`)) node.classList.add("on");
  for (const [index, { news }] of shown.rows.entries()) {
    const value = news.explanation?.clicks.find((click) => click.at === at)?.value;
    const node = $("recommended").children[index]?.querySelector(".brought");
    if (node) node.textContent = value === undefined ? "" : signed(value);
  }
}

/** What each click brought to a news item of the list, largest absolute value 1; or null. */
export function broughtTo(newsId) {
  const clicks = shown.rows.find((row) => row.news.news_id === newsId)?.news.explanation?.clicks;
  const most = Math.max(...(clicks ?? []).map((click) => Math.abs(click.value)));
  return most > 0 ? new Map(clicks.map((click) => [click.at, click.value / most])) : null;
}
