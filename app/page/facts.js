// The model's and the server's facts, from the JSON of GET /.

import { byId, element, number, say } from "./dom.js";

const CPU_FEATURES = { vnni: "VNNI", avx512: "AVX-512", avx2: "AVX2", amx: "AMX", bf16: "BF16" };
const COSINE_DIGITS = 5;

export function showFacts(about) {
  const { model } = about;
  const rest = ` · ${model.precision.toUpperCase()} · ${about.version}`;
  byId("served").replaceChildren(element("bdi", {}, model.served_name), rest);
  const warning = model.warning ? say("warning", { warning: model.warning }) : model.stand_in ? say("stand_in") : "";
  byId("warning").hidden = warning === "";
  byId("warning").textContent = warning;
  const facts = [...ofModel(about), ...ofQuality(about), ...ofServer(about)];
  byId("facts").replaceChildren(
    ...facts.map(([name, ...values]) =>
      element("div", {}, element("dt", {}, say(`fact_${name}`)), ...values.map((value) => element("dd", {}, value))),
    ),
  );
}

function ofModel({ model, max_length: limit }) {
  const revision = model.revision ? ` @ ${model.revision}` : "";
  const facts = [["model", `${model.id}${revision}`]];
  if (model.served_name !== model.id) facts.push(["served_name", model.served_name]);
  const own = model.max_seq_length;
  const length = say(own === limit ? "length" : "length_own", { limit: number(limit), own: number(own) });
  return [
    ...facts,
    ["precision", model.precision.toUpperCase()],
    ["dimension", number(model.dimension)],
    ["length", length],
    ["pooling", model.pooling],
    ["normalize", say(`normalize_${model.normalize}`)],
    ["prompts", ...promptsOf(model)],
  ];
}

function promptsOf(model) {
  const prompts = Object.entries(model.prompts);
  const key = (name) => (name === model.default_prompt_name ? "prompt_default" : "prompt");
  return prompts.length ? prompts.map(([name, prompt]) => say(key(name), { name, prompt })) : [say("none")];
}

// A model folder of an older build may lack a figure.
function ofQuality({ model, quality }) {
  const facts = [];
  const measured = quality[model.precision];
  if (measured?.mean !== undefined) {
    const [mean, p1, min] = [measured.mean, measured.p1, measured.min].map((value) => number(value, COSINE_DIGITS));
    facts.push(["quality", say("quality", { mean, p1, min, texts: number(quality.texts) })]);
  }
  if (measured?.pairwise_difference !== undefined) {
    facts.push(["difference", say("difference", { difference: number(measured.pairwise_difference, 4) })]);
  }
  if (model.recipe) facts.push(["recipe", model.recipe]);
  return facts;
}

function ofServer({ version, onnxruntime, cpu }) {
  const features = Object.keys(CPU_FEATURES).filter((name) => cpu[name]).map((name) => CPU_FEATURES[name]);
  return [
    ["server", say("server", { version, onnxruntime: onnxruntime.version })],
    ["cpu", say("cpu", { available: cpu.available, features: [cpu.architecture, ...features].join(", ") })],
  ];
}
