// The page in headless Chromium: type, stream, stop, switch the model, wrong input, Chinese, a phone, the server gone.
//
//   npm install playwright-core
//   zenspeed serve WRITER JUDGE VECTORS --page --port 8000 & node benchmarks/page.mjs http://127.0.0.1:8000 screenshots $!
//
// Needs Chromium (its path in CHROMIUM, default /usr/bin/chromium), a model that writes, one that gives labels, one of vectors; also
// looked at are a run of seq2seq, one of span_qa and an index with --reader. What no model is there for is left out and named. The last argument, the server's process, is ended for the last check.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(process.cwd() + "/")("playwright-core");
const [address, folder, pid] = process.argv.slice(2);
mkdirSync(folder, { recursive: true });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1100, height: 780 }, locale: "en-US" });
const page = await context.newPage();
const faults = [];
page.on("pageerror", (error) => faults.push(String(error)));
page.on("request", (request) => { if (!request.url().startsWith(address) && !request.url().startsWith("data:")) faults.push("asks for " + request.url()); });

const { data: models } = await (await fetch(address + "/v1/models")).json();
const able = (endpoint, kind) => models.find((m) => m.zenspeed.endpoints.includes(endpoint) && (!kind || m.zenspeed.card.kind === kind))?.id;
const shot = (name) => page.screenshot({ path: `${folder}/${name}.png` });
const tab = (name) => page.click("#tab-" + name);
const text = (selector) => page.textContent(selector);
const set = (id, value) => page.evaluate(([i, v]) => { document.getElementById(i).value = v; }, [id, String(value)]);

async function check(name, endpoint, work, kind) {
  const model = endpoint && able(endpoint, kind);
  if (endpoint && !model) { console.log("left out", name, "(no model for " + endpoint + ")"); return; }
  if (model) { await page.selectOption("#model", model); }
  await work(model);
  assert.deepEqual(faults, []);
  await shot(name);
  console.log("ok", name);
}

await page.goto(address + "/");
await page.waitForFunction(() => document.querySelectorAll("#model option").length > 0);

await check("chat", "chat", async () => {
  await tab("chat");
  await set("max-tokens", 40);
  await page.fill("#chat textarea", "What is a generator?");
  await page.keyboard.press("Control+Enter");
  await page.waitForFunction(() => document.querySelector(".bubble.it")?.textContent.length > 10);
  await page.waitForFunction(() => !document.querySelector("#chat .go").disabled, null, { timeout: 60000 });
  assert.equal(await page.locator(".bubble").count(), 2);
});

await check("stop", "chat", async () => {
  await set("max-tokens", 100000);
  await page.fill("#chat textarea", "Write a long answer.");
  await page.click("#chat .go");
  await page.waitForFunction(() => document.querySelectorAll(".bubble.it")[1]?.textContent.length > 10);
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.querySelector("#chat .go").disabled);
  const length = (await text(".bubble.it:last-child")).length;
  await page.waitForTimeout(400);
  assert.equal((await text(".bubble.it:last-child")).length, length);
  assert.equal(await page.isVisible("#notice"), false);
});

await check("completion", "completions", async () => {
  await tab("complete");
  await set("max-tokens", 40);
  await set("seed", 1);
  await page.fill("#complete textarea", "The function returns");
  await page.click("#complete .go");
  await page.waitForFunction(() => document.querySelectorAll("#complete .token").length >= 10);
  await page.waitForFunction(() => !document.querySelector("#complete .go").disabled);
  await page.hover("#complete .token:nth-of-type(5)");
  assert.match(await page.getAttribute("#complete .token", "data-tip"), /%\n— /);
});

await check("wrong", "completions", async () => {
  await page.fill("#complete textarea", "word ".repeat(3000));
  await page.click("#complete .go");
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(await text("#notice"), /tokens, and the model takes/);
  await page.fill("#complete textarea", "The function returns");
});

await check("labels", "classify", async () => {
  await tab("classify");
  await page.fill("#classify textarea[name=text]", "A wonderful film, though the end is a bit weak.");
  await page.click("#classify .go");
  await page.waitForSelector("#classify .bar");
  assert.ok((await page.locator("#classify .words span").count()) >= 8);
  assert.equal(await text("#classify .words"), "A wonderful film, though the end is a bit weak.");
});

