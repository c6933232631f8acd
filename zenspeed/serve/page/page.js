"use strict";
/* The page: one section a task. Text from the server is only ever put in as text, never as HTML. */

const $ = (selector, root = document) => root.querySelector(selector);
const make = (tag, text = "", more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const TABS = { chat: "chat", complete: "completions", classify: "classify", translate: "translate", answer: "answer",
  similar: "search", compare: "completions", card: null };
let language = localStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");
let models = [];
let conversation = [];
let told = null; // the model whose controls are shown
let running = null; // AbortController of the answer that is being written

const say = (name, values = {}) => WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
const current = () => models.find((m) => m.id === $("#model").value);
const can = (model, endpoint) => !endpoint || (model && (model.zenspeed.endpoints || []).includes(endpoint));

function notice(text) {
  $("#notice").textContent = text;
  $("#notice").hidden = !text;
}

/* Talking to the server ---------------------------------------------------------------------------------------------- */

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("#key").value) headers.Authorization = "Bearer " + $("#key").value;
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(say("gone"));
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  throw new Error(problem && problem.error ? problem.error.message : `${answer.status} ${answer.statusText}`);
}

async function* events(path, body, signal) {
  const reader = (await ask(path, { ...body, stream: true }, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "", done = false;
  while (!done) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(say("broken"));
    }
    if (piece.done) throw new Error(say("broken"));
    held += piece.value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") { done = true; break; }
      const value = JSON.parse(data);
      if (value.error) throw new Error(value.error.message);
      if (value.choices.length) yield value.choices[0];
    }
  }
}

function sampling(model) {
  const out = { model: model || $("#model").value, temperature: Number($("#temperature").value), max_tokens: Number($("#max-tokens").value) };
  if ($("#seed").value !== "") out.seed = Number($("#seed").value);
  return out;
}

/* Runs one request of a section: buttons, errors, Stop. */
async function busy(section, work) {
  if (running) running.abort();
  const mine = (running = new AbortController());
  const [go, stop] = [$(".go", section), $(".stop", section)];
  go.disabled = true;
  if (stop) stop.disabled = false;
  notice("");
  try {
    await work(mine.signal);
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message);
  } finally {
    go.disabled = false;
    if (stop) stop.disabled = true;
    if (running === mine) running = null;
  }
}

/* Sections ----------------------------------------------------------------------------------------------------------- */

