// The similarities of all pairs of texts: a table with colours, and the nearest pairs.

import { byId, element, isolated, number, say } from "./dom.js";

const MAX_PAIRS = 10;

export function showSimilarity(texts, vectors) {
  const cosines = vectors.map((a) => vectors.map((b) => cosine(a, b)));
  const pairs = pairsOf(cosines);
  const low = pairs.length ? Math.min(...pairs.map((pair) => pair.cosine)) : 0;
  byId("heat").replaceChildren(table(texts, cosines, low));
  byId("scale-low").textContent = number(low, 2);
  byId("scale-high").textContent = number(1, 2);
  byId("pairs").replaceChildren(...pairs.slice(0, MAX_PAIRS).map((pair) => shown(pair, texts)));
  if (pairs.length === 0) byId("pairs").append(element("li", { className: "hint" }, say("no_pairs")));
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

// Return the pairs of different lines, the nearest first.
function pairsOf(cosines) {
  const before = (row, second) => row.slice(0, second).map((value, first) => ({ first, second, cosine: value }));
  const pairs = cosines.flatMap(before);
  return pairs.sort((a, b) => b.cosine - a.cosine);
}

function table(texts, cosines, low) {
  const numbers = texts.map((_, i) => element("th", { scope: "col" }, `${i + 1}`));
  const rows = texts.map((text, i) => {
    const name = element("span", { className: "name" }, isolated(text, 60));
    const header = element("th", { scope: "row" }, `${i + 1} `, name);
    return element("tr", {}, header, ...cosines[i].map((value) => cell(value, low)));
  });
  return element(
    "table",
    { className: "heat" },
    element("caption", { className: "unseen" }, say("similarity_caption")),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, say("text_column")), ...numbers)),
    element("tbody", {}, ...rows),
  );
}

// page.css mixes the colour of a cell from --heat, 0 to 1: its own for dark and light.
function cell(value, low) {
  const made = element("td", {}, number(value, 2));
  const heat = low < 1 ? (value - low) / (1 - low) : 1;
  made.style.setProperty("--heat", `${Math.round(100 * Math.min(Math.max(heat, 0), 1))}%`);
  return made;
}

function shown(pair, texts) {
  const text = (i) => element("span", { className: "text" }, `${i + 1} `, isolated(texts[i]));
  const value = element("span", { className: "value" }, number(pair.cosine, 3));
  return element("li", {}, value, text(pair.first), text(pair.second));
}