await check("translation", "translate", async (model) => {
  await tab("translate");
  const { controls = {}, length } = models.find((m) => m.id === model).zenspeed.card;
  assert.equal(await page.locator("#translate .controls select").count(), Object.keys(controls).length);
  assert.equal(await page.locator("#translate .controls input").count(), length ? 1 : 0);
  await page.fill("#translate textarea", process.env.SOURCE || "hello"); // of words that the model knows
  await page.keyboard.press("Control+Enter");
  await page.waitForFunction(() => document.querySelector("#translate .output").textContent.length > 0);
  assert.equal(await page.isVisible("#notice"), false);
});

await check("question", "answer", async () => {
  await tab("answer");
  await page.fill("#answer input", "Who wrote the book?");
  await page.fill("#answer textarea", "The book was written by Anna Berg in 1920. 😀 It was printed in Leipzig.");
  await page.click("#answer .go");
  await page.waitForFunction(() => document.querySelector("#answer .text").textContent.length > 0);
  if (await page.locator("#answer mark").count()) {
    assert.equal(await text("#answer mark"), await text("#answer .text"));
    assert.equal(await text("#answer .passage"), await page.inputValue("#answer textarea"));
  }
  await page.selectOption("#model", able("completions"));
  assert.equal(await text("#answer .text"), ""); // no answer stands under another model's name
}, "span_qa");

await check("question-of-an-index", "answer", async () => {
  await tab("answer");
  assert.equal(await page.isVisible("#answer textarea"), false);
  await page.fill("#answer input", "Who wrote the book?");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#answer .text").textContent.length > 0);
}, "index");

await check("search", "search", async () => {
  await tab("similar");
  await page.fill("#similar input", "a cat");
  await page.fill("#similar textarea", "the stock market fell\na cat sleeps on the sofa\nrain is expected tomorrow");
  await page.click("#similar .go");
  await page.waitForSelector("#similar li");
  assert.equal(await page.locator("#similar li").count(), 3);
});

await check("side-by-side", "completions", async () => {
  await tab("compare");
  await page.fill("#compare textarea", "The function");
  await page.click("#compare .go");
  await page.waitForFunction(() => !document.querySelector("#compare .go").disabled, null, { timeout: 60000 });
  assert.ok((await page.locator("#compare .output").allTextContents()).some((written) => written.length > 10));
});

await check("card", null, async () => {
  await tab("card");
  for (const model of models) {
    await page.selectOption("#model", model.id);
    assert.equal(await text("#card h2"), model.id);
  }
});

await check("cannot", "classify", async (judge) => {
  await tab("chat");
  await page.selectOption("#model", judge);
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(await text("#notice"), /cannot do this/);
});

await check("keyboard", null, async () => {
  await page.focus("#tab-chat");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.evaluate(() => document.activeElement.id), "tab-complete");
  assert.equal(await page.isVisible("#complete"), true);
  await page.keyboard.press("End");
  assert.equal(await page.evaluate(() => document.activeElement.id), "tab-card");
  await page.keyboard.press("Home");
  assert.equal(await page.isVisible("#chat"), true);
  await page.focus("#settings summary");
  await page.keyboard.press("Enter");
  assert.equal(await page.isVisible("#temperature"), true);
  await page.keyboard.press("Escape");
  assert.equal(await page.isVisible("#temperature"), false);
});

await check("chinese", "completions", async () => {
  await page.click("#language");
  assert.equal(await text("#tab-classify"), "分类");
  assert.equal(await page.getAttribute("html", "lang"), "zh");
  await page.reload();
  assert.equal(await text("#tab-chat"), "对话");
});

await check("phone", "completions", async () => {
  await page.setViewportSize({ width: 375, height: 700 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `the page is ${wide} px wider than the phone`);
});

if (pid) await check("server-gone", "completions", async () => {
  await page.click("#language");
  process.kill(Number(pid), "SIGKILL");
  await page.waitForTimeout(300);
  await tab("complete");
  await page.fill("#complete textarea", "The");
  await page.click("#complete .go");
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(await text("#notice"), /does not answer/);
});

await browser.close();
