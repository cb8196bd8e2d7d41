// The search field and the list under it (the combobox pattern of the ARIA guide).
import { $, el, facts, icon, later, plural } from "./dom.js";
import { askAt, times } from "./api.js";

/** Set the search field up; `isPicked(id)` says what is in the history, `onPick` toggles a news item. */
export function setUpSearch(isPicked, onPick) {
  const query = $("query"), popup = $("popup"), list = $("found");
  let found = [], active = -1;
  let isStale = false, enters = false; // the list is not that of the text yet; Enter waits for it

  const show = () => {
    list.replaceChildren(...found.map((news, at) => el("li", {
      role: "option", id: `found-${at}`, class: at === active ? "active" : null, "aria-selected": isPicked(news.news_id),
      onpointerdown: (event) => event.preventDefault(), // the field keeps the focus
      onclick: () => pick(at),
    }, el("div", { class: "what" }, el("span", { class: "title", dir: "auto" }, news.title || news.news_id), facts(news)),
    icon(isPicked(news.news_id) ? "check" : "add"))));
    if (active < 0) query.removeAttribute("aria-activedescendant");
    else query.setAttribute("aria-activedescendant", `found-${active}`);
    list.children[active]?.scrollIntoView({ block: "nearest" });
  };
  const pick = (at) => {
    active = at;
    onPick(found[at]);
    show();
  };
  const open = (isOpen) => {
    popup.hidden = !isOpen;
    query.setAttribute("aria-expanded", isOpen);
  };
  const search = async () => {
    const answer = await askAt($("found-note"), "GET", `news?${new URLSearchParams({ q: query.value.trim() })}`, null, "search");
    if (!answer) return;
    found = answer.news;
    active = -1;
    isStale = false;
    if (enters && found.length) pick(0);
    enters = false;
    show();
    $("found-note").hidden = false;
    $("found-note").textContent = found.length
      ? `${query.value.trim() ? "" : "The newest "}${plural(found.length, "news item")} · ${times(answer)}`
      : query.value.trim() ? "No news found. Try other words." : "The catalogue is empty. Add news by POST /news.";
  };
  const searchSoon = later(search, 120);
  const start = () => {
    if (!popup.hidden) return;
    open(true);
    search();
  };

  query.addEventListener("input", () => {
    isStale = true;
    open(true);
    searchSoon();
  });
  query.addEventListener("focus", start);
  query.addEventListener("click", start);
  query.addEventListener("blur", () => open(false));
  query.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" && !popup.hidden) open(false);
    else if (event.key === "Enter" && !popup.hidden && isStale) enters = true;
    else if (event.key === "Enter" && !popup.hidden && found.length) pick(Math.max(active, 0));
    else if (step && popup.hidden) start();
    else if (step && found.length) {
      active = (active + step + (active < 0 && step < 0 ? 1 : 0) + found.length) % found.length;
      show();
    } else return;
    event.preventDefault();
  });
  popup.addEventListener("pointerdown", (event) => event.preventDefault());
}
