// A computation as data: ONNX nodes over named values. Layers emit nodes into a Graph, and an engine compiles the Graph. The node
// types, attributes and domains are ONNX's own (opset 20, and com.microsoft where a fused form exists). There is no automatic
// differentiation and no shape inference.

import { assert } from '../errors.ts';

export const OPSET = 20;
/** The domain of ONNX Runtime's own operators, such as FusedMatMul: a MatMul with transposed sides and a factor. */
export const MICROSOFT = 'com.microsoft';

export type ElementType = 'float32' | 'int64' | 'uint8';

/** The name of a value of one graph. The type is branded, so that a plain string cannot be passed for it. */
export type Value = string & { readonly __value: true };

export type Attribute = number | string | readonly number[] | { readonly float: number };

export interface Node {
  readonly op: string;
  readonly domain: string;
  readonly inputs: readonly (Value | '')[];
  readonly outputs: readonly Value[];
  /** A plain number is an ONNX integer; a float is wrapped as {float}. */
  readonly attributes: Readonly<Record<string, Attribute>>;
}

export interface GraphInput {
  readonly name: Value;
  readonly type: ElementType;
  /** A string is a symbolic length. */
  readonly dims: readonly (number | string)[];
}

export interface Constant {
  readonly name: Value;
  readonly type: ElementType;
  readonly dims: readonly number[];
  readonly data: Float32Array | BigInt64Array | Uint8Array;
}

/** A finished program, which an engine can compile. */
export interface Graph {
  readonly name: string;
  readonly inputs: readonly GraphInput[];
  readonly outputs: readonly { readonly name: Value; readonly type: ElementType }[];
  readonly nodes: readonly Node[];
  readonly constants: readonly Constant[];
}

interface NodeOptions {
  readonly domain?: string;
}

/** Collects the inputs, constants, nodes and outputs of a program. `build` returns the finished Graph. */
export class GraphBuilder {
  readonly #name: string;
  readonly #inputs: GraphInput[] = [];
  readonly #outputs: { name: Value; type: ElementType }[] = [];
  readonly #nodes: Node[] = [];
  readonly #constants: Constant[] = [];
  readonly #scalars = new Map<number, Value>();
  readonly #renamed = new Map<Value, Value>();
  #count = 0;

  constructor(name: string) {
    this.#name = name;
  }

  input(name: string, dims: readonly (number | string)[], type: ElementType = 'float32'): Value {
    this.#inputs.push({ name: name as Value, type, dims });
    return name as Value;
  }

  /** Adds a constant tensor. The array is kept, not copied. */
  constant(data: Float32Array | BigInt64Array | Uint8Array, dims: readonly number[]): Value {
    const type = data instanceof Float32Array ? 'float32' : data instanceof BigInt64Array ? 'int64' : 'uint8';
    const name = this.#fresh('constant');
    this.#constants.push({ name, type, dims, data });
    return name;
  }

  /** Adds a float32 scalar, which every use of the same number shares. */
  scalar(value: number): Value {
    let name = this.#scalars.get(value);
    if (name === undefined) {
      name = this.constant(Float32Array.of(value), []);
      this.#scalars.set(value, name);
    }
    return name;
  }

  /** Adds a list of int64, such as axes, a shape or the lengths of a split. */
  integers(values: readonly number[]): Value {
    return this.constant(BigInt64Array.from(values, BigInt), [values.length]);
  }

  /** Emits a node with one output. An empty string leaves an optional input out. */
  node(
    op: string,
    inputs: readonly (Value | '')[],
    attributes: Node['attributes'] = {},
    options: NodeOptions = {},
  ): Value {
    return this.nodes(op, inputs, 1, attributes, options)[0];
  }

  /** Emits a node with `outputCount` outputs. */
  nodes(
    op: string,
    inputs: readonly (Value | '')[],
    outputCount: number,
    attributes: Node['attributes'] = {},
    options: NodeOptions = {},
  ): Value[] {
    const outputs = Array.from({ length: outputCount }, () => this.#fresh(op));
    this.#nodes.push({ op, domain: options.domain ?? '', inputs, outputs, attributes });
    return outputs;
  }

  /** Gives `value`, which a node of this graph must compute, to the caller of the program as the output `name`. */
  output(name: string, value: Value, type: ElementType = 'float32'): void {
    assert(!this.#renamed.has(value), `${value} is an output of ${this.#name} already`);
    assert(
      this.#nodes.some((node) => node.outputs.includes(value)),
      `output ${name} of ${this.#name} is not computed by a node`,
    );
    this.#renamed.set(value, name as Value);
    this.#outputs.push({ name: name as Value, type });
  }

  build(): Graph {
    assert(this.#outputs.length > 0, `program ${this.#name} has no output`);
    const named = <V extends Value | ''>(value: V): V => (this.#renamed.get(value as Value) as V | undefined) ?? value;
    return {
      name: this.#name,
      inputs: this.#inputs,
      outputs: this.#outputs,
      nodes: this.#nodes.map((node) => ({ ...node, inputs: node.inputs.map(named), outputs: node.outputs.map(named) })),
      constants: this.#constants,
    };
  }

  #fresh(op: string): Value {
    this.#count += 1;
    return `${op}_${this.#count}` as Value;
  }
}
