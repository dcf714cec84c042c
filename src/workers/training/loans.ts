// Loans between the stages of a training: arrays that move from one stage's thread to another's and back. They do not go through
// the main thread, whose garbage collector would run for each of them. The next step of a loan is requested only after the reply
// to the step before, so what a stage takes has always arrived.

import { receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import { assert } from '../../model/errors.ts';
import { transferList } from '../reply.ts';
import { loanArrays, type GradientLoan } from './messages.ts';

export class Loans {
  /** Holds a port for each stage, by the number of the stage at its other end; null stands for this stage. */
  readonly #ports: readonly (MessagePort | null)[];

  constructor(ports: readonly (MessagePort | null)[]) {
    this.#ports = ports;
  }

  /** Moves the arrays of `loan` to a stage: this thread must not touch them again. */
  send(stage: number, key: string, loan: GradientLoan): void {
    this.#port(stage).postMessage({ key, loan }, transferList(loanArrays(loan)));
  }

  /**
   * Returns what a stage has sent under `key`. Loans that it sent earlier belong to a step that was given up: they are dropped.
   */
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