const WORK = {
  async chat(section, form, signal) {
    conversation.push({ role: "user", content: form.text.value });
    const place = $("#messages");
    bubble("you", form.text.value);
    form.text.value = "";
    const out = bubble("it", "");
    const entry = { role: "assistant", content: "" };
    try {
      for await (const choice of events("v1/chat/completions", { ...sampling(), messages: conversation }, signal)) {
        entry.content += choice.delta.content || "";
        out.textContent = entry.content;
        place.scrollTop = place.scrollHeight;
      }
    } finally {
      if (entry.content) conversation.push(entry);
      else { conversation.pop(); out.parentElement.remove(); }
    }
  },
  async complete(section, form, signal) {
    const place = $(".tokens", section);
    place.replaceChildren();
    const body = { ...sampling(), prompt: form.text.value, logprobs: 5 };
    for await (const choice of events("v1/completions", body, signal)) {
      if (!place.firstChild) place.append(make("span", body.prompt, { className: "prompt" }));
      const { tokens, token_logprobs: logs, top_logprobs: tops } = choice.logprobs || { tokens: [] };
      tokens.forEach((token, i) => place.append(tokenSpan(token, Math.exp(logs[i]), tops[i])));
    }
  },
  async classify(section, form, signal) {
    const body = { model: $("#model").value, input: form.text.value, explain: true };
    if (!form.pair.hidden) body.pair = form.pair.value;
    const found = (await (await ask("v1/classify", body, signal)).json()).data[0];
    const scores = Object.entries(found.scores).sort((a, b) => b[1] - a[1]);
    $(".scores", section).replaceChildren(...scores.map(([label, p]) => bar(label, p)));
    $(".words", section).replaceChildren(...marked(form.text.value, found.words));
  },
  async translate(section, form, signal) {
    const body = { model: $("#model").value, input: form.text.value, ...controls(section) };
    const found = await (await ask("v1/translate", body, signal)).json();
    $(".text", section).textContent = found.data[0].prediction;
  },
  async answer(section, form, signal) {
    const index = form.text.hidden, passage = form.text.value; // an index has passages of its own
    const body = { model: $("#model").value, question: form.question.value, ...controls(section) };
    if (!index && passage.trim()) body.context = passage;
    clear(section);
    const found = await (await ask("v1/answer", body, signal)).json();
    $(".text", section).textContent = found.prediction || say(index ? "notFound" : "noAnswer");
    if (!found.prediction) return;
    const source = index ? sourceOf(found) : { text: passage, start: 0 };
    if (index) $(".source", section).textContent = say("from", { document: found.document });
    if (!source || (!index && found.start === undefined)) return;
    const points = Array.from(source.text); // the server counts characters as Unicode does, JavaScript pairs of surrogates
    const place = $(".passage", section), from = found.start - source.start, to = found.end - source.start;
    if (typeof found.start !== "number") place.append(source.text); // the answer that is kept with a question
    else place.append(points.slice(0, from).join(""), make("mark", points.slice(from, to).join("")), points.slice(to).join(""));
  },
  async similar(section, form, signal) {
    const documents = form.text.value.split("\n").filter((line) => line.trim());
    const body = { model: $("#model").value, query: form.query.value };
    if (!form.text.hidden) body.documents = documents;
    const found = await (await ask("v1/search", body, signal)).json();
    $(".found", section).replaceChildren(...found.data.map((entry) => {
      const item = make("li");
      if (entry.text) item.append(make("span", entry.document, { className: "hint" }));
      item.append(bar(entry.text || entry.document, Math.min(1, Math.max(0, entry.score)), entry.score.toFixed(3)));
      return item;
    }));
  },
  async compare(section, form, signal) {
    await Promise.all(["left", "right"].map(async (side, i) => {
      const place = section.querySelectorAll(".output")[i];
      place.textContent = "";
      for await (const choice of events("v1/completions", { ...sampling($("#" + side).value), prompt: form.text.value }, signal))
        place.textContent += choice.text;
    }));
  },
};

/* The passage of an index in which an answer stands. */
function sourceOf(found) {
  const own = found.passages.filter((p) => p.document === found.document);
  return own.find((p) => p.start <= found.start && found.end <= p.end) || own[0];
}

/* What the model is to be told with a text, as its card says: a choice for each control, a number for the length. */
function showControls(card) {
  for (const place of document.querySelectorAll(".controls")) {
    const field = (name, shown, input) => {
      const label = make("label");
      input.dataset.control = name;
      label.append(shown, " ", input);
      return label;
    };
    const choice = (values) => {
      const input = make("select");
      input.append(...values.map((value) => make("option", value, { value })));
      return input;
    };
    place.replaceChildren(...Object.entries(card.controls || {}).map(([name, values]) => field(name, name, choice(values))));
    if (!card.length) continue;
    const length = make("span", say("length"));
    length.dataset.t = "length";
    place.append(field(card.length, length, make("input", "", { type: "number", min: 1, value: 12, required: true })));
  }
}

function controls(section) {
  const given = [...section.querySelectorAll("[data-control]")].map((e) => [e.dataset.control, e.type === "number" ? Number(e.value) : e.value]);
  return given.length ? { controls: Object.fromEntries(given) } : {};
}

function clear(root) {
  for (const e of root.querySelectorAll(".output:not(.kept), .source")) e.replaceChildren();
}

function bubble(who, text) {
  const out = make("div", "", { className: "bubble " + who }), body = make("div", text);
  out.append(make("b", say(who)), body);
  $("#messages").append(out);
  out.scrollIntoView({ block: "end" });
  return body;
}

