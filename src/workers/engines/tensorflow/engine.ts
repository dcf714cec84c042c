// The TensorFlow.js engine: programs run operator by operator on the calling thread, one at a time. It is the fallback where ONNX
// Runtime does not load, and tests compare the two. It ignores the thread count: each stage's thread computes alone.

import { GptdError } from '../../../model/errors.ts';
import type { Graph, GraphInput } from '../../../model/programs/graph.ts';
import type { Engine, Program, Tensors } from '../engine.ts';
import { loadBackend, type Backend } from './backend.ts';
import { interpret, operatorTable, upload } from './interpreter.ts';
import type { OperatorTable, Tensor, Tf } from './site.ts';

/** Makes the engine on this thread. It throws when its backend does not load. */
export async function loadTensorflowEngine(wanted: Backend['name'] | null = null): Promise<Engine> {
  const { tf, name, version, fingerprint } = await loadBackend(wanted);
  return { name: 'tensorflow', backend: name, version, fingerprint, writesInPlace: false, compile: compiler(tf) };
}

/** Returns the compiler over an instance of TensorFlow.js whose backend is set. */
export function compiler(tf: Tf): Engine['compile'] {
  const operators = operatorTable(tf);
  return (graph) => Promise.resolve().then(() => compile(tf, operators, graph));
}

function compile(tf: Tf, operators: OperatorTable, graph: Graph): Program {
  const wide = graph.outputs.find(({ type }) => type !== 'float32');
  if (wide !== undefined) {
    throw new GptdError('engine_failed', `Output ${wide.name} of "${graph.name}" is ${wide.type}: float32 is wanted.`);
  }
  const interpretation = interpret(tf, operators, graph);
  const runOnce = (inputs: Tensors, into: Tensors): Record<string, Float32Array> => {
    const uploaded = new Map<string, Tensor>();
    let outputs: Tensor[] = [];
    try {
      for (const input of graph.inputs) uploaded.set(input.name, upload(tf, given(inputs, input, graph.name)));
      outputs = interpretation.run(uploaded);
      const reply: Record<string, Float32Array> = {};
      for (const [i, { name }] of graph.outputs.entries()) {
        const data = outputs[i].dataSync<'float32'>();
        if (Object.hasOwn(into, name)) (into[name].data as Float32Array).set(data);
        else reply[name] = data;
      }
      return reply;
    } finally {
      tf.dispose([...uploaded.values(), ...outputs]);
    }
  };
  return {
    run: (inputs, into = {}) => Promise.resolve().then(() => runOnce(inputs, into)),
    release: () => {
      interpretation.dispose();
      return Promise.resolve();
    },
  };
}

/** Returns an input. Throws `engine_failed` when it is missing or has another shape than the graph's. */
function given(inputs: Tensors, { name, dims }: GraphInput, graphName: string): Tensors[string] {
  if (!Object.hasOwn(inputs, name)) throw new GptdError('engine_failed', `"${graphName}" has no input ${name}.`);
  const tensor = inputs[name];
  const size = tensor.dims.reduce((product, length) => product * length, 1);
  const fits = dims.every((dim, axis) => typeof dim === 'string' || dim === tensor.dims[axis]);
  if (tensor.dims.length !== dims.length || !fits || tensor.data.length !== size) {
    throw new GptdError(
      'engine_failed',
      `Input ${name} of "${graphName}" has ${tensor.data.length} values as (${tensor.dims.join(', ')}): (${dims.join(', ')}) is wanted.`,
    );
  }
  return tensor;
}
