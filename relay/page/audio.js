// The microphone and the loudspeaker, both as 24 kHz mono PCM16. Knows nothing of sockets, events or the page.

const RATE = 24_000;
const LEAD_SECONDS = 0.05; // so that the first chunk after a silence is not late before it starts
// The model sends faster than it speaks. Five minutes is more than any answer takes, and 29 MB of samples.
const MAX_QUEUED_SECONDS = 300;

/** Ask for the microphone and call `onChunk(pcm, level)` for every 20 ms; `onGone()` when the device goes away. */
export async function openMicrophone(onChunk, onGone) {
  if (!navigator.mediaDevices) throw new DOMException("this page is not a secure context", "SecurityError");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  });
  const close = (context) => {
    for (const track of stream.getTracks()) track.stop();
    if (context) void context.close();
  };
  let context;
  try {
    let source;
    [context, source] = listen(stream);
    await context.audioWorklet.addModule("/page/capture-worklet.js");
    const capture = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    capture.port.onmessage = ({ data }) => onChunk(data.pcm, data.level);
    source.connect(capture);
    await context.resume();
  } catch (error) {
    close(context);
    throw error;
  }
  stream.getTracks()[0].onended = onGone; // track.stop() does not fire it, an unplugged device does
  return { close: () => close(context) };
}

function listen(stream) {
  const context = new AudioContext({ sampleRate: RATE });
  try {
    return [context, context.createMediaStreamSource(stream)];
  } catch (error) {
    // Firefox: a context must have the device's own rate. The worklet resamples.
    void context.close();
    if (error.name !== "NotSupportedError") throw error;
    const native = new AudioContext();
    return [native, native.createMediaStreamSource(stream)];
  }
}

/** Plays chunks one behind the other without a gap, and knows how much of each item was heard. */
export class Player {
  #context = new AudioContext({ sampleRate: RATE });
  #analyser = this.#context.createAnalyser();
  #samples = new Float32Array(this.#analyser.fftSize);
  #queue = new Set(); // {item, source, start, end} in context time
  #items = new Map(); // item id → {itemId, contentIndex, finishedMs, receivedMs}
  #end = 0;
  #finishedMs = 0;

  constructor() {
    this.#analyser.connect(this.#context.destination);
  }

  /** Must be called from a click: browsers start no sound without one. */
  async start() {
    await this.#context.resume();
  }

  close() {
    this.stop();
    void this.#context.close();
  }

  get playing() {
    return this.#queue.size > 0;
  }

  /** Milliseconds of model audio that came out of the loudspeaker so far. */
  get playedMs() {
    let ms = this.#finishedMs;
    for (const chunk of this.#queue) ms += this.#heardMs(chunk);
    return Math.floor(ms);
  }

  /** Loudness of what is playing now, 0 to 1 (root mean square). */
  get level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    return Math.sqrt(this.#samples.reduce((sum, sample) => sum + sample * sample, 0) / this.#samples.length);
  }

  /** Queue PCM16 bytes; false if the queue is full and they were dropped. */
  play(itemId, contentIndex, bytes) {
    const samples = Math.floor(bytes.byteLength / 2);
    const now = this.#context.currentTime;
    if (samples === 0) return true;
    if (this.#end - now > MAX_QUEUED_SECONDS) return false;

    const buffer = this.#context.createBuffer(1, samples, RATE);
    const channel = buffer.getChannelData(0);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i < samples; i++) channel[i] = view.getInt16(2 * i, true) / 32768;

    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#analyser);
    const start = this.#end > now ? this.#end : now + LEAD_SECONDS;
    this.#end = start + buffer.duration;
    const item = this.#item(itemId, contentIndex);
    item.receivedMs += buffer.duration * 1000;
    const chunk = { item, source, start, end: this.#end };
    this.#queue.add(chunk);
    source.onended = () => this.#finish(chunk, buffer.duration * 1000);
    source.start(start);
    return true;
  }

  /** Be silent at once; returns what was heard and received of each item: {itemId, contentIndex, heardMs, receivedMs}. */
  stop() {
    const heard = new Map([...this.#items.values()].map((item) => [item, item.finishedMs]));
    for (const chunk of this.#queue) {
      const ms = this.#heardMs(chunk);
      heard.set(chunk.item, heard.get(chunk.item) + ms);
      this.#finishedMs += ms;
      chunk.source.onended = null;
      chunk.source.stop();
      chunk.source.disconnect();
    }
    this.#queue.clear();
    this.#items.clear();
    this.#end = 0;
    return [...heard].map(([{ itemId, contentIndex, receivedMs }, heardMs]) => ({
      itemId,
      contentIndex,
      heardMs: Math.floor(heardMs),
      receivedMs: Math.floor(receivedMs),
    }));
  }

  #heardMs(chunk) {
    const now = this.#context.currentTime - (this.#context.outputLatency || 0);
    return 1000 * Math.max(0, Math.min(now, chunk.end) - chunk.start);
  }

  #finish(chunk, ms) {
    this.#queue.delete(chunk);
    chunk.source.disconnect();
    chunk.item.finishedMs += ms;
    this.#finishedMs += ms;
  }

  #item(itemId, contentIndex) {
    let item = this.#items.get(itemId);
    if (!item) {
      const queued = new Set([...this.#queue].map((chunk) => chunk.item));
      for (const [id, old] of this.#items) if (!queued.has(old)) this.#items.delete(id);
      item = { itemId, contentIndex, finishedMs: 0, receivedMs: 0 };
      this.#items.set(itemId, item);
    }
    return item;
  }
}
