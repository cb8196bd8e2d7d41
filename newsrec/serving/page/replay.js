// A user of the data or of the store, click by click: where each next click stood before it.
import { $, el, icon, number, plural, tell } from "./dom.js";
import { Problem, ask, askAt } from "./api.js";
import { drawPlaces } from "./places.js";

const MOST_CLICKS = 30; // of a history, the newest; the others are there from the start
const PAUSE = 1500; // ms between two steps that play by themselves

let users = null; // [{key, name}]
let replayed = null; // {key, steps}
let at = 0;
let playing = null;

export const step = () => replayed?.steps[at] ?? null;
export const replayState = () => (replayed ? { u: replayed.key, step: at } : {});

/** Build the panel; `onStep` is called after each step, `length()` is the length of the list. */
export function setUpReplay(onStep, length) {
  const choice = el("select", { id: "user", onchange: () => openReplay(choice.value) });
  const any = el("button", { type: "button", id: "any-user", onclick: () => openReplay(users[Math.floor(Math.random() * users.length)].key) }, "Any");
  const button = (id, name, label, onclick) => el("button", { type: "button", id, class: "square", "aria-label": label, title: label, onclick }, icon(name));
  const slider = el("input", { id: "step", type: "range", min: 0, step: 1, "aria-label": "Step", oninput: () => go(Number(slider.value)) });
  $("panel-replay").append(
    el("p", { id: "no-users", class: "soft", hidden: true }),
    el("div", { id: "player" },
      el("div", { class: "field" }, el("label", { for: "user", class: "unseen" }, "User"), choice, any),
      el("div", { id: "steps", hidden: true },
        el("div", { class: "transport" }, button("back", "back", "One step back", () => go(at - 1)),
          button("play", "play", "Play", play), button("next", "next", "One step on", () => go(at + 1)), slider),
        el("p", { id: "step-text", role: "status" }), el("div", { id: "places" }), el("p", { id: "running", class: "small" }))),
    el("p", { id: "replay-problem", class: "problem", role: "alert", hidden: true }));
  onGo = onStep;
  listLength = length;
}
let onGo, listLength;

/** Ask who can be replayed; once, unless nobody was there. */
export async function readUsers() {
  if (users?.length) return;
  const problem = $("replay-problem");
  const [data, store] = await Promise.all([askAt(problem, "GET", "examples"), askAt(problem, "GET", "users")]);
  if (!data && !store) return;
  const ofData = (data?.examples ?? []).map((one, n) => ({
    key: `data-${n}`, name: `${one.user_id} · ${plural(one.num_history, "click")}, ${plural(one.num_impressions, "impression")}`,
  }));
  const ofStore = (store?.users ?? []).map((id) => ({ key: `store-${id}`, name: id }));
  users = [...ofData, ...ofStore];
  const group = (label, members) => members.length
    ? [el("optgroup", { label }, ...members.map(({ key, name }) => el("option", { value: key }, name)))] : [];
  $("user").replaceChildren(el("option", { value: "", disabled: true, selected: !replayed }, "Choose a user"),
    ...group("From the data", ofData), ...group("From the store", ofStore));
  if (replayed) $("user").value = replayed.key;
  $("player").hidden = !users.length;
  tell($("no-users"), users.length ? "" : "Nobody can be replayed yet. Start newsrec serve with --data.root to replay users of a data folder, or send clicks to POST /clicks.");
}

/** Read a user and go to a step. */
export async function openReplay(key, first = 0) {
  stop();
  const [, kind, id] = /^(data|store)-(.*)$/s.exec(key) ?? [];
  const path = kind === "store" ? `users/${encodeURIComponent(id)}` : `examples/${encodeURIComponent(id)}`;
  const user = await askAt($("replay-problem"), "GET", path, null, "replay");
  if (!user) return;
  replayed = { key, steps: stepsOf(user.history ?? user.clicks.map((click) => click.news_id), user.impressions ?? []) };
  if (users) $("user").value = key;
  $("steps").hidden = false;
  $("step").max = replayed.steps.length - 1;
  const mine = replayed;
  await go(first);
  measure(mine);
}

