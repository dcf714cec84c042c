// Measures what this machine can do: the f32 matmul peak of one and two threads through the engine, and the memory's reading
// speed. A benchmark measures these limits in the same run as the work that it compares with them.

import { GraphBuilder } from '../dist/model/programs/graph.js';
import { onnxEngine } from '../dist/workers/engines/onnx.js';

const [M, K, N] = [1024, 768, 3072];
const READ_BYTES = 256 << 20;

/** Resolves to the best of `repeats` runs of (1024 x 768)(768 x 3072), in GFLOPS. */
export async function matmulPeak(threadCount, repeats = 12) {
  const g = new GraphBuilder('peak');
  const product = g.node('MatMul', [g.input('a', [M, K]), g.input('b', [K, N])]);
  g.output('y', g.node('ReduceMax', [product], { keepdims: 0 }));
  const program = await onnxEngine.compile(g.build(), { threadCount });
  const matrix = (rows, columns) => ({ data: new Float32Array(rows * columns).fill(0.1), dims: [rows, columns] });
  const inputs = { a: matrix(M, K), b: matrix(K, N) };
  let bestMs = Infinity;
  for (let i = 0; i < repeats; i++) {
    const start = performance.now();
    await program.run(inputs);
    bestMs = Math.min(bestMs, performance.now() - start);
  }
  await program.release();
  return (2 * M * K * N) / bestMs / 1e6;
}

/** Returns the best of `repeats` reads of 256 MiB, in GB/s of one thread. One number of each cache line is read. */
export function readBandwidth(repeats = 6) {
  const values = new Float32Array(READ_BYTES / 4);
  for (let i = 0; i < values.length; i++) values[i] = i;
  let [bestMs, sum] = [Infinity, 0];
  for (let pass = 0; pass < repeats; pass++) {
    const start = performance.now();
    for (let i = 0; i < values.length; i += 64) sum += values[i] + values[i + 16] + values[i + 32] + values[i + 48];
    bestMs = Math.min(bestMs, performance.now() - start);
  }
  return sum > 0 ? READ_BYTES / bestMs / 1e6 : 0;
}
