// The vector of one text as JSON, and the request for it as a curl command and a Python program, to copy.

import { byId, say } from "./dom.js";
import { hasKey, urlOf } from "./server.js";

// Characters that are escaped in a string: ' would end the shell's quotes, the others are invisible or change the
// direction of the code around them.
const ESCAPED = /['\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

export function showVector(text, vector) {
  const values = { text: literal(text), url: urlOf("embed").href.replaceAll("'", "%27") };
  byId("json").textContent = JSON.stringify(vector);
  byId("curl").textContent = curl(values);
  byId("python").textContent = python(values);
}

// Return a text as JSON, which is also a string of Python, without ' and invisible characters.
function literal(text) {
  const escape = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(text).replace(ESCAPED, escape);
}

function curl({ text, url }) {
  const lines = [`curl '${url}'`, "-H 'Content-Type: application/json'", `-d '{"texts": [${text}]}'`];
  if (hasKey()) lines.splice(2, 0, '-H "Authorization: Bearer $API_KEY"');
  return lines.join(" \\\n  ");
}

function python({ text, url }) {
  const key = hasKey() ? `, "Authorization": f"Bearer {os.environ['API_KEY']}"` : "";
  return [
    "import json",
    ...(hasKey() ? ["import os"] : []),
    "from urllib.request import Request, urlopen",
    "",
    `body = {"texts": [${text}]}`,
    `headers = {"Content-Type": "application/json"${key}}`,
    `request = Request("${url}", json.dumps(body).encode(), headers)`,
    "with urlopen(request) as answer:",
    '    vector = json.load(answer)["vectors"][0]',
    "print(vector)",
  ].join("\n");
}

export function listenToCopyButtons() {
  for (const button of document.querySelectorAll("button.copy")) {
    const name = button.dataset.of;
    button.addEventListener("click", () => copy(byId(name), byId(`${name}-title`).textContent));
  }
}

// The clipboard needs HTTPS or localhost, and permission: without them the text is selected, to be copied by hand.
async function copy(source, name) {
  let key = "copied";
  byId("copied").textContent = ""; // so that a second copy is announced, too
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    getSelection().selectAllChildren(source);
    source.focus();
    key = "selected";
  }
  byId("copied").textContent = say(key, { name });
}
