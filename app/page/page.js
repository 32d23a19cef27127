// The page of GET /: reads the texts, asks the server, and shows what it answers.

import { byId, element, isolated, number, say } from "./dom.js";
import { showFacts } from "./facts.js";
import { ServerError, ask, hasKey, setKey } from "./server.js";
import { showSimilarity } from "./similarity.js";
import { listenToCopyButtons, showVector } from "./snippets.js";
import { showTokens } from "./tokens.js";

// Maximum texts per computation: a table of 32 columns is still readable.
const MAX_TEXTS = 32;

let about; // the JSON of GET /, once it is known
let latest; // the newest computation; an older one that is still running is aborted
let result = { texts: [], vectors: [] };

const limit = () => Math.min(MAX_TEXTS, about?.limits.max_texts ?? MAX_TEXTS);

async function start() {
  byId("texts-hint").textContent = say("texts_hint", { limit: limit() });
  byId("texts-form").addEventListener("submit", (event) => {
    event.preventDefault();
    compute();
  });
  byId("texts").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      compute();
    }
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey();
  });
  byId("line").addEventListener("change", showSelected);
  listenToCopyButtons();
  await compute();
}

// Compute the vectors of the lines. The first call asks for the model's facts before.
async function compute() {
  latest?.abort();
  const run = (latest = new AbortController());
  const began = performance.now();
  byId("problem").textContent = "";
  byId("status").textContent = say("computing");
  byId("results").ariaBusy = "true";
  let problem = "";
  try {
    if (!about) await learnAbout(run.signal);
    const lines = byId("texts").value.split("\n").filter((line) => line.trim() !== "");
    const texts = lines.slice(0, limit());
    if (texts.length === 0) throw new ServerError(say("no_texts"));
    const [answer, tokens] = await Promise.all([
      ask("embed", { texts }, run.signal),
      ask("tokenize", { inputs: texts }, run.signal).catch(onlyOfTokens),
    ]);
    if (run !== latest) return;
    const milliseconds = number(performance.now() - began);
    if (lines.length > texts.length) problem = say("too_many", { limit: texts.length, lines: number(lines.length) });
    show(texts, answer, tokens);
    byId("status").textContent = say("computed", { count: texts.length, milliseconds });
  } catch (error) {
    if (run !== latest) return; // a newer one shows its own
    byId("results").hidden = true;
    byId("status").textContent = "";
    if (error.needsKey) askForKey(error.message);
    else problem = explained(error);
  } finally {
    if (run === latest) {
      byId("problem").textContent = problem;
      byId("results").ariaBusy = "false";
    }
  }
}

function explained(error) {
  if (error instanceof ServerError) return error.message;
  console.error(error);
  return say("fault");
}

// A text may be too long for /tokenize and not for /embed: its tokens are missing then, and nothing else.
function onlyOfTokens(error) {
  if (error instanceof ServerError && !error.needsKey) return error;
  throw error;
}

async function learnAbout(signal) {
  about = await ask("./", undefined, signal);
  showFacts(about);
  byId("texts-hint").textContent = say("texts_hint", { limit: limit() });
  byId("key-form").hidden = true;
}

function show(texts, answer, tokens) {
  const selected = Math.min(Math.max(byId("line").selectedIndex, 0), texts.length - 1);
  result = { texts, vectors: answer.vectors };
  showSimilarity(texts, answer.vectors);
  showTokens(texts, tokens, about);
  const option = (text, i) => element("option", {}, `${i + 1}  `, isolated(text, 60).textContent);
  byId("line").replaceChildren(...texts.map(option));
  byId("line").selectedIndex = selected;
  showSelected();
  byId("results").hidden = false;
}

function showSelected() {
  const index = byId("line").selectedIndex;
  showVector(result.texts[index], result.vectors[index]);
  byId("copied").textContent = "";
}

function askForKey(message) {
  about = undefined;
  byId("key-form").hidden = false;
  byId("metrics-key").hidden = false;
  byId("key-problem").textContent = hasKey() ? message : "";
  byId("key").focus();
}

async function useKey() {
  const field = byId("key");
  const key = field.value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    byId("key-problem").textContent = say("key_malformed");
    return;
  }
  setKey(key);
  await compute();
  if (!about) return;
  field.value = "";
  byId("key-problem").textContent = "";
  byId("texts").focus();
}

start();
