// For every way that something fails: what happened and what the person can do. Pure: text in, text out.
// A problem is {what, todo}.

const MICROPHONE = {
  NotAllowedError: ["The microphone was refused.", "Allow it for this page in the address bar, then start again."],
  NotFoundError: ["No microphone was found.", "Plug one in, then start again."],
  NotReadableError: ["The microphone is in use by another program.", "Close that program, then start again."],
  SecurityError: [
    "Browsers give the microphone only to https:// pages and to localhost.",
    "Open this page over https://, or at http://localhost or http://127.0.0.1.",
  ],
};

const CLOSE = {
  1001: "Start a new call.",
  1002: "Reload the page; if it happens again, this page has a bug.",
  1003: "Reload the page; if it happens again, this page has a bug.",
  1007: "Reload the page; if it happens again, this page has a bug.",
  1008: "A new call meets the same refusal until its cause is mended: read the reason.",
  1009: "A message was larger than the node takes. Start a new call.",
  1011: "Something failed at the relay or the model. Start a new call.",
  1012: "The node restarts. Start again: another node takes the call.",
  1013: "The relay or the model has no room, or this connection was too slow. Wait a few seconds, then start again.",
  3000: "The token or the key was refused. Start again: each call fetches a new token.",
  4009: "The call goes on where it was opened last.",
};

const EVENT = {
  session_expired: "Start a new call.",
  invalid_api_key: "The operator has to mend the key.",
  insufficient_quota: "The operator has to raise the quota.",
  rate_limit_exceeded: "Wait a moment, then go on.",
  response_cancel_not_active: "Harmless: there was nothing left to stop.",
};

/** The microphone could not be had. */
export function forMicrophone(error) {
  const [what, todo] = MICROPHONE[error.name] ?? [
    `The microphone cannot be used: ${error.message}`,
    "Try another microphone or browser.",
  ];
  return { what, todo };
}

/** The page's own settings could not be fetched; `status` is 0 if no answer came. */
export function forConfig(status) {
  return status === 0
    ? { what: "The node does not answer.", todo: "Check that it runs, then start again." }
    : { what: `The node has no settings for this page (HTTP ${status}).`, todo: "This page is served in development and demos only." };
}

/**
 * The socket closed; null if that is a plain end of a call. `opened` is whether it ever was open: browsers are not told
 * why an upgrade was refused, so the token's own expiry is what can be looked at. `gaveUp`: it was tried to come back.
 */
export function forClose({ code, reason, opened, expired, gaveUp }) {
  if (code === 1000) return null;
  if (gaveUp)
    return {
      what: "The connection broke, and the call could not be resumed within half a minute.",
      todo: "Check your network, then start a new call.",
    };
  const said = reason ? `: ${reason}` : "";
  if (code === 1006) {
    if (opened) return { what: "The connection broke.", todo: "Check your network, then start again." };
    if (expired)
      return {
        what: "The node refused the call: the token has expired.",
        todo: "Start again for a new one. If that expires at once too, set this computer's clock.",
      };
    return {
      what: "The node refused the call or cannot be reached; a browser is not told which.",
      todo: "See whether it answers (node round trip); its log names the reason. Then start again.",
    };
  }
  return { what: `The call was closed with ${code}${said}.`, todo: CLOSE[code] ?? "Start a new call." };
}

/** The call was resumed: what was kept and what was lost, in one line. */
export function forResumed({ node, model, kept, lost }) {
  const said = [`The call goes on at ${node}.`];
  if (model === "rebuilt") said.push(`Kept of the conversation: ${count(kept?.items ?? 0, "item")}.`);
  if (lost?.items) said.push(`Not kept: ${count(lost.items, "item")}.`);
  if (lost?.response) said.push("An answer was cut off.");
  if (lost?.turn) said.push("What you were saying was lost: say it again.");
  if (!lost?.items && !lost?.response && !lost?.turn) said.push("Nothing was lost.");
  return said.join(" ");
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** An `error` event of the Realtime API: most leave the call alive. */
export function forEvent(error) {
  const code = error?.code ? ` (${error.code})` : "";
  return { what: `${error?.message ?? "An error without a message."}${code}`, todo: EVENT[error?.code] ?? "The call goes on." };
}

/** A response that failed. */
export function forResponse(details) {
  const error = details?.error;
  return {
    what: `The model could not answer: ${error?.message ?? error?.code ?? "no reason given"}.`,
    todo: EVENT[error?.code] ?? "Say it again.",
  };
}

/** The node did not take an injected message; `status` is 0 if the browser got no answer. */
export function forInjection(node, status, error) {
  if (status === 0)
    return {
      what: `Node ${node} cannot be reached from this page.`,
      todo: "It is down, or its RELAY_ALLOWED_ORIGINS lacks this page's origin.",
    };
  const code = error?.code ? `, ${error.code}` : "";
  const todo = { 401: "Reload the page.", 410: "Start a new call." }[status] ?? "";
  return { what: `Node ${node} refused it (${status}${code}): ${error?.message ?? "no reason given"}`, todo };
}
