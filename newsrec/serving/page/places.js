// The chart of a replay: how far down the list each click stood, and their running mean.
import { el } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, TOP] = [340, 96, 34, 8];
const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

/** Draw steps with `places` and `of`; those in the first `length` are hits. `onGo` gets a step. */
export function drawPlaces(node, steps, at, length, onGo) {
  const x = (n) => LEFT + 8 + ((WIDTH - LEFT - 16) * n) / Math.max(1, steps.length - 1);
  const y = (share) => TOP + (HEIGHT - 2 * TOP) * share;
  const share = (place, of) => (of > 1 ? (place - 1) / (of - 1) : 0.5);
  const tick = (text, value) => svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, text);
  const dots = [], mean = [];
  let sum = 0, count = 0;
  for (const [n, { places = [], of }] of steps.entries()) {
    for (const place of places) {
      sum += share(place, of);
      count += 1;
      dots.push(svg("circle", { cx: x(n), cy: y(share(place, of)), r: n === at ? 5 : 3.5, class: place <= length ? "hit" : "miss" }));
    }
    if (places.length) mean.push(`${x(n)},${y(sum / count)}`);
  }
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Places of the clicks, from first at the top to last at the bottom, and their running mean" },
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(0), y2: y(0) }), svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(1), y2: y(1) }),
    svg("line", { class: "ref", x1: LEFT, x2: WIDTH, y1: y(0.5), y2: y(0.5) }), tick("first", 0), tick("50 %", 0.5), tick("last", 1),
    svg("line", { class: "now", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - TOP }),
    svg("polyline", { class: "mean", points: mean.join(" ") }), ...dots);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const where = ((event.clientX - box.left) / box.width) * WIDTH;
    onGo(Math.round(((where - LEFT - 8) / (WIDTH - LEFT - 16)) * (steps.length - 1)));
  });
  node.replaceChildren(picture, el("p", { class: "legend small" }, el("span", {}, el("i", { class: "dot hit" }), `in the first ${length}`),
    el("span", {}, el("i", { class: "dot miss" }), "further down"), el("span", {}, el("i", { class: "dash" }), "running mean")));
}
