// Decisions on their way to the server. Each has an id of its own, so that sending it twice counts once; each waits in
// the browser's storage until the server has confirmed it, so that a lost connection or a closed lid loses nothing.

const PREFIX = "synthvision-outbox:";
const PAUSES = [200, 500, 1000, 2000, 5000]; // milliseconds before the next attempt

export class Outbox {
  // `prepare(entry)` gives what is sent; `settled(entry, answer)` is called once the server has answered;
  // `changed(waiting, failures, locked)` whenever the number of those that wait changes, or an attempt failed;
  // locked: the server no longer knows this browser.
  constructor(prepare, settled, changed) {
    Object.assign(this, { prepare, settled, changed, entries: [], busy: false, failures: 0, locked: false });
    window.addEventListener("online", () => this.wake?.());
  }

  // Kept at once, sent after the next frame: the image that follows comes first. A hidden page draws no frames.
  add(entry) {
    this.entries.push(entry);
    this.keep(entry);
    requestAnimationFrame(() => setTimeout(() => this.work()));
    setTimeout(() => this.work(), 100);
  }

  // Sends what an earlier visit left behind.
  recover(owner) {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(`${PREFIX}${owner}:`));
    const left = keys.map((key) => JSON.parse(localStorage.getItem(key)));
    this.entries.push(...left.sort((first, second) => first.at - second.at));
    return this.work();
  }

  keep(entry) {
    localStorage.setItem(`${PREFIX}${entry.owner}:${entry.id}`, JSON.stringify(entry));
  }

  // One at a time and in order: an undo must not overtake what it undoes.
  async work() {
    if (this.busy) return;
    this.busy = true;
    while (this.entries.length) {
      const entry = this.entries[0];
      this.changed(this.entries.length, this.failures, this.locked);
      if (!entry.body) {
        entry.body = this.prepare(entry);
        this.keep(entry);
      }
      const answer = await this.send(entry.body);
      if (!answer) {
        const pause = PAUSES[Math.min(this.failures++, PAUSES.length - 1)];
        this.changed(this.entries.length, this.failures, this.locked);
        await new Promise((resolve) => {
          this.wake = resolve;
          setTimeout(resolve, pause);
        });
        continue;
      }
      this.failures = 0;
      this.entries.shift();
      localStorage.removeItem(`${PREFIX}${entry.owner}:${entry.id}`);
      this.settled(entry, answer);
    }
    this.busy = false;
    this.changed(0, 0, false);
  }

  // Returns status and content of the server's answer; null where there was none that counts.
  async send(body) {
    try {
      const response = await fetch("/api/decisions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(10_000),
      });
      this.locked = response.status === 401;
      if (response.status >= 500 || this.locked) return null;
      return { status: response.status, content: await response.json() };
    } catch {
      return null;
    }
  }
}
