// What may be recommended: sliders from "off" on the left to the strictest on the right.
import { $, duration, el, hueOf, short } from "./dom.js";

const share = (value) => (value ? value.toFixed(2) : "off");
const TENTHS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];
const FIELDS = {
  k: { label: "Length", steps: [5, 10, 20, 30, 50, 100], start: 10, say: String, hint: "News in the list" },
  half_life: { label: "Half-life", steps: [null, 168, 72, 48, 24, 12, 6, 3, 1], say: duration, ages: true,
    hint: "After this time the odds of a news item are halved" },
  max_age: { label: "Age at most", steps: [null, 168, 72, 48, 24, 12, 6, 3, 1], say: duration, ages: true, hint: "Older news is left out" },
  per_category: { label: "Per category", steps: [null, 5, 4, 3, 2, 1], say: String, hint: "Most news of one category" },
  diversity: { label: "Diversity", steps: TENTHS, start: 0, say: share, hint: "How much news unlike the news above it is preferred" },
  calibration: { label: "Calibration", steps: TENTHS, start: 0, say: share,
    hint: "How much the categories of the list must match those of the clicks" },
  near_duplicates: { label: "Near-duplicates", steps: [null, 0.99, 0.95, 0.9, 0.85, 0.8, 0.7], say: share,
    hint: "Of two news items with this cosine or a higher one, only the better one is kept" },
};
const startOf = (name) => FIELDS[name].start ?? null;
const known = new Set(); // categories

/** Set the sliders up. `rules` is changed in place, `onChange` is called after each change. */
export function setUpRules(rules, onChange) {
  const changed = () => {
    showRules(rules, changed);
    onChange();
  };
  const rows = Object.entries(FIELDS).map(([name, field]) => el("div", { class: "field" },
    el("label", { for: `rule-${name}`, title: field.hint }, field.label),
    el("input", {
      id: `rule-${name}`, type: "range", min: 0, max: field.steps.length - 1, step: 1, title: field.hint,
      oninput: (event) => {
        rules[name] = field.steps[event.target.value];
        changed();
      },
    }), el("output", { id: `rule-${name}-value`, for: `rule-${name}` })));
  rows.splice(3, 0, el("p", { id: "ageless", class: "soft small", hidden: true }, "No news item here has a time, so age counts for nothing."));
  $("rules-fields").append(...rows,
    el("div", { class: "field top" }, el("span", { id: "rule-categories" }, "Categories"),
      el("div", { id: "categories", class: "toggles", role: "group", "aria-labelledby": "rule-categories" })),
    el("button", { id: "reset", type: "button", class: "quiet", onclick: () => {
      for (const name of Object.keys(rules)) delete rules[name];
      changed();
    } }, "Reset"));
  return () => showRules(rules, changed);
}

function showRules(rules, changed) {
  const said = [];
  for (const [name, field] of Object.entries(FIELDS)) {
    const value = rules[name] ?? startOf(name);
    const text = value === null ? "off" : field.say(value);
    const input = $(`rule-${name}`);
    const nearest = (step) => Math.abs((step ?? Infinity) - value);
    input.value = value === null ? 0 : field.steps.indexOf(field.steps.reduce((best, step) => (nearest(step) < nearest(best) ? step : best)));
    input.setAttribute("aria-valuetext", text);
    $(`rule-${name}-value`).textContent = text;
    if (value !== startOf(name)) said.push(name === "k" ? `${text} news` : `${field.label.toLowerCase()} ${text}`);
  }
  const chosen = rules.categories ?? [];
  const focused = document.activeElement?.dataset.category;
  $("categories").replaceChildren(...[...new Set([...known, ...chosen])].sort().map((category) => el("button", {
    type: "button", class: "toggle", "aria-pressed": chosen.includes(category), "data-category": category,
    onclick: () => {
      const kept = chosen.filter((one) => one !== category);
      rules.categories = kept.length < chosen.length ? kept : [...chosen, category];
      if (!rules.categories.length) delete rules.categories;
      changed();
    },
  }, el("i", { class: `dot ${hueOf(category)}` }), short(category, 28))));
  if (focused !== undefined) [...$("categories").children].find((one) => one.dataset.category === focused)?.focus();
  if (chosen.length) said.push(chosen.join(", "));
  $("rules-summary").textContent = said.join(" · ");
  $("reset").hidden = !said.length;
}

export const knownCategories = () => [...known].sort();

/** Take note of the categories of news. */
export function learn(news) {
  for (const { category } of news) if (category) known.add(category);
}

/** Enable what needs times, or say that no news item has one. */
export function showAges(haveTimes) {
  for (const [name, field] of Object.entries(FIELDS)) if (field.ages) $(`rule-${name}`).disabled = !haveTimes;
  $("ageless").hidden = haveTimes;
}

/** The rules that differ from the start, for a request. */
export function inForce(rules) {
  return Object.fromEntries(Object.entries(rules).filter(([name, value]) => name === "categories" || value !== startOf(name)));
}

/** Read rules from the parameters of an address; whatever is no number is left out. */
export function readRules(parameters) {
  const rules = {};
  for (const name of Object.keys(FIELDS)) {
    const value = parameters.get(name);
    if (value !== null && value !== "" && Number.isFinite(Number(value))) rules[name] = Number(value);
  }
  const categories = parameters.getAll("category");
  return categories.length ? { ...rules, categories } : rules;
}
