// Which engine a thread computes with. `auto` takes ONNX Runtime where it loads, and TensorFlow.js elsewhere. Engines are
// imported only when they are wanted, so that a machine needs only one of them.

import { GptdError } from '../../model/errors.ts';
import { natively } from '../ending.ts';
import type { Engine } from './engine.ts';
import type { EngineChoice, WorkerSettings } from '../settings.ts';

/** Loads the chosen engine. Throws `engine_failed` when it does not load; the message names another one to try. */
export async function loadEngine(choice: EngineChoice): Promise<Engine> {
  switch (choice) {
    case 'auto':
      try {
        return await loadOnnx();
      } catch (onnxError) {
        try {
          return await loadTensorflow(null);
        } catch (cause) {
          throw new GptdError('engine_failed', `${(onnxError as Error).message} ${(cause as Error).message}`, {
            cause,
          });
        }
      }
    case 'onnx':
      return await loadOnnx();
    case 'tensorflow':
      return await loadTensorflow(null);
    case 'tensorflow-node':
      return await loadTensorflow('node');
    case 'tensorflow-wasm':
      return await loadTensorflow('wasm');
    default:
      choice satisfies never;
      throw new Error('unknown engine');
  }
}

/** Does the same on a worker thread, which is ended only between two runs of its engine. */
export async function loadThreadEngine({ engine: choice, nativeRuns }: WorkerSettings): Promise<Engine> {
  const within = <T>(work: () => Promise<T>): Promise<T> => natively(nativeRuns, work);
  const engine = await within(() => loadEngine(choice));
  return {
    ...engine,
    async compile(graph, options) {
      const program = await within(() => engine.compile(graph, options));
      return {
        run: (inputs, into) => within(() => program.run(inputs, into)),
        release: () => within(() => program.release()),
      };
    },
  };
}

/** Returns the choice that gives another thread the same engine. */
export const sameChoice = ({ name, backend }: Engine): EngineChoice =>
  name === 'onnx' ? 'onnx' : backend === 'node' ? 'tensorflow-node' : 'tensorflow-wasm';

async function loadOnnx(): Promise<Engine> {
  try {
    return (await import('./onnx.ts')).onnxEngine;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
    throw new GptdError('engine_failed', `ONNX Runtime does not load (${why}): try --engine tensorflow.`, { cause });
  }
}

async function loadTensorflow(backend: 'node' | 'wasm' | null): Promise<Engine> {
  try {
    return await (await import('./tensorflow/engine.ts')).loadTensorflowEngine(backend);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
    throw new GptdError('engine_failed', `TensorFlow.js does not load (${why}): try --engine onnx.`, { cause });
  }
}
