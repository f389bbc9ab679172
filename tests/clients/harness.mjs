// What the client scripts share: settings, test audio, waiting for events, and one JSON line per scenario.
// Knows no client; it never opens a socket.

import { spawnSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

const RATE = 24_000;
const CHUNK_MS = 20;
const TIMEOUT_MS = 30_000;
const SCENARIO_TIMEOUT_MS = 15_000;

/**
 * RELAY_URL (ws:// or wss://, host and port only), RELAY_TOKEN, RELAY_MODEL; RELAY_CA is trusted for TLS.
 * RELAY_BACKEND_URL and RELAY_BACKEND_TOKEN are for side legs: another node of the fleet, and a token that may control.
 */
export function settings() {
  const { RELAY_URL, RELAY_TOKEN, RELAY_MODEL, RELAY_CA, NODE_EXTRA_CA_CERTS } = process.env;
  const { RELAY_BACKEND_URL = RELAY_URL, RELAY_BACKEND_TOKEN = RELAY_TOKEN } = process.env;
  if (RELAY_CA && NODE_EXTRA_CA_CERTS !== RELAY_CA) {
    // Node reads it when it starts and at no other time. The certificate is verified: no client option is touched.
    const env = { ...process.env, NODE_EXTRA_CA_CERTS: RELAY_CA };
    const { status } = spawnSync(process.execPath, process.argv.slice(1), { env, stdio: "inherit" });
    process.exit(status ?? 1);
  }
  const at = (name, value) => {
    if (!URL.canParse(value) || !/^wss?:$/.test(new URL(value).protocol))
      fail(`${name} must be ws://… or wss://…, it is ${value ?? "not set"}`);
    return new URL(value);
  };
  return {
    url: at("RELAY_URL", RELAY_URL),
    token: RELAY_TOKEN ?? "test",
    model: RELAY_MODEL ?? "sim",
    backend: { url: at("RELAY_BACKEND_URL", RELAY_BACKEND_URL), token: RELAY_BACKEND_TOKEN ?? "test" },
  };
}

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(2);
}

/** Events in the order in which they came, and waiting for the next one that fits. */
export class Events {
  #seen = [];
  #read = 0; // what wait() has gone past
  #wake = null;
  #failure = null;

  add(event) {
    this.#seen.push(event);
    this.#wake?.();
  }

  /** The connection is lost: what waits fails with this. */
  end(failure) {
    this.#failure ??= failure;
    this.#wake?.();
  }

  count(type) {
    return this.#seen.filter((event) => event.type === type).length;
  }

  /** The next event of this type (after the last one waited for) that fits. */
  wait(type, fits = () => true) {
    return this.until(type, () => {
      while (this.#read < this.#seen.length) {
        const event = this.#seen[this.#read++];
        if (event.type === type && fits(event)) return event;
      }
      return null;
    });
  }

  /** Look again after every event until `look()` returns something; that is returned. */
  async until(what, look) {
    const deadline = AbortSignal.timeout(SCENARIO_TIMEOUT_MS);
    deadline.onabort = () => this.#wake?.();
    for (;;) {
      const found = look();
      if (found) return found;
      if (this.#failure) throw new Error(`waiting for ${what}: ${this.#failure}`);
      if (deadline.aborted) throw new Error(`no ${what} within ${SCENARIO_TIMEOUT_MS} ms; last events: ${this.#tail()}`);
      await new Promise((resolve) => (this.#wake = resolve));
    }
  }

  #tail() {
    return this.#seen.slice(-8).map((event) => event.type).join(", ") || "none";
  }
}

/** 1.2 s of a 440 Hz tone at -12 dBFS and 1 s of silence, as 20 ms chunks of PCM16, at the pace of speech. */
export async function* speech() {
  const samples = (RATE * CHUNK_MS) / 1000;
  const amplitude = 32767 * 10 ** (-12 / 20);
  const chunks = (1200 + 1000) / CHUNK_MS;
  const began = performance.now();
  for (let chunk = 0; chunk < chunks; chunk++) {
    const pcm = new Int16Array(samples);
    if (chunk * CHUNK_MS < 1200)
      for (let i = 0; i < samples; i++)
        pcm[i] = amplitude * Math.sin((2 * Math.PI * 440 * (chunk * samples + i)) / RATE);
    yield pcm.buffer;
    await sleep(Math.max(0, began + (chunk + 1) * CHUNK_MS - performance.now()));
  }
}

export function check(holds, message) {
  if (!holds) throw new Error(message);
}

/** Run the scenarios named on the command line (all if none), print a JSON line for each, exit non-zero if one fails. */
export async function run(client, scenarios) {
  const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(scenarios);
  const unknown = names.filter((name) => !(name in scenarios));
  if (unknown.length > 0) fail(`no scenario ${unknown.join(", ")}; there are ${Object.keys(scenarios).join(", ")}`);
  let running = names[0];
  const print = (result) => process.stdout.write(`${JSON.stringify({ client, scenario: running, ...result })}\n`);
  const timer = setTimeout(() => {
    print({ ok: false, error: `not finished after ${TIMEOUT_MS} ms` });
    process.exit(1);
  }, TIMEOUT_MS);
  let failed = 0;
  for (running of names) {
    const began = performance.now();
    const took = () => Math.round(performance.now() - began);
    try {
      print({ ok: true, ...(await scenarios[running]()), took_ms: took() });
    } catch (error) {
      failed += 1;
      print({ ok: false, error: error.message, took_ms: took() });
    }
  }
  clearTimeout(timer);
  process.exit(failed > 0 ? 1 : 0);
}
