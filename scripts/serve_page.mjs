// Uses the page of a running `backdraft serve` in a real browser, and takes pictures of it.
//
//     npm install playwright-core@1.56.1
//     backdraft serve --model MODEL --adapter DIR --port 8080 &
//     node scripts/serve_page.mjs http://127.0.0.1:8080 /usr/bin/chromium pictures
//
// Checks that a chat is streamed, that base and adapter are compared side by side, that Stop stops, that the page fits a phone, and
// that nothing was refused by its own policy or written to the console as an error.
import assert from "node:assert";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.cwd()}/`)("playwright-core");
const [url, executablePath, folder] = process.argv.slice(2);
mkdirSync(folder, { recursive: true });
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

async function open(options) {
  const page = await browser.newPage(options);
  const problems = [];
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => request.url().startsWith(url) || problems.push(`asks ${request.url()}`));
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#first").options.length > 0);
  return { page, problems };
}

const done = (page) => page.waitForFunction(() => document.querySelector("#stop").hidden, null, { timeout: 120_000 });

async function ask(page, text) {
  await page.fill("#said", text);
  await page.press("#said", "Enter");
}

const { page, problems } = await open({ viewport: { width: 1280, height: 800 }, colorScheme: "light" });
await page.click("#more summary");
await page.fill("#most", "60");
await page.fill("#temperature", "0");
await ask(page, "What is the capital of France?");
await page.waitForFunction(() => document.querySelector(".answer .text").textContent.length > 3);
const early = (await page.textContent(".answer .text")).length;
await done(page);
const first = await page.textContent(".answer .text");
assert(first.length > early, "the answer came at once, not as a stream");
assert(/Paris/.test(first), first);
await page.check("#compare");
await page.click("#more summary");
await ask(page, "And of Italy? Say it in two sentences.");
await done(page);
const turn = page.locator(".turn").nth(1);
assert.equal(await turn.locator(".answer").count(), 2);
const texts = await turn.locator(".answer .text").allTextContents();
assert.notEqual(texts[0], texts[1], "base and adapter say the same");
const boxes = await turn.locator(".answer").evaluateAll((cards) => cards.map((card) => card.getBoundingClientRect().top));
assert.equal(boxes[0], boxes[1], "side by side");
await page.screenshot({ path: `${folder}/wide-light.png` });
await page.click("#more summary");
await page.fill("#most", "2000");
await page.click("#more summary");
await ask(page, "Count from one to a thousand, in words.");
await page.waitForFunction(() => [...document.querySelectorAll(".answer .text")].at(-1).textContent.length > 20);
await page.click("#stop");
await done(page);
assert(/stopped/.test(await page.locator(".notes").last().textContent()));
await page.click("#fresh");
assert.equal(await page.locator(".turn").count(), 0);
assert.deepEqual(problems, []);
await page.close();

const phone = await open({ viewport: { width: 375, height: 720 }, colorScheme: "dark", isMobile: true, deviceScaleFactor: 2 });
await phone.page.check("#compare");
await phone.page.click("#more summary");
await phone.page.fill("#most", "50");
await phone.page.screenshot({ path: `${folder}/phone-settings.png` });
await phone.page.click("#more summary");
await ask(phone.page, "Name three rivers.");
await done(phone.page);
const width = await phone.page.evaluate(() => document.documentElement.scrollWidth);
assert(width <= 375, `the page is ${width} wide on a phone`);
await phone.page.screenshot({ path: `${folder}/phone-dark.png` });
assert.deepEqual(phone.problems, []);
await browser.close();
console.log("all is well");
