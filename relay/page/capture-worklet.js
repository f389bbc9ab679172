// On the audio thread: microphone samples in, 20 ms chunks of 24 kHz PCM16 and their level out. It never waits and
// never talks to the network; the main thread decides what happens to a chunk.

const RATE = 24_000;
const CHUNK_SAMPLES = RATE / 50;

class Capture extends AudioWorkletProcessor {
  #chunk = new Int16Array(CHUNK_SAMPLES);
  #filled = 0;
  #energy = 0;
  // Where the context could not be had at 24 kHz, each output sample is the mean of the input samples it covers: the
  // plainest low-pass, good enough for speech. At 24 kHz every sample passes as it is.
  #phase = 0;
  #sum = 0;
  #count = 0;
  #mean = 0;

  process([input]) {
    for (const sample of input[0] ?? []) {
      this.#sum += sample;
      this.#count += 1;
      this.#phase += RATE / sampleRate;
      while (this.#phase >= 1) {
        this.#phase -= 1;
        if (this.#count > 0) this.#mean = this.#sum / this.#count;
        this.#sum = this.#count = 0;
        this.#push(this.#mean);
      }
    }
    return true;
  }

  #push(sample) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.#chunk[this.#filled++] = clipped * 32767;
    this.#energy += clipped * clipped;
    if (this.#filled < CHUNK_SAMPLES) return;
    const level = Math.sqrt(this.#energy / CHUNK_SAMPLES);
    this.port.postMessage({ pcm: this.#chunk, level }, [this.#chunk.buffer]);
    this.#chunk = new Int16Array(CHUNK_SAMPLES);
    this.#filled = 0;
    this.#energy = 0;
  }
}

registerProcessor("capture", Capture);
