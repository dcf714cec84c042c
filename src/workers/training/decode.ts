// Text from weights in training: what a stage does to predict the next token of one sequence. It runs the evaluation's program
// on the whole sequence for every token, without a cache: a sample now and then costs little, and nothing that training keeps
// is touched. Sequences are padded to a multiple of 64 rows, so that few programs are compiled. Letters: R rows, D width.

import { embed } from '../../model/programs/embedding.ts';
import { blockForwardProgram } from '../../model/programs/block.ts';
import type { GptConfig } from '../../model/config.ts';
import type { Graph } from '../../model/programs/graph.ts';
import { headLogitsProgram, headTensorNames } from '../../model/programs/head.ts';
import { PURPOSE, uniform } from '../../model/random/philox.ts';
import { logitRows, sample } from '../../model/sampling.ts';
import type { Program, Tensor } from '../engines/engine.ts';
import type { StageCalls } from '../stage-messages.ts';
import type { StageRange } from './messages.ts';

/** What a stage lends: its programs, each compiled once for its name, and its weights as they are now. */
export interface DecodingStage {
  readonly config: GptConfig;
  readonly range: StageRange;
  readonly program: (name: string, graph: () => Graph) => Promise<Program>;
  readonly blockTensors: (block: number) => Record<string, Tensor>;
  readonly weight: (name: string) => Tensor;
}

/** Returns (R, D): row p is the embedding of ids[p] at position p. */
export function decodeEmbed({ config, weight }: DecodingStage, ids: readonly number[]): Float32Array {
  const [wte, wpe] = ['wte.weight', 'wpe.weight'].map((name) => weight(name).data as Float32Array);
  return embed(Uint32Array.from(ids), { wte, wpe, D: config.emb_dim }, { T: ids.length });
}

/** x (R, D) -> x (R, D) for the next stage; on the stage with the head, the token that follows row `last`. */
export async function decodeForward(
  { config, range, program, blockTensors, weight }: DecodingStage,
  request: StageCalls['trainDecode'][0],
): Promise<StageCalls['trainDecode'][1]> {
  const { last, temperature, seed, index } = request;
  const D = config.emb_dim;
  const R = request.x.length / D;
  const forward = await program(`decode ${R}`, () => blockForwardProgram(config, { B: 1, T: R }, { save: false }));
  let x = request.x;
  for (let block = range.firstBlock; block < range.endBlock; block++) {
    x = (await forward.run({ x: { data: x, dims: [R, D] }, ...blockTensors(block) }))['y']!;
  }
  if (!range.head) return { x, id: null };
  const head = await program('logits', () => headLogitsProgram(config, 1));
  const [normWeight, normBias, projection] = headTensorNames(config).map(weight);
  const outputs = await head.run({
    x: { data: x.subarray(last * D, (last + 1) * D), dims: [1, D] },
    'ln_f.weight': normWeight,
    'ln_f.bias': normBias,
    projection,
  });
  // A generation with this seed makes the same draws.
  const u = uniform({ seed, purpose: PURPOSE.sampling, step: 0, index });
  return { x: null, id: sample(logitRows(outputs)[0], { temperature, u }).id };
}
