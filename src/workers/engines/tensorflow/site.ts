// One node of a program while the TensorFlow.js engine compiles it: its attributes, its constants and its inputs. An operator
// cannot do what an input or attribute that it does not read asks for. `finish` refuses those, so that no setting is silently
// ignored.

import type * as tfjs from '@tensorflow/tfjs-core';
import { assert, GptdError } from '../../../model/errors.ts';
import type { Attribute, Constant, Node, Value } from '../../../model/programs/graph.ts';

export type Tf = typeof tfjs;
export type Tensor = tfjs.Tensor;
/** The values that one run has computed so far, by name. */
export type Values = ReadonlyMap<string, Tensor>;
/** Reads one input during a run. */
export type Read = (values: Values) => Tensor;
/** Computes a node's outputs, in order; the caller owns them. It may return more than the node asks for. */
export type Kernel = (values: Values) => Tensor[];
/** Compiles a node. */
export type Operator = (site: Site) => Kernel;
/** Holds the operators by their types, or by `domain:type` outside of ONNX's own domain. */
export type OperatorTable = Readonly<Record<string, Operator>>;

export interface SiteOptions {
  readonly graphName: string;
  readonly constants: ReadonlyMap<string, Constant>;
  readonly upload: (constant: Constant) => Tensor;
  /** Keeps the tensor that `make` returns until the program is released. */
  readonly keep: (make: () => Tensor) => Tensor;
  /** Called with the name of each value that runs will read. */
  readonly onRead: (name: Value) => void;
}

export class Site {
  readonly node: Node;
  readonly #options: SiteOptions;
  readonly #inputsRead = new Set<number>();
  readonly #attributesRead = new Set<string>();

  constructor(node: Node, options: SiteOptions) {
    this.node = node;
    this.#options = options;
  }

  /** Throws `engine_failed`: this node asks for something that the engine cannot do. */
  refuse(what: string): never {
    const { op } = this.node;
    throw new GptdError('engine_failed', `TensorFlow.js cannot run ${op} in "${this.#options.graphName}": ${what}.`);
  }

  #attribute(name: string): Attribute | undefined {
    this.#attributesRead.add(name);
    return this.node.attributes[name];
  }

  int(name: string, fallback: number): number {
    const value = this.#attribute(name) ?? fallback;
    return typeof value === 'number' ? value : this.refuse(`${name} is not an integer`);
  }

  flag(name: string): boolean {
    return this.int(name, 0) !== 0;
  }

  float(name: string, fallback: number): number {
    const value = this.#attribute(name) ?? { float: fallback };
    return typeof value === 'object' && 'float' in value ? value.float : this.refuse(`${name} is not a float`);
  }

  text(name: string, fallback: string): string {
    const value = this.#attribute(name) ?? fallback;
    return typeof value === 'string' ? value : this.refuse(`${name} is not a text`);
  }

  ints(name: string): readonly number[] | null {
    const value = this.#attribute(name) ?? null;
    return value === null || Array.isArray(value) ? value : this.refuse(`${name} is not a list of integers`);
  }

  /** Accepts attributes that change how fast or how exactly other engines compute, and change nothing here. */
  ignore(...names: readonly string[]): void {
    for (const name of names) this.#attributesRead.add(name);
  }

  has(index: number): boolean {
    return (this.node.inputs[index] ?? '') !== '';
  }

  #name(index: number): Value {
    this.#inputsRead.add(index);
    const name = this.node.inputs[index] ?? '';
    return name === '' ? this.refuse(`input ${index} is missing`) : name;
  }

  input(index: number): Read {
    const name = this.#name(index);
    this.#options.onRead(name);
    return (values) => {
      const value = values.get(name);
      assert(value !== undefined, `${name} has no value in ${this.#options.graphName}`);
      return value;
    };
  }

  optional(index: number): Read | null {
    return this.has(index) ? this.input(index) : null;
  }

  /** Returns the constant behind an input that the operator has to know before it runs. */
  constant(index: number): Constant {
    const name = this.#name(index);
    return this.#options.constants.get(name) ?? this.refuse(`input ${index} is not a constant`);
  }

  /** Returns a constant list of integers, such as axes, shapes or lengths. */
  integers(index: number): readonly number[] {
    return Array.from(this.constant(index).data, Number);
  }

  /** Reads a list of integers, constant or not. */
  list(index: number): (values: Parameters<Read>[0]) => readonly number[] {
    if (this.#options.constants.has(this.#name(index))) {
      const known = this.integers(index);
      return () => known;
    }
    const read = this.input(index);
    return (values) => Array.from(read(values).dataSync());
  }

  /** Reads an input after `prepare`, which runs only once when the input is a constant. */
  prepared(index: number, prepare: (value: Tensor) => Tensor): Read {
    const name = this.#name(index);
    const known = this.#options.constants.get(name);
    if (known === undefined) {
      const read = this.input(index);
      return (values) => prepare(read(values));
    }
    const kept = this.#options.keep(() => prepare(this.#options.upload(known)));
    return () => kept;
  }

  /** Makes a tensor once, and keeps it until the program is released. */
  keep(make: () => Tensor): Tensor {
    return this.#options.keep(make);
  }

  /** Refuses the node when it has an input or attribute that the operator has not read. */
  finish(): void {
    const unread = this.node.inputs.findIndex((name, index) => name !== '' && !this.#inputsRead.has(index));
    if (unread >= 0) this.refuse(`it has an input ${unread}, which is not known`);
    const unknown = Object.keys(this.node.attributes).find((name) => !this.#attributesRead.has(name));
    if (unknown !== undefined) this.refuse(`it has the attribute ${unknown}, which is not known`);
  }
}