function stepsOf(history, impressions) {
  const steps = [];
  for (let n = Math.max(0, history.length - MOST_CLICKS); n < history.length; n++) {
    steps.push({ history: history.slice(0, n), clicked: [history[n]], name: `Click ${n + 1} of ${history.length}` });
  }
  let clicks = history;
  for (const [n, { time, candidates, clicked }] of impressions.entries()) {
    const when = new Date(time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" });
    steps.push({ history: clicks, candidates: [...new Set(candidates)], clicked, name: `Impression ${n + 1} of ${impressions.length}, ${when}` });
    clicks = [...clicks, ...clicked];
  }
  return [...steps, { history: clicks, clicked: [], name: "After the last click" }];
}

/** Find the places of all clicks, one step after another, unless another user is opened. */
async function measure(mine) {
  const clicks = [...new Set(mine.steps.flatMap((one) => (one.candidates ? [] : one.clicked)))];
  try {
    const found = clicks.length ? await ask("POST", "rank", { history: [], candidates: clicks }, "measure") : { unknown_candidates: [] };
    for (const one of found ? mine.steps : []) {
      if (replayed !== mine) return;
      if (one.candidates) await placeAmongCandidates(one);
      else if (one.clicked.length && !found.unknown_candidates.includes(one.clicked[0])) await placeAmongAll(one);
      if (replayed === mine) show();
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    tell($("replay-problem"), error.message);
  }
}

async function placeAmongCandidates(one) {
  const answer = await ask("POST", "rank", { history: one.history, candidates: one.candidates }, "measure");
  const ids = answer?.news.map((news) => news.news_id) ?? [];
  one.places = one.clicked.filter((id) => ids.includes(id)).map((id) => ids.indexOf(id) + 1);
  one.of = ids.length;
}

async function placeAmongAll(one) {
  const [id] = one.clicked;
  const body = { news_id: id, title: id, history: one.history, k: 1 }; // of a known id the title is not read
  const answer = await ask("POST", "headline", body, "measure");
  if (answer) [one.places, one.of] = [[answer.rank], answer.of + 1];
}

function go(to) {
  if (!replayed) return null;
  at = Math.max(0, Math.min(to || 0, replayed.steps.length - 1));
  if (at === replayed.steps.length - 1) stop();
  show();
  return onGo();
}

function play() {
  if (playing) return stop();
  if (at === replayed.steps.length - 1) go(0);
  playing = setInterval(() => go(at + 1), PAUSE);
  showPlay();
}

/** Stop a replay that plays by itself. */
export function stop() {
  clearInterval(playing);
  playing = null;
  showPlay();
}

function showPlay() {
  const label = playing ? "Pause" : "Play";
  $("play").replaceChildren(icon(label.toLowerCase()));
  $("play").setAttribute("aria-label", label);
  $("play").title = label;
}

/** Leave the user: what follows is a history of its own. */
export function leaveReplay() {
  stop();
  replayed = null;
  $("steps").hidden = true;
  $("user").value = "";
}

function show() {
  const { steps } = replayed;
  const one = steps[at];
  $("step").value = at;
  $("step").setAttribute("aria-valuetext", one.name);
  $("back").disabled = at === 0;
  $("next").disabled = at === steps.length - 1;
  const where = one.places?.length
    ? `: ${one.candidates ? "clicked" : "the next click is in"} place ${one.places.map(number).join(", ")} of ${number(one.of)}` : "";
  $("step-text").textContent = one.name + where;
  drawPlaces($("places"), steps, at, listLength(), go);
  const seen = steps.slice(0, at + 1).flatMap((step) => (step.places ?? []).map((place) => ({ place, of: step.of })));
  const mean = seen.reduce((sum, { place, of }) => sum + (of > 1 ? (place - 1) / (of - 1) : 0.5), 0) / seen.length;
  const hits = seen.filter(({ place }) => place <= listLength()).length;
  $("running").textContent = seen.length
    ? `So far the clicks stood ${Math.round(100 * mean)} % down the list on average (by chance 50 %), ${hits} of ${seen.length} in the first ${listLength()}.` : "";
}
