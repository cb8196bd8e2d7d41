// A headline that is not in the catalogue: its place among all news, and the news near it.
import { $, el, facts, later, number, score, speak } from "./dom.js";
import { askAt, times } from "./api.js";

let latest = null; // {title, category, score} of the last answer

/** Build the panel. `history()` gives ids, `onPlaced` follows each placing, `onPick` gets news. */
export function setUpHeadline(history, onPlaced, onPick) {
  const title = el("textarea", { id: "headline", rows: 3, maxlength: 5000, dir: "auto", placeholder: "Paste or write a headline", spellcheck: "false" });
  const category = el("input", { id: "headline-category", list: "known-categories", autocomplete: "off", placeholder: "any" });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const result = el("div", { id: "placed" });
  $("panel-headline").append(el("label", { for: "headline" }, "Headline"), title,
    el("div", { class: "field" }, el("label", { for: "headline-category" }, "Category"), category),
    el("datalist", { id: "known-categories" }), problem, result);

  const place = async () => {
    const text = title.value.trim();
    if (!text) {
      latest = null;
      problem.hidden = true;
      result.replaceChildren(el("p", { class: "soft" }, "Its place for the history below, among all other news. It is not stored."));
      return onPlaced();
    }
    const item = { title: text, category: category.value.trim() };
    const answer = await askAt(problem, "POST", "headline", { ...item, history: history(), k: 5 });
    if (!answer) return null;
    latest = { ...item, score: answer.score };
    result.replaceChildren(...shown(answer, onPick));
    speak(`Place ${number(answer.rank)} of ${number(answer.of + 1)}`);
    return onPlaced();
  };
  const soon = later(place, 250);
  for (const field of [title, category]) field.addEventListener("input", soon);
  return place;
}

function shown(answer, onPick) {
  const mark = el("i", { class: "here" });
  mark.style.left = `${(100 * (answer.rank - 1)) / Math.max(1, answer.of)}%`;
  return [
    el("p", { class: "big" }, "Place ", el("b", {}, number(answer.rank)), ` of ${number(answer.of + 1)}`,
      el("span", { class: "soft small" }, `score ${score(answer.score)}`)),
    el("div", { class: "track", "aria-hidden": "true" }, mark),
    el("h3", {}, "News near it"),
    el("ul", { class: "near" }, ...answer.near.map((news) => {
      const bar = el("i", { class: "bar rest" });
      bar.style.width = `${100 * Math.max(0, news.cosine)}%`;
      return el("li", {}, el("div", { class: "what" },
        el("button", { class: "title", type: "button", dir: "auto", title: "Click it as the user would", onclick: () => onPick(news) }, news.title),
        facts(news)), el("span", { class: "cosine small" }, el("span", { class: "soft" }, "cosine "), news.cosine.toFixed(2), el("span", { class: "bars" }, bar)));
    })),
    el("p", { class: "soft small" }, times(answer)),
  ];
}

/** The headline as a row of the recommendations, or null. */
export const placedHeadline = () => latest && { ...latest, news_id: "" };

/** Offer categories in the field. */
export function offerCategories(categories) {
  $("known-categories").replaceChildren(...categories.map((value) => el("option", { value })));
}
