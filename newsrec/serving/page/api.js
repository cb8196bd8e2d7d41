// Requests to the service: errors as its own sentences, a token where it asks for one, and times.
import { $, el, milliseconds, tell } from "./dom.js";

const SHOWN_REQUESTS = 15;
const running = new Map(); // channel -> controller of its latest request
let asking = null; // the promise of a token while its dialog is open
let isWaiting = false;
let token = null; // of this tab; where the browser keeps nothing, until the page is left
try {
  token = sessionStorage.getItem("token");
} catch { /* no storage */ }

/** What went wrong, in a sentence for the user. */
export class Problem extends Error {}

/**
 * Ask the service. A later request of the same channel replaces an earlier one, which returns null.
 * The answer has the server's time and the round trip as `ms` and `trip`.
 */
export async function ask(method, path, body = null, channel = path) {
  running.get(channel)?.abort();
  const controller = new AbortController();
  running.set(channel, controller);
  for (;;) {
    const began = performance.now();
    const sent = token;
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(sent && { Authorization: `Bearer ${sent}` }) };
    let response, answer;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: controller.signal });
      answer = await response.json().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { error: `The server answered ${path} with status ${response.status} and no JSON.` };
      });
    } catch (error) {
      if (error.name === "AbortError") return null;
      waitForServer("The server does not answer.");
      throw new Problem("");
    }
    const trip = performance.now() - began;
    note(method, path, response.status, answer.ms, trip);
    if (response.status === 401) {
      if (sent === token) {
        await (asking ??= askForToken(answer.error).finally(() => (asking = null)));
      }
      if (controller.signal.aborted) return null;
      continue;
    }
    if (response.status === 503) {
      waitForServer(answer.error);
      throw new Problem("");
    }
    if (!response.ok || answer.error) throw new Problem(answer.error ?? `The server answered ${response.status}.`);
    dispatchEvent(new CustomEvent("answered", { detail: answer }));
    return { ...answer, trip };
  }
}

/** Ask, and show at a node what went wrong; null then, and where a later request came first. */
export async function askAt(node, ...request) {
  try {
    const answer = await ask(...request);
    if (answer) tell(node, "");
    return answer;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    tell(node, error.message);
    return null;
  }
}

export const times = (answer) =>
  (answer.ms === undefined ? "" : `${milliseconds(answer.ms)} ms server · `) + `${milliseconds(answer.trip)} ms round trip`;

function note(method, path, status, ms, trip) {
  const cells = [`${method} /${path}`, status, ms === undefined ? "–" : milliseconds(ms), milliseconds(trip)];
  $("requests").prepend(el("tr", {}, ...cells.map((cell) => el("td", {}, String(cell)))));
  while ($("requests").children.length > SHOWN_REQUESTS) $("requests").lastChild.remove();
}

$("token").addEventListener("cancel", (event) => event.preventDefault());

function askForToken(sentence) {
  const dialog = $("token");
  $("token-problem").textContent = sentence ?? "";
  $("token-field").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      token = $("token-field").value.trim();
      try {
        sessionStorage.setItem("token", token);
      } catch { /* no storage */ }
      resolve();
    }, { once: true });
  });
}

/** Ask every few seconds if the server is ready, and then send the event "back". */
function waitForServer(sentence) {
  tell($("offline"), `${sentence} This page asks again every 3 seconds.`);
  if (isWaiting) return;
  isWaiting = true;
  const timer = setInterval(async () => {
    const response = await fetch("ready").catch(() => null);
    if (!response || response.status === 503) return;
    clearInterval(timer);
    isWaiting = false;
    tell($("offline"), "");
    dispatchEvent(new Event("back"));
  }, 3000);
}
