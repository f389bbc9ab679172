// The socket of a call, and those that come after it: opened again where a close invites to it and the relay has said
// how, at the page's own origin first, then at the other nodes. Holds the microphone's last two seconds meanwhile.
// Never decides what an event means for the call: it looks only for what coming back needs.

const INVITES = new Set([1001, 1006, 1011, 1012, 1013]);
const FIRST_DELAY_MS = 200;
const LONGEST_DELAY_MS = 3000;
const GIVE_UP_MS = 30_000; // as long as a call waits for its client
const OPEN_MS = 5000; // for one attempt, until the session is there
const MAX_HELD = 100; // chunks of 20 ms: what was said longer ago would come as an answer to nothing
const MAX_BUFFERED_BYTES = 1_000_000; // about 15 s of audio that the network did not take: older than anyone wants to hear
const PATH = "/v1/realtime";

export class Connection {
  resumes = 0;
  droppedChunks = 0;

  #socket = null;
  #origins;
  #token;
  #on;
  #resume = null; // {url, token, expires_at}, once the relay has said it
  #lastEventId = null;
  #opened = false; // some socket was
  #live = false; // this socket's session was created
  #held = []; // chunks that were spoken while there was none
  #lostAt = null; // since when the call has no connection
  #attempt = 0;
  #timer = 0;

  /**
   * `origins` are ws(s) origins, the page's own first. `on` has event(event), lost() when the connection is gone and is
   * being opened again, and closed({code, reason, opened, expired, gaveUp}) when the call is over.
   */
  constructor({ origins, model, token, on }) {
    this.#origins = origins;
    this.#token = token;
    this.#on = on;
    this.#open(`${origins[0]}${PATH}?model=${encodeURIComponent(model)}`, token);
  }

  /** False where there is no connection to take it. */
  send(event) {
    const takes = this.#live && this.#socket?.readyState === WebSocket.OPEN;
    if (takes) this.#socket.send(JSON.stringify(event));
    return takes;
  }

  /** Send 20 ms of microphone; hold them while the connection is being opened again; count what is dropped. */
  sendAudio(pcm) {
    const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
    const event = { type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...bytes)) };
    if (this.#live && this.#socket.bufferedAmount > MAX_BUFFERED_BYTES) this.droppedChunks += 1;
    else if (!this.send(event) && this.#resume !== null) this.#hold(event);
  }

  close() {
    const socket = this.#socket;
    this.#abandon();
    socket?.close(1000, "the person hung up");
  }

  #hold(event) {
    this.#held.push(event);
    if (this.#held.length <= MAX_HELD) return;
    this.#held.shift();
    this.droppedChunks += 1;
  }

  #open(url, token) {
    const socket = new WebSocket(url, ["relay.events.v1", "realtime", `openai-insecure-api-key.${token}`]);
    this.#socket = socket;
    socket.onopen = () => (this.#opened = true);
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  #receive(event) {
    if (event.event_id) this.#lastEventId = event.event_id;
    if (event.type === "relay.started" || event.type === "relay.resumed") this.#resume = event.resume ?? this.#resume;
    if (event.type !== "session.created" || this.#live) {
      this.#on.event(event);
      return;
    }
    clearTimeout(this.#timer);
    this.#live = true;
    if (this.#lostAt !== null) this.resumes += 1;
    this.#lostAt = null;
    this.#attempt = 0;
    this.#on.event(event);
    for (const held of this.#held.splice(0)) this.send(held);
  }

  #closed(code, reason) {
    this.#abandon();
    const mayReturn = this.#resume !== null && INVITES.has(code);
    const gaveUp = this.#lostAt !== null && performance.now() - this.#lostAt > GIVE_UP_MS;
    if (!mayReturn || gaveUp) {
      this.#on.closed({ code, reason, opened: this.#opened, expired: expired(this.#resume?.token ?? this.#token), gaveUp });
      return;
    }
    if (this.#lostAt === null) {
      this.#lostAt = performance.now();
      this.#on.lost();
    }
    const delay = Math.min(FIRST_DELAY_MS * 2 ** this.#attempt, LONGEST_DELAY_MS);
    this.#timer = setTimeout(() => this.#return(), delay * (0.5 + Math.random() / 2));
  }

  #return() {
    const { url, token } = this.#resume;
    const origins = [...new Set([this.#origins[0], new URL(url).origin, ...this.#origins])];
    const origin = origins[this.#attempt % origins.length];
    this.#attempt += 1;
    const seen = this.#lastEventId ? `?last_event_id=${encodeURIComponent(this.#lastEventId)}` : "";
    this.#timer = setTimeout(() => this.#hung(), OPEN_MS);
    this.#open(`${origin}${PATH}${seen}`, token);
  }

  #hung() {
    const socket = this.#socket;
    this.#closed(1006, "");
    socket.close();
  }

  #abandon() {
    clearTimeout(this.#timer);
    this.#live = false;
    if (this.#socket) this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket = null;
  }
}

function expired(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return claims.exp * 1000 < Date.now();
  } catch {
    return false; // not a JWT: nothing can be said
  }
}
