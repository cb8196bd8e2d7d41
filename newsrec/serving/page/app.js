// The page: one state (history, rules, tab, replayed user, headline), kept in the address.
import { $, el, giveHues, later, plural, short, speak, tell } from "./dom.js";
import { ask, askAt, times } from "./api.js";
import { broughtTo, lightClick, showRecommendations } from "./recommendations.js";
import { showHistory, showShares } from "./history.js";
import { setUpSearch } from "./search.js";
import { inForce, knownCategories, learn, readRules, setUpRules, showAges } from "./rules.js";
import { offerCategories, placedHeadline, setUpHeadline } from "./headline.js";
import { leaveReplay, openReplay, readUsers, replayState, setUpReplay, step, stop } from "./replay.js";

const TABS = ["search", "replay", "headline"];
const LOOKED_UP = 100; // ids in one request
const state = { history: [], rules: {}, tab: "search" };
const items = new Map(); // news id -> news item, as far as it was seen
let answered = null; // the latest recommendations

const itemOf = (id) => items.get(id) ?? { news_id: id, title: "", category: "" };
const see = (news) => {
  for (const item of news) items.set(item.news_id, item);
  learn(news);
};

/** Ask for the recommendations of the state and show them. */
async function update() {
  writeAddress();
  drawHistory();
  const replayed = step();
  const candidates = replayed?.candidates;
  const body = { history: state.history, explain: true, ...(candidates ? { candidates } : inForce(state.rules)) };
  const lookup = lookUp(state.history);
  const answer = await askAt($("problem"), "POST", candidates ? "rank" : "recommend", body, "recommend");
  await lookup;
  if (!answer) return;
  see(answer.news.filter((news) => !answer.unknown_candidates?.includes(news.news_id)));
  for (const news of answer.news) {
    news.title ||= news.news_id;
    news.category ??= "";
  }
  answered = { ...answer, replayed, history: state.history, used: locate(answer) };
  draw();
  const first = answer.news[0];
  speak(first ? `${plural(answer.news.length, "recommendation")}, first: ${short(first.title)}` : "No recommendations");
}
const updateSoon = later(update, 40);

/** Say for each click of the explanations where it is in the history; return the positions read. */
function locate(answer) {
  const positions = (ids) => {
    let at = state.history.length;
    return ids.toReversed().map((id) => (at = at > 0 ? state.history.lastIndexOf(id, at - 1) : -1)).reverse();
  };
  for (const { explanation } of answer.news) {
    const at = positions(explanation?.clicks.map((click) => click.news_id) ?? []);
    for (const [n, click] of (explanation?.clicks ?? []).entries()) click.at = at[n];
    if (explanation) explanation.clicks = explanation.clicks.filter((click) => click.at >= 0);
  }
  return new Set(positions(answer.history ?? state.history));
}

/** Read titles of ids that were not seen yet; ids that the catalogue lacks stay as they are. */
async function lookUp(ids) {
  const lacking = [...new Set(ids)].filter((id) => !items.has(id));
  for (let from = 0; from < lacking.length; from += LOOKED_UP) {
    const body = { history: [], candidates: lacking.slice(from, from + LOOKED_UP) };
    const answer = await ask("POST", "rank", body, `look up ${from}`).catch(() => null);
    const unknown = new Set(answer?.unknown_candidates);
    see(answer?.news.filter((news) => !unknown.has(news.news_id)) ?? []);
  }
}

function drawHistory() {
  const history = state.history.map(itemOf);
  giveHues([...new Set(history.map((news) => news.category))]);
  const used = answered?.history === state.history ? answered.used : null;
  showHistory(history, used, (order) => setHistory(order.map((at) => state.history[at])), lightClick);
  drawRules();
  offerCategories(knownCategories());
}

function draw() {
  drawHistory();
  const { news, replayed, unknown_history: unknown = [] } = answered;
  const clicked = new Set(replayed?.clicked);
  const length = state.rules.k ?? 10;
  let rows = news.map((one, at) => ({ news: one, place: at + 1, isHit: clicked.has(one.news_id) && (replayed.candidates ? "clicked" : "clicked next") }));
  if (replayed?.candidates) rows = rows.filter((row) => row.place <= length || row.isHit);
  const own = state.tab === "headline" && Object.keys(inForce(state.rules)).every((name) => name === "k") && placedHeadline();
  const above = own ? rows.findIndex((row) => row.news.score < own.score) : -1;
  if (above >= 0) rows.splice(above, 0, { news: own, place: "→", isHeadline: true });
  const kind = replayed?.candidates ?? "all"; // an array is equal to itself alone
  showRecommendations(rows, answered.history.map(itemOf), kind, (item) => toggle(item, true));
  $("recommended-heading").textContent = replayed?.candidates ? `Impression of ${plural(news.length, "news item")}` : "Recommendations";
  $("latency").textContent = times(answered);
  const notes = [];
  if (!news.length) notes.push(noneBecause());
  if (unknown.length) notes.push(`Not in the catalogue: ${unknown.slice(0, 5).map((id) => short(id, 30)).join(", ")}${unknown.length > 5 ? ", …" : ""}.`);
  const left = news.length - rows.length;
  if (replayed?.candidates && left > 0) notes.push(`${plural(left, "more news item")}, not clicked.`);
  if (!answered.history.length && news.length) notes.push("No click yet: this is what the model shows to a new user. Click a title to see the list change.");
  $("note").textContent = notes.join(" ");
}