function tokenSpan(token, probability, top) {
  const others = Object.entries(top || {}).map(([t, log]) => `${JSON.stringify(t)} ${(100 * Math.exp(log)).toFixed(1)} %`);
  const span = make("span", token, { className: "token", tabIndex: -1 });
  span.style.setProperty("--p", probability.toFixed(3));
  span.dataset.tip = `${JSON.stringify(token)} ${(100 * probability).toFixed(1)} %\n— ` + others.join("\n— ");
  span.setAttribute("aria-label", span.dataset.tip);
  return span;
}

function bar(label, share, shown) {
  const row = make("div", "", { className: "bar" }), fill = make("i");
  fill.style.width = (100 * share).toFixed(1) + "%";
  const track = make("span", "", { className: "track" });
  track.append(fill);
  row.append(make("span", label, { className: "label" }), track, make("span", shown || (100 * share).toFixed(1) + " %", { className: "value" }));
  return row;
}

/* The text with its words coloured; the words come in the order in which they stand in it. */
function marked(text, words) {
  const most = Math.max(0.02, ...words.map((w) => Math.abs(w.weight)));
  const out = [];
  let at = 0;
  for (const { word, weight } of words) {
    const place = text.indexOf(word, at);
    if (place < 0) continue;
    const span = make("span", word, { className: weight >= 0 ? "for" : "against", title: weight.toFixed(3) });
    span.style.setProperty("--p", (Math.abs(weight) / most).toFixed(3));
    out.push(text.slice(at, place), span);
    at = place + word.length;
  }
  return [...out, text.slice(at)];
}

function showCard() {
  const model = current(), place = $("#card .output");
  place.replaceChildren();
  if (!model) return;
  const { card = {}, gate = {}, current: version = {}, chat_template: own, history = [] } = model.zenspeed;
  const rows = { kind: card.kind, state: version.state, parameters: (card.parameters || 0).toLocaleString(language), layers: card.layers,
    width: card.width, context: card.context, step: card.step, data: card.data, labels: (card.labels || []).join(", "), core: gate.core };
  if (card.kind === "language_model") rows.template = own ? say("own") : say("plain");
  if (gate.worst_logit !== undefined)
    rows.checked = say("within", { x: gate.worst_logit.toExponential(1), y: (100 * gate.same_token).toFixed(1), n: gate.tokens });
  const table = make("table");
  const add = (name, value) => {
    if (value === undefined || value === null || value === "") return;
    const row = make("tr");
    row.append(make("th", name), make("td", String(value)));
    table.append(row);
  };
  for (const [name, value] of Object.entries(rows)) add(say(name), value);
  for (const [name, value] of Object.entries(card.figures || {})) add(name, typeof value === "object" ? JSON.stringify(value) : value);
  place.append(make("h2", model.id), table, ...history.map((line) => make("p", line)));
}

/* Frame -------------------------------------------------------------------------------------------------------------- */

function open(name) {
  if (running) running.abort();
  for (const id of Object.keys(TABS)) {
    $("#" + id).hidden = id !== name;
    const tab = $("#tab-" + id);
    tab.setAttribute("aria-selected", id === name);
    tab.tabIndex = id === name ? 0 : -1;
  }
  $("#tab-" + name).scrollIntoView({ block: "nearest", inline: "nearest" });
  history.replaceState(null, "", "#" + name);
  suit();
}

/* Says where the model cannot do what the open tab is for. */
function suit() {
  const name = Object.keys(TABS).find((id) => !$("#" + id).hidden), model = current(), endpoint = TABS[name];
  const able = models.filter((m) => can(m, endpoint)).map((m) => m.id);
  const fine = !model || name === "compare" || can(model, endpoint);
  notice(fine ? "" : say("notHere", { model: model.id, models: able.join(", ") || say("none") }));
  for (const id of Object.keys(TABS)) $("#tab-" + id).classList.toggle("cannot", !models.some((m) => can(m, TABS[id])));
  const card = (model && model.zenspeed.card) || {}, index = card.kind === "index"; // which has its own documents
  for (const form of ["#answer", "#similar"]) {
    const field = $(form + " [name=text]");
    field.hidden = index;
    field.required = !index && (form === "#similar" || Boolean(card.kind === "span_qa")); // a model that writes answers needs no passage
  }
  if (model && told !== model.id) showControls(card);
  told = model && model.id;
  $("#classify [name=pair]").hidden = !card.pair;
  if (name === "card") showCard();
}

