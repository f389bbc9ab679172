// A person talks, is answered, interrupts, and puts a system message into the call through another node, all by the page's
// own controls.
// Usage: PAGE_URL=http://127.0.0.1:8080/ SPEECH_WAV=speech.wav OUT_PNG=page.png node browser.mjs
// Optional: INJECT_NODE (default: the page's own choice, another node), and those of page.mjs.

import { doing, needed, picture, run, STEP_MS } from "./page.mjs";

const TEXT = "The customer has a gold card.";

const [url] = needed("PAGE_URL");

await run("page", async (open) => {
  const tab = await open(url);
  await tab.press("Start call");
  await tab.until("the call is live", () => window.__relay.state === "live" && window.__relay.callId);
  await tab.until("an answer is played", () => window.__relay.deltas > 0 && window.__relay.playedMs > 0);
  await tab.until("speech during the answer cuts it", () => window.__relay.bargeIns > 0);
  await tab.until("the round trip is measured", () => window.__relay.rttMs !== null);

  doing("put a message into the call through another node");
  const select = tab.page.getByLabel("Through node");
  if (process.env.INJECT_NODE) await select.selectOption(process.env.INJECT_NODE);
  const through = await select.inputValue();
  await tab.page.getByLabel("System message").fill(TEXT);
  await tab.page.getByRole("button", { name: "Send" }).click();
  await tab.until("the receipt is shown", () => !/^Sending|^$/.test(document.getElementById("receipt").textContent));
  const receipt = await tab.page.locator("#receipt").textContent();
  if (!receipt.startsWith("Status: ")) throw new Error(receipt);
  await tab.until(
    "the transcript shows the message",
    (text) => window.__relay.transcript.some((line) => line.role === "system" && line.text === text),
    TEXT,
  );
  await tab.page.locator("#transcript li.system", { hasText: TEXT }).waitFor({ timeout: STEP_MS });
  const live = await tab.account();
  if (through === live.node) throw new Error(`the message went through the call's own node ${live.node}`);
  await picture(tab);

  await tab.press("Stop call");
  await tab.until("the call has ended", () => window.__relay.state === "ended");
  if (live.errors.length > 0) throw new Error("the page reported errors");
  return { through, receipt, ...live };
});
