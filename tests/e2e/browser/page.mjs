// A real Chromium with a recorded voice as its microphone, and the page in it; what all scenarios share.
// Environment: SPEECH_WAV (the voice), OUT_PNG (a picture at the end), CHROMIUM, COLOR_SCHEME (dark), WIDTH (px).

import { createRequire } from "node:module";
import { resolve } from "node:path";

// The packages live with the other clients.
const { chromium } = createRequire(new URL("../../clients/package.json", import.meta.url))("playwright-core");

const TIMEOUT_MS = 60_000;
export const STEP_MS = 20_000;

const { SPEECH_WAV, OUT_PNG, CHROMIUM, COLOR_SCHEME, WIDTH } = process.env;

/** The values of environment variables that must be set. */
export function needed(...names) {
  const missing = [...names, "SPEECH_WAV"].filter((name) => !process.env[name]);
  if (missing.length > 0) {
    process.stderr.write(`must be set: ${missing.join(", ")}\n`);
    process.exit(2);
  }
  return names.map((name) => process.env[name]);
}

/** A tab, and the page's own account of itself. */
export class Tab {
  console_errors = [];
  #ignored;

  /** `ignored` says which of the console's errors are expected. */
  constructor(page, ignored) {
    this.page = page;
    this.#ignored = ignored;
    page.on("console", (message) => {
      if (message.type() === "error") this.#note(`${message.text()} ${message.location().url}`);
    });
    page.on("pageerror", (error) => this.#note(error.message));
  }

  account() {
    return this.page.evaluate(() => structuredClone({ ...window.__relay }));
  }

  /** Wait until the page's own account of itself fits. */
  async until(what, fits, argument) {
    doing(what);
    await this.page.waitForFunction(fits, argument, { polling: 50, timeout: STEP_MS }).catch((error) => {
      throw new Error(`${what}: ${error.message.split("\n")[0]}`);
    });
  }

  async press(name) {
    doing(`press ${name}`);
    await this.page.getByRole("button", { name }).click({ timeout: STEP_MS });
  }

  #note(text) {
    // Chromium asks every site for an icon; the page has none.
    if (!text.endsWith("/favicon.ico") && !this.#ignored(text)) this.console_errors.push(text);
  }
}

let step = "start the browser";

/** Name what is being done, for the report of a failure. */
export function doing(what) {
  step = what;
}

/**
 * Run a scenario: a function of `open(url, ignored)`, which opens a tab, that returns what to report. Ends the process.
 */
export async function run(name, scenario) {
  const tabs = [];
  let browser;
  const report = async (result) => {
    const console_errors = tabs.flatMap((tab) => tab.console_errors);
    const client = `chromium ${browser?.version() ?? "that did not start"}`;
    process.stdout.write(`${JSON.stringify({ client, scenario: name, ...result, console_errors })}\n`);
    await browser?.close();
    process.exit(result.ok ? 0 : 1);
  };
  setTimeout(() => {
    process.stdout.write(`${JSON.stringify({ scenario: name, ok: false, error: `stuck at: ${step}` })}\n`);
    process.exit(1); // playwright-core kills the browser at exit
  }, TIMEOUT_MS);
  try {
    browser = await launch();
    const context = await browser.newContext({
      colorScheme: COLOR_SCHEME === "dark" ? "dark" : "light",
      viewport: { width: Number(WIDTH ?? 1100), height: 800 },
    });
    const open = async (url, ignored = () => false) => {
      doing(`open ${url}`);
      const tab = new Tab(await context.newPage(), ignored);
      tabs.push(tab);
      await tab.page.goto(url);
      return tab;
    };
    const result = await scenario(open, context);
    const errors = tabs.flatMap((tab) => tab.console_errors);
    if (errors.length > 0) throw new Error("the browser's console has errors");
    await report({ ok: true, ...result });
  } catch (error) {
    const said = error.message.includes(step) ? error.message : `${step}: ${error.message}`;
    if (tabs[0] && OUT_PNG) await tabs[0].page.screenshot({ path: OUT_PNG, fullPage: true }).catch(() => {});
    const states = await Promise.all(tabs.map((tab) => tab.account().catch(() => ({}))));
    await report({ ok: false, error: said, tabs: states });
  }
}

/** Leave a picture of the page, where one is wanted. */
export async function picture(tab) {
  if (OUT_PNG) await tab.page.screenshot({ path: OUT_PNG, fullPage: true });
}

function launch() {
  return chromium.launch({
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
}