function translatePage() {
  document.documentElement.lang = language;
  for (const e of document.querySelectorAll("[data-t]")) e.textContent = say(e.dataset.t);
  for (const e of document.querySelectorAll("[data-p]")) { e.placeholder = say(e.dataset.p); e.setAttribute("aria-label", say(e.dataset.p)); }
  for (const e of document.querySelectorAll("[data-l]")) e.setAttribute("aria-label", say(e.dataset.l));
  for (const id of Object.keys(TABS)) $("#tab-" + id).textContent = say(id);
  $("#language").textContent = language === "en" ? "中文" : "English";
  $("#language").lang = language === "en" ? "zh" : "en";
  suit();
}

async function loadModels() {
  const kept = ["model", "left", "right"].map((id) => $("#" + id).value);
  models = (await (await ask("v1/models")).json()).data;
  ["model", "left", "right"].forEach((id, i) => {
    const able = id === "model" ? models : models.filter((m) => can(m, "completions"));
    $("#" + id).replaceChildren(...able.map((m) => make("option", m.id, { value: m.id })));
    const wanted = kept[i] || (id === "right" && able[1] ? able[1].id : "");
    if (able.some((m) => m.id === wanted)) $("#" + id).value = wanted;
  });
  suit();
}

function start() {
  for (const name of Object.keys(TABS)) {
    const tab = make("button", "", { id: "tab-" + name, type: "button" });
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", name);
    tab.addEventListener("click", () => open(name));
    $("#tabs").append(tab);
    $("#" + name).setAttribute("aria-labelledby", tab.id);
    const form = $("form", $("#" + name));
    if (form) form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!form.text.value.trim() && name !== "answer") { notice(say("empty")); return; }
      busy($("#" + name), (signal) => WORK[name]($("#" + name), form.elements, signal));
    });
    const stop = $(".stop", $("#" + name));
    if (stop) stop.addEventListener("click", () => running && running.abort());
  }
  $("#tabs").addEventListener("keydown", (event) => {
    const names = Object.keys(TABS), at = names.findIndex((id) => !$("#" + id).hidden), last = names.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = names[(to + names.length) % names.length];
    open(next);
    $("#tab-" + next).focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("#settings").open) { $("#settings").open = false; $("#settings summary").focus(); return; }
    if (event.key === "Escape" && running) running.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) event.target.form.requestSubmit();
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (step && event.target.classList.contains("token")) event.target[step]?.focus();
  });
  $("#complete .tokens").tabIndex = 0;
  $("#complete .tokens").addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight" && event.target === event.currentTarget) $(".token", event.currentTarget)?.focus();
  });
  $("#language").addEventListener("click", () => {
    language = language === "en" ? "zh" : "en";
    localStorage.setItem("language", language);
    translatePage();
  });
  $("#model").addEventListener("change", () => { // what another model has answered goes
    if (running && $("#compare").hidden) running.abort();
    clear($("main"));
    suit();
  });
  $("#key").addEventListener("change", () => loadModels().catch((error) => notice(error.message)));
  $("#forget").addEventListener("click", () => { conversation = []; $("#messages").replaceChildren(); if (running) running.abort(); });
  open(TABS[location.hash.slice(1)] !== undefined ? location.hash.slice(1) : "chat");
  translatePage();
  loadModels().then(() => {
    if (location.hash === "#chat" && !can(current(), "chat")) {
      const first = Object.keys(TABS).find((id) => can(current(), TABS[id]));
      open(first);
    }
  }).catch((error) => notice(error.message));
  setInterval(() => { if (!running && !$("#notice").textContent) loadModels().catch(() => {}); }, 15000);
}

start();
