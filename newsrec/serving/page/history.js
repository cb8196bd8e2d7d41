// The clicks of the user, oldest first: moved by dragging or arrow keys, removed by a button.
import { $, el, facts, icon, number, plural, short, slide, speak } from "./dom.js";

let shown = [];

/** Show news items; `used` are the positions that the model read. `onChange` gets new positions. */
export function showHistory(history, used, onChange, onLight) {
  const list = $("history");
  const focus = list.contains(document.activeElement) && document.activeElement.dataset.part;
  const place = focus && [...list.children].indexOf(document.activeElement.closest("li"));
  shown = history;
  onLight(null); // a removed row hears of no leaving pointer
  slide(list, () => list.replaceChildren(...history.map((news, at) => item(news, at, used, onChange, onLight))));
  if (focus) list.children[Math.min(place, history.length - 1)]?.querySelector(`[data-part=${focus}]`)?.focus();
  $("no-history").hidden = history.length > 0;
  $("clear").hidden = !history.length;
  $("history-count").textContent = history.length ? `${plural(history.length, "click")}${history.length > 1 ? ", oldest first" : ""}` : "";
}

function item(news, at, used, onChange, onLight) {
  const title = news.title || news.news_id;
  const unread = used && !used.has(at) ? (news.title ? "not read: too far back" : "not in the catalogue") : null;
  const order = shown.map((_, index) => index);
  const move = (to) => {
    order.splice(to, 0, ...order.splice(at, 1));
    onChange(order);
    $("history").children[to].querySelector("[data-part=grip]").focus();
    speak(`Click ${at + 1} is now click ${to + 1} of ${number(order.length)}.`);
  };
  const remove = () => {
    onChange(order.filter((index) => index !== at));
    speak(`Removed: ${short(title)}`);
    if (!$("history").childElementCount) $("query").focus();
  };
  const grip = el("button", {
    class: "grip quiet", type: "button", "data-part": "grip", title: "Drag, or move with the arrow keys",
    "aria-label": `Click ${at + 1}, ${short(title)}. The arrow keys move it, Delete removes it.`,
    onkeydown: (event) => {
      const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: order.length - 1 }[event.key];
      if (event.key === "Delete" || event.key === "Backspace") remove();
      else if (to === undefined) return;
      else if (to >= 0 && to < order.length && to !== at) move(to);
      event.preventDefault();
    },
    onpointerdown: (event) => drag(event, at, onChange),
  }, el("span", { class: "order small" }, String(at + 1)), icon("grip"));
  const off = el("button", {
    class: "remove quiet square", type: "button", "data-part": "remove", "aria-label": `Remove click ${at + 1}, ${short(title)}`,
    title: "Remove", onclick: remove,
  }, icon("remove"));
  return el("li", {
    "data-id": `${news.news_id}-${shown.slice(0, at).filter((one) => one.news_id === news.news_id).length}`,
    "data-click": at, class: unread && "unread",
    onpointerenter: () => onLight(at), onpointerleave: () => onLight(null), onfocusin: () => onLight(at), onfocusout: () => onLight(null),
  }, grip, el("div", { class: "what" }, el("span", { class: "title", dir: "auto", title }, title),
    facts(news, unread && el("span", { class: "mark" }, unread))), off, el("i", { class: "share" }));
}

/** Let a click follow the pointer, and take its new position when the pointer is lifted. */
function drag(event, at, onChange) {
  if (event.button) return;
  const list = $("history");
  const row = event.currentTarget.closest("li");
  const rows = [...list.children];
  row.classList.add("dragged");
  const follow = ({ clientY }) => {
    const box = list.getBoundingClientRect();
    if (clientY < box.top + 24) list.scrollTop -= 12;
    if (clientY > box.bottom - 24) list.scrollTop += 12;
    const others = [...list.children].filter((one) => one !== row);
    const below = others.find((one) => clientY < one.offsetTop - list.scrollTop + box.top + one.offsetHeight / 2) ?? null;
    if (row.nextElementSibling === below) return;
    slide(list, () => list.insertBefore(row, below));
  };
  const end = ({ type }) => {
    removeEventListener("pointermove", follow);
    for (const name of ["pointerup", "pointercancel"]) removeEventListener(name, end);
    row.classList.remove("dragged");
    const order = [...list.children].map((one) => rows.indexOf(one));
    onChange(type === "pointerup" ? order : rows.map((_, index) => index));
  };
  addEventListener("pointermove", follow);
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, end);
}

/** Show under each click what it brought to one news item; null shows nothing. */
export function showShares(shares) {
  for (const [at, row] of [...$("history").children].entries()) {
    const share = row.querySelector(".share");
    share.style.width = `${100 * Math.abs(shares?.get(at) ?? 0)}%`;
    share.classList.toggle("negative", (shares?.get(at) ?? 0) < 0);
  }
}
