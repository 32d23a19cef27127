// Answers of the `openai` package. CommonJS, since NODE_PATH says where the package lies.
// stdin: {"options": of the client, "calls": [[method, its arguments], ...]}
// stdout: {"answers": [each call's answer or {"error": class, "status": ..., ...}], "hosts": all it has connected to}
"use strict";

const { readFileSync } = require("node:fs");
const { subscribe } = require("node:diagnostics_channel");
const { OpenAI } = require("openai");

const hosts = new Set();
subscribe("undici:client:beforeConnect", ({ connectParams }) => hosts.add(connectParams.hostname));

async function main() {
  const { options, calls } = JSON.parse(readFileSync(0, "utf8"));
  const client = new OpenAI(options);
  const answers = [];
  for (const [method, ...args] of calls) {
    const [resource, name] = method.split(".");
    try {
      answers.push(await client[resource][name](...args));
    } catch (error) {
      const { status, message, code, param, type } = error;
      answers.push({ error: error.constructor.name, status, message, code, param, type });
    }
  }
  console.log(JSON.stringify({ answers, hosts: [...hosts] }));
}

main();
