// The tokens of each text with their boundaries, and the cut after MAX_LENGTH tokens.

import { byId, element, isolated, number, say } from "./dom.js";
import { ServerError } from "./server.js";

// Maximum tokens drawn per text: its beginning, those around the cut, and its end.
const MAX_DRAWN = 320;
const AT_BEGINNING = 240;
const AROUND_CUT = 20;
// Characters that draw nothing, or change the direction of others: shown by their numbers.
const INVISIBLE = /^[\p{C}\p{Z}]+$/u;

// tokens: the answer of /tokenize, or the error in its place.
export function showTokens(texts, tokens, about) {
  const { default_prompt_name: name, prompts } = about.model;
  const prompt = name === null ? "" : prompts[name];
  byId("tokens-hint").textContent = say("tokens_hint", { limit: number(about.max_length) });
  byId("prompt-hint").textContent = prompt ? say("tokens_prompt", { prompt, name }) : "";
  const failed = tokens instanceof ServerError;
  byId("tokens-problem").textContent = failed ? tokens.message : "";
  const promptLength = Array.from(prompt).length; // start and stop count characters, not JavaScript's UTF-16 units
  const items = failed ? [] : tokens.map((row) => item(row, about.max_length, promptLength));
  byId("tokens").replaceChildren(...items);
}

function item(row, limit, promptLength) {
  const specialsAtEnd = row.length - 1 - row.findLastIndex((token) => !token.special);
  const isCut = row.length > limit;
  // A text that is cut keeps its beginning and the special tokens at its end.
  const cut = isCut ? Math.max(limit - specialsAtEnd, 0) : row.length;
  const end = isCut ? row.length - specialsAtEnd : row.length;
  const kind = (token, i) => {
    if (i >= cut && i < end) return "beyond";
    if (token.special) return "special";
    return promptLength > 0 && token.stop <= promptLength ? "prompt" : "plain";
  };
  const list = element("ul", { className: "tokens", translate: false });
  let drawn = 0;
  for (const [from, to] of ranges(row.length, cut, isCut)) {
    const missing = say("not_drawn", { count: number(from - drawn) });
    if (from > drawn) list.append(element("li", { className: "gap" }, missing));
    for (let i = from; i < to; i++) {
      if (isCut && i === cut) list.append(element("li", { className: "cut" }, say("cut_here")));
      list.append(chip(row[i], kind(row[i], i), isMarkOfBeginning(row[i], row[i + 1])));
    }
    drawn = to;
  }
  const count = say(isCut ? "token_cut" : "token_count", { count: number(row.length), limit: number(limit) });
  return element("li", {}, list, element("p", { className: isCut ? "count is-cut" : "count" }, count));
}

// Return which tokens are drawn, as [from, to) in their order.
function ranges(count, cut, isCut) {
  if (count <= MAX_DRAWN) return [[0, count]];
  const parts = [[0, AT_BEGINNING], [count - AROUND_CUT, count]];
  if (isCut) parts.splice(1, 0, [cut - AROUND_CUT, cut + AROUND_CUT]);
  const merged = [];
  for (const [from, to] of parts) {
    const last = merged.at(-1);
    if (last && from <= last[1]) last[1] = Math.max(last[1], Math.min(to, count));
    else merged.push([from, Math.min(to, count)]);
  }
  return merged;
}

// Return whether a token is the mark that some tokenizers put before a text or word: it has the first character of the
// next token as its place.
function isMarkOfBeginning(token, next) {
  return !token.special && next?.start === token.start && token.stop <= next.stop;
}

function chip(token, kind, isMark) {
  const made = element("li", { className: `token ${kind}`, title: say(`token_${kind}`, { id: token.id }) });
  const inside = kind === "beyond" ? element("del") : made;
  if (inside !== made) made.append(inside);
  if (isMark) inside.append(element("span", { className: "space" }, "␣"));
  else if (token.text === "") inside.append(element("span", { className: "space" }, `#${token.id}`));
  else if (INVISIBLE.test(token.text)) inside.append(element("span", { className: "space" }, names(token.text)));
  else inside.append(...leadingSpace(token.text));
  return made;
}

// A space that belongs to the token is visible.
function leadingSpace(text) {
  const rest = text.trimStart();
  if (rest === text) return [isolated(text)];
  return [element("span", { className: "space", ariaHidden: "true" }, "␣"), isolated(rest)];
}

function names(text) {
  if (/^ +$/.test(text)) return "␣".repeat(text.length);
  const codes = Array.from(text, (character) => character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
  return codes.slice(0, 4).map((code) => `U+${code}`).join(" ");
}
