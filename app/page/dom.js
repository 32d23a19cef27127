// Helpers of the page: elements made without markup, its words, numbers in its language.

export const byId = (id) => document.getElementById(id);

const words = JSON.parse(byId("words").textContent);
const language = document.documentElement.lang;
const CLIPPED_CHARACTERS = 90;

// Return an element. Children are nodes or strings; a string never becomes markup.
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Return a sentence of words.en.json or words.ja.json with its {values}. Throws for an unknown key.
export function say(key, values = {}) {
  if (typeof words[key] !== "string") throw new Error(`There are no words ${key}.`);
  return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// Return a text of a user, isolated: its direction does not reach the words around it.
export function isolated(text, length = CLIPPED_CHARACTERS) {
  const characters = Array.from(text.slice(0, 2 * length + 2));
  const shown = characters.length > length ? `${characters.slice(0, length).join("")}…` : text;
  return element("bdi", {}, shown);
}