function noneBecause() {
  if (state.catalogue === 0) return "The catalogue is empty. Add news by POST /news.";
  return Object.keys(inForce(state.rules)).length ? "No news item is left under these rules." : "No news item is left to recommend.";
}

/** Give the history new ids; a replayed user is left. */
function setHistory(history) {
  if (step()) leaveReplay();
  state.history = history;
  update();
  if (state.tab === "headline") place();
}

/** Add a news item to the history, or remove it from there. */
function toggle(item, alwaysAdd = false) {
  see([{ ...items.get(item.news_id), ...item }]);
  const without = state.history.filter((id) => id !== item.news_id);
  setHistory(!alwaysAdd && without.length < state.history.length ? without : [...state.history, item.news_id]);
}

function showTab(tab) {
  state.tab = TABS.includes(tab) ? tab : "search";
  for (const name of TABS) {
    $(`panel-${name}`).hidden = name !== state.tab;
    $(`tab-${name}`).setAttribute("aria-selected", name === state.tab);
    $(`tab-${name}`).tabIndex = name === state.tab ? 0 : -1;
  }
  if (state.tab === "replay") readUsers();
  else stop();
  if (state.tab === "headline") place();
  else if (answered) draw();
}

function writeAddress() {
  const parameters = new URLSearchParams();
  const put = (name, value) => parameters.append(name, value);
  if (state.tab !== "search") put("tab", state.tab);
  for (const [name, value] of Object.entries(replayState())) put(name, value);
  if (!step()) for (const id of state.history) put("h", id);
  for (const [name, value] of Object.entries(inForce(state.rules))) {
    for (const one of [value].flat()) if (one !== null) put(name === "categories" ? "category" : name, one);
  }
  if ($("headline").value.trim()) put("headline", $("headline").value.trim());
  history.replaceState(null, "", `#${parameters}`);
}

async function readAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state.rules)) delete state.rules[name];
  Object.assign(state.rules, readRules(parameters));
  state.history = parameters.getAll("h");
  $("headline").value = parameters.get("headline") ?? "";
  showTab(parameters.get("tab"));
  if (step()) leaveReplay();
  if (parameters.has("u")) await openReplay(parameters.get("u"), Number(parameters.get("step")));
  if (!step()) update();
}

/** Learn what the catalogue has: the newest news, which also say if there are times. */
async function readCatalogue() {
  const newest = await ask("GET", "news?k=100", null, "catalogue").catch(() => null) // over a server's limit
    ?? (await askAt($("problem"), "GET", "news", null, "catalogue"));
  if (!newest) return;
  state.newest = newest.news;
  if (!newest.news.length) state.catalogue = 0;
  see(newest.news);
  showAges(newest.news.some((news) => news.published));
  $("pick").hidden = !newest.news.length;
  drawHistory();
  const ready = await ask("GET", "ready").catch(() => null);
  if (ready?.news !== undefined) state.catalogue = ready.news;
  showCatalogue(newest.version);
}

function showCatalogue(version) {
  const size = state.catalogue === undefined ? null : plural(state.catalogue, "news item");
  $("catalogue").replaceChildren(...(size ? [size] : []), el("span", { id: "version" }, `${size ? " · " : ""}version ${short(String(version), 16)}`));
}

setUpSearch((id) => state.history.includes(id), (item) => toggle(item));
const drawRules = setUpRules(state.rules, updateSoon);
const place = setUpHeadline(() => state.history, () => {
  writeAddress();
  if (answered) draw();
}, (item) => toggle(item, true));
setUpReplay(() => {
  state.history = step().history;
  return update();
}, () => state.rules.k ?? 10);

for (const [at, tab] of TABS.entries()) {
  $(`tab-${tab}`).addEventListener("click", () => { showTab(tab); writeAddress(); });
  $(`tab-${tab}`).addEventListener("keydown", ({ key }) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at + TABS.length - 1, Home: 0, End: TABS.length - 1 }[key];
    if (to === undefined) return;
    $(`tab-${TABS[to % TABS.length]}`).focus();
    $(`tab-${TABS[to % TABS.length]}`).click();
  });
}
$("clear").addEventListener("click", () => { setHistory([]); $("query").focus(); });
$("pick").addEventListener("click", () => {
  const ids = state.newest.map((news) => news.news_id).sort(() => Math.random() - 0.5);
  setHistory(ids.slice(0, 3));
});
$("share").addEventListener("click", async () => {
  writeAddress();
  const done = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  const label = $("share").lastElementChild;
  label.textContent = done ? "Copied" : "Copy it from the address bar";
  speak(label.textContent);
  setTimeout(() => (label.textContent = "Copy link"), 2500);
});
for (const [start, end] of [["pointerover", "pointerleave"], ["focusin", "focusout"]]) {
  $("recommended").addEventListener(start, ({ target }) => {
    showShares(broughtTo(target.closest("li")?.dataset.id));
    const at = target.closest("[data-click]")?.dataset.click;
    lightClick(at === undefined ? null : Number(at));
  });
  $("recommended").addEventListener(end, () => { showShares(null); lightClick(null); });
}
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  event.preventDefault();
  showTab("search");
  $("query").focus();
});
addEventListener("answered", ({ detail }) => { if (detail.version) showCatalogue(detail.version); });
addEventListener("back", () => { readCatalogue(); update(); });
addEventListener("hashchange", readAddress);
$("rules").open = matchMedia("(min-width: 900px)").matches;
tell($("problem"), "");
readCatalogue();
readAddress();
