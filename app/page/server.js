// Requests to this server. Paths are relative to the page, so that they hold behind a path prefix.

import { say } from "./dom.js";

// In memory only: never in storage, a cookie or a URL.
let key = "";

export function setKey(value) {
  key = value;
}

export const hasKey = () => key !== "";

// An answer that is not the one asked for. message: a sentence for the reader. needsKey: this server wants a key.
export class ServerError extends Error {
  constructor(message, needsKey = false) {
    super(message);
    this.needsKey = needsKey;
  }
}

export const urlOf = (path) => new URL(path, document.baseURI);

// Return the JSON of an answer. body: what to post; undefined for a GET. Throws a ServerError, or the signal's abort.
export async function ask(path, body, signal) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer, text;
  try {
    answer = await fetch(urlOf(path), options);
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(say("no_connection"));
  }
  const content = parsed(text);
  if (answer.ok && content !== undefined) return content;
  const message = content?.error?.message ?? say("no_json", { status: answer.status });
  const seconds = answer.headers.get("Retry-After") ?? "";
  const isNumber = /^\d+$/.test(seconds); // a proxy may send a date
  const needsKey = content?.error?.code === "invalid_api_key";
  throw new ServerError(isNumber ? `${message} ${say("retry", { seconds })}` : message, needsKey);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // from a proxy: all answers of this server are JSON here
  }
}
