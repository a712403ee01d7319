// Asks the server what is new, with the key if it wants one.

const KEY = "cdsp-key";
const BUSY_MS = 400;
const IDLE_MS = 500;
const AGAIN_MS = 2000;
const WITHIN_MS = 8000;

export class Feed {
  /**
   * `hear(answer, sentMs, heardMs)` takes an answer and returns whether something runs;
   * `state(name, words)` hears how the link is: live, wait, key, lost, hidden.
   */
  constructor(hear, state) {
    this.hear = hear;
    this.state = state;
    this.next = 0;
    this.timer = null;
    this.asking = false;
    document.addEventListener("visibilitychange", () => this.start());
  }

  /** Use a key from now on. */
  use(key) {
    sessionStorage.setItem(KEY, key);
    this.start();
  }

  /** Ask now, and go on asking while the page can be seen. */
  start() {
    clearTimeout(this.timer);
    if (document.hidden) {
      this.state("hidden", "paused while hidden");
    } else if (!this.asking) {
      this.ask();
    }
  }

  async ask() {
    this.asking = true;
    let wait = AGAIN_MS;
    try {
      wait = await this.once();
    } catch (error) {
      const words = error.name === "TimeoutError" ? "no answer in time" : "no answer";
      this.state("lost", words);
    }
    this.asking = false;
    clearTimeout(this.timer);
    if (wait !== null && !document.hidden) this.timer = setTimeout(() => this.ask(), wait);
  }

  /** One question; returns after how many ms to ask again, null for not at all. */
  async once() {
    const key = sessionStorage.getItem(KEY);
    const sent = performance.now();
    const response = await fetch(`cdsp/timeline?since=${this.next}`, {
      headers: key ? { Authorization: `Bearer ${key}` } : {},
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(WITHIN_MS),
    });
    if (response.status === 401 || response.status === 403) {
      sessionStorage.removeItem(KEY);
      this.state("key", key ? "the key was refused" : "a key is needed");
      return null;
    }
    const answer = await response.json();
    if (!response.ok) {
      this.state("lost", answer?.error?.message ?? `status ${response.status}`);
      return AGAIN_MS;
    }
    if (this.epoch !== undefined && this.epoch !== answer.epoch && this.next > 0) {
      // Another start of the server: what it was asked for was the former one's.
      this.epoch = answer.epoch;
      this.next = 0;
      return 0;
    }
    this.epoch = answer.epoch;
    this.next = answer.next;
    const busy = this.hear(answer, sent, performance.now());
    this.state("live", "live");
    if (answer.more) return 0;
    return busy ? BUSY_MS : IDLE_MS;
  }
}
