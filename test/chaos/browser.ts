// A real Chromium without a window, driven over its debugging pipe. It opens pages of any origin and evaluates scripts in them. Names
// that a row invents lead to this machine, and no other name leads anywhere.

import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import type { Readable, Writable } from 'node:stream';

export const CHROMIUM = 'chromium';
const ANSWER_MS_MAX = 30_000;

interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly sessionId?: string;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}

interface Evaluated {
  readonly result: { readonly value?: unknown };
  readonly exceptionDetails?: { readonly text: string; readonly exception?: { readonly description?: string } };
}

/** A loaded document. Its scripts run with its origin. */
export interface Page {
  /** Resolves to the value of the expression, or of the promise that it makes. Rejects with what it throws. */
  evaluate(expression: string): Promise<unknown>;
  close(): Promise<void>;
}

export class Browser {
  readonly #child: ChildProcess;
  readonly #profile = mkdtempSync(path.join(tmpdir(), 'gptd-chromium-'));
  readonly #ended: Promise<void>;
  readonly #waiting = new Set<(message: Message) => void>();
  #lastId = 0;

  constructor({ localNames }: { readonly localNames: readonly string[] }) {
    const rules = [
      ...localNames.map((name) => `MAP ${name} 127.0.0.1`),
      'MAP * ~NOTFOUND',
      ...['127.0.0.1', '127.0.0.2', 'localhost'].map((name) => `EXCLUDE ${name}`),
    ];
    const flags = [
      ...['--headless', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-sync'],
      ...['--disable-component-update', '--disable-dev-shm-usage', '--remote-debugging-pipe'],
      // Chromium's own sandbox refuses to run as root.
      ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []),
      `--user-data-dir=${this.#profile}`,
      `--host-resolver-rules=${rules.join(', ')}`,
    ];
    // Chromium and its children are one process group, so that all of them can be killed.
    this.#child = spawn(CHROMIUM, [...flags, 'about:blank'], {
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
      detached: true,
    });
    this.#ended = new Promise((resolve) => this.#child.once('close', () => resolve()).once('error', () => resolve()));
    const pipe = this.#child.stdio[4] as Readable;
    let text = '';
    pipe.setEncoding('utf8').on('data', (data: string) => {
      const messages = (text + data).split('\0');
      text = messages.pop() ?? '';
      for (const message of messages) this.#heard(JSON.parse(message) as Message);
    });
    (this.#child.stdio[3] as Writable).on('error', () => undefined);
  }

  /** Resolves when the page is loaded, whatever the status of the reply was. */
  async open(url: string): Promise<Page> {
    const { targetId } = await this.#call<{ targetId: string }>('Target.createTarget', { url: 'about:blank' });
    const attach = { targetId, flatten: true };
    const { sessionId } = await this.#call<{ sessionId: string }>('Target.attachToTarget', attach);
    await this.#call('Page.enable', {}, sessionId);
    const loaded = this.#message(
      (message) => message.sessionId === sessionId && message.method === 'Page.loadEventFired',
      `${url} is loaded`,
    );
    await this.#call('Page.navigate', { url }, sessionId);
    await loaded;
    return {
      evaluate: async (expression) => {
        const options = { expression, awaitPromise: true, returnByValue: true };
        const { result, exceptionDetails } = await this.#call<Evaluated>('Runtime.evaluate', options, sessionId);
        if (exceptionDetails === undefined) return result.value;
        throw new Error(`${exceptionDetails.text} ${exceptionDetails.exception?.description ?? ''}`);
      },
      close: async () => {
        await this.#call('Target.closeTarget', { targetId });
      },
    };
  }

  async close(): Promise<void> {
    if (this.#child.pid !== undefined && this.#child.exitCode === null) process.kill(-this.#child.pid, 'SIGKILL');
    await this.#ended;
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }

  async #call<T>(method: string, params: object, sessionId?: string): Promise<T> {
    const id = ++this.#lastId;
    const answer = this.#message((message) => message.id === id, `${method} is answered`);
    (this.#child.stdio[3] as Writable).write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    const { result, error } = await answer;
    if (error !== undefined) throw new Error(`Chromium on ${method}: ${error.message}`);
    return result as T;
  }

  #heard(message: Message): void {
    for (const wait of this.#waiting) wait(message);
  }

  async #message(wanted: (message: Message) => boolean, what: string): Promise<Message> {
    return await new Promise((resolve, reject) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(wait);
      };
      const wait = (message: Message): void => {
        if (!wanted(message)) return;
        done();
        resolve(message);
      };
      const fail = (why: string): void => {
        done();
        reject(new Error(`${why} before ${what}`));
      };
      const timer = setTimeout(() => fail(`${ANSWER_MS_MAX} ms passed`), ANSWER_MS_MAX);
      void this.#ended.then(() => fail('Chromium has ended'));
      this.#waiting.add(wait);
    });
  }
}
