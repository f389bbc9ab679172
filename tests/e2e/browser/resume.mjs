// A person talks, the call's node goes away, and the call goes on at another node with its transcript. Then a second tab
// with the same token takes the call, and the first one lets it go.
// Usage: PAGE_URL=http://127.0.0.1:8080/ OTHER_URL=http://127.0.0.1:8081/ SPEECH_WAV=speech.wav node resume.mjs
// and one of: KILL_PID (the node's process), DRAIN_URL (the node's operations port, /drain).

import { doing, needed, picture, run } from "./page.mjs";

const BACK_MS = 5000; // from the break until the session is there again

const [url, other] = needed("PAGE_URL", "OTHER_URL");
const { KILL_PID, DRAIN_URL } = process.env;
// What a browser says about a node that is gone, or that refuses because it drains.
const expected = (text) => /ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|code: 503/.test(text);

await run("resume", async (open, context) => {
  const token = await mint();
  // All tabs have the token of one call, as pages have that get it from a backend.
  await context.route("**/page/config.json", async (route) => {
    const answer = await route.fetch();
    await route.fulfill({ response: answer, json: { ...(await answer.json()), token } });
  });
  const tab = await open(url, expected);
  await tab.press("Start call");
  await tab.until("the call is live", () => window.__relay.state === "live" && window.__relay.callId);
  await tab.until("two answers were written down", () => window.__relay.transcript.filter(({ role, done }) => role === "assistant" && done).length > 1);
  const before = await tab.account();

  doing("break the node");
  const brokenAt = performance.now();
  if (KILL_PID) process.kill(Number(KILL_PID), "SIGKILL");
  else await fetch(DRAIN_URL, { method: "POST" });
  await tab.until("the page is back in its call", () => window.__relay.resumes === 1 && window.__relay.state === "live");
  const backMs = Math.round(performance.now() - brokenAt);
  await tab.until("it says so", () => window.__relay.transcript.some(({ role }) => role === "relay"));
  await tab.until("answers are played on", (deltas) => window.__relay.deltas > deltas, before.deltas);
  const after = await tab.account();
  check(backMs < BACK_MS, `it took ${backMs} ms`);
  check(after.callId === before.callId, `another call: ${after.callId}`);
  check(after.node !== before.node, `the same node: ${after.node}`);
  check(after.errors.length === 0, "the page reported errors");
  const kept = before.transcript.filter(({ done }) => done);
  for (const line of kept)
    check(after.transcript.some(({ id, text }) => id === line.id && text === line.text), `not in the transcript: ${line.text}`);
  await picture(tab);

  const second = await open(other, expected);
  await second.press("Start call");
  await second.until("a second tab has the call", (id) => window.__relay.state === "live" && window.__relay.callId === id, before.callId);
  await tab.until("the first tab lets it go", () => window.__relay.state === "ended");
  const [problem] = (await tab.account()).errors;
  check(/4009/.test(problem?.what), `the first tab says: ${problem?.what}`);
  await new Promise((done) => setTimeout(done, 1000)); // a tab that came back would have taken the call by then
  const left = await tab.account();
  check(left.state === "ended" && left.resumes === 1, "the first tab came back");
  check((await second.account()).state === "live", "the second tab lost the call");
  await second.press("Stop call");
  return { backMs, kept: kept.length, lost: after.lost, dropped: after.droppedChunks, from: before.node, to: after.node };
});

async function mint() {
  doing("mint a token");
  const config = await (await fetch(`${url}page/config.json`)).json();
  const answer = await fetch(`${url}v1/realtime/client_secrets`, {
    method: "POST",
    headers: { Authorization: `Bearer ${config.backend_token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ session: { type: "realtime", model: config.model } }),
  });
  return (await answer.json()).value;
}

function check(holds, said) {
  if (!holds) throw new Error(said);
}
