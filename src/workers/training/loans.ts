// Loans between the stages of a training: arrays that move from one stage's thread to another's and back without a way over
// the main thread, whose collector would run for each of them. Whoever orders the next step of a loan does so when the one
// before has been answered, so what is asked for has always come.

import { receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import { assert } from '../../model/errors.ts';
import { transferList } from '../reply.ts';
import { loanArrays, type GradientLoan } from './messages.ts';

export class Loans {
  /** By the number of the stage at the other end; null is this one. */
  readonly #ports: readonly (MessagePort | null)[];

  constructor(ports: readonly (MessagePort | null)[]) {
    this.#ports = ports;
  }

  /** Moves the arrays of `loan` to a stage. */
  send(stage: number, key: string, loan: GradientLoan): void {
    this.#port(stage).postMessage({ key, loan }, transferList(loanArrays(loan)));
  }

  /** What a stage has sent under `key`. What it has sent before is of a step that was given up, and dropped. */
  take(stage: number, key: string): GradientLoan {
    for (;;) {
      const received = receiveMessageOnPort(this.#port(stage)) as
        { message: { key: string; loan: GradientLoan } } | undefined;
      assert(received !== undefined, `stage ${stage} has sent no ${key}`);
      if (received.message.key === key) return received.message.loan;
    }
  }

  close(): void {
    for (const port of this.#ports) port?.close();
  }

  #port(stage: number): MessagePort {
    const port = this.#ports[stage];
    assert(port !== null, 'a stage lends nothing to itself');
    return port;
  }
}
