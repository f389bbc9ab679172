// The page in a real Chromium, with a recorded voice as its microphone: talks, is answered, interrupts, and puts a
// system message into the call through another node, all by the page's own controls.
// Usage: PAGE_URL=http://127.0.0.1:8080/ SPEECH_WAV=speech.wav OUT_PNG=page.png node browser.mjs
// Optional: INJECT_NODE (default: the page's own choice, another node), CHROMIUM, COLOR_SCHEME (dark), WIDTH (px).

import { createRequire } from "node:module";
import { resolve } from "node:path";

// The packages live with the other clients.
const { chromium } = createRequire(new URL("../../clients/package.json", import.meta.url))("playwright-core");

const TIMEOUT_MS = 60_000;
const STEP_MS = 20_000;
const TEXT = "The customer has a gold card.";

const { PAGE_URL, SPEECH_WAV, OUT_PNG, INJECT_NODE, CHROMIUM, COLOR_SCHEME, WIDTH } = process.env;
if (!PAGE_URL || !SPEECH_WAV) {
  process.stderr.write("PAGE_URL and SPEECH_WAV must be set\n");
  process.exit(2);
}

const browser = await chromium.launch({
  executablePath: CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  timeout: STEP_MS,
  args: [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    `--use-file-for-fake-audio-capture=${resolve(SPEECH_WAV)}`,
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const console_errors = [];
let page;
let step = "open the page";

const account = () => page.evaluate(() => structuredClone({ ...window.__relay }));
const picture = () => OUT_PNG && page.screenshot({ path: OUT_PNG, fullPage: true });

async function finish(result) {
  process.stdout.write(`${JSON.stringify({ client: `chromium ${browser.version()}`, scenario: "page", ...result, console_errors })}\n`);
  await browser.close();
  process.exit(result.ok ? 0 : 1);
}

setTimeout(() => {
  process.stdout.write(`${JSON.stringify({ client: "chromium", scenario: "page", ok: false, error: `stuck at: ${step}` })}\n`);
  process.exit(1); // playwright-core kills the browser at exit
}, TIMEOUT_MS);

/** Wait until the page's own account of itself fits. */
async function until(what, fits, argument) {
  step = what;
  await page.waitForFunction(fits, argument, { polling: 100, timeout: STEP_MS }).catch((error) => {
    throw new Error(`${what}: ${error.message.split("\n")[0]}`);
  });
}

try {
  page = await browser.newPage({
    colorScheme: COLOR_SCHEME === "dark" ? "dark" : "light",
    viewport: { width: Number(WIDTH ?? 1100), height: 800 },
  });
  page.on("console", (message) => {
    const { url } = message.location();
    // Chromium asks every site for one; the page has none.
    if (message.type() === "error" && !url.endsWith("/favicon.ico")) console_errors.push(`${message.text()} ${url}`);
  });
  page.on("pageerror", (error) => console_errors.push(error.message));
  await page.goto(PAGE_URL);
  step = "press Start call";
  await page.getByRole("button", { name: "Start call" }).click({ timeout: STEP_MS });
  await until("the call is live", () => window.__relay.state === "live" && window.__relay.callId);
  await until("an answer is played", () => window.__relay.deltas > 0 && window.__relay.playedMs > 0);
  await until("speech during the answer cuts it", () => window.__relay.bargeIns > 0);
  await until("the round trip is measured", () => window.__relay.rttMs !== null);

  step = "put a message into the call through another node";
  const select = page.getByLabel("Through node");
  if (INJECT_NODE) await select.selectOption(INJECT_NODE);
  const through = await select.inputValue();
  await page.getByLabel("System message").fill(TEXT);
  await page.getByRole("button", { name: "Send" }).click();
  await until("the receipt is shown", () => !/^Sending|^$/.test(document.getElementById("receipt").textContent));
  const receipt = await page.locator("#receipt").textContent();
  if (!receipt.startsWith("Status: ")) throw new Error(receipt);
  await until(
    "the transcript shows the message",
    (text) => window.__relay.transcript.some((line) => line.role === "system" && line.text === text),
    TEXT,
  );
  await page.locator("#transcript li.system", { hasText: TEXT }).waitFor({ timeout: STEP_MS });
  const own = await page.evaluate(() => window.__relay.node);
  if (through === own) throw new Error(`the message went through the call's own node ${own}`);
  await picture();

  step = "press Stop call";
  const live = await account();
  await page.getByRole("button", { name: "Stop call" }).click();
  await until("the call has ended", () => window.__relay.state === "ended");
  if (live.errors.length > 0) throw new Error("the page reported errors");
  if (console_errors.length > 0) throw new Error("the browser's console has errors");
  await finish({ ok: true, through, receipt, ...live });
} catch (error) {
  await picture()?.catch(() => {});
  const state = await account().catch(() => ({}));
  await finish({ ok: false, error: error.message.includes(step) ? error.message : `${step}: ${error.message}`, ...state });
}
