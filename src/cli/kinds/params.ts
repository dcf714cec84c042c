// How a `params` job is printed: counts, memory, and how the blocks would be split.

import type { ParamsResult, PlanStage } from '../../daemon/protocol/models.ts';
import { formatBlock, formatBytes, formatCount } from '../render/records.ts';
import { documentKind } from './kind.ts';

export const paramsKind = documentKind(formatParams);

const PARAMS_ROWS = [
  'token_embeddings',
  'position_embeddings',
  'embedding_total',
  'mha_per_block',
  'ff_per_block',
  'layernorm_per_block',
  'params_per_block',
  'transformer_blocks_total',
  'final_layernorm',
  'output_projection',
  'total_params',
] as const satisfies readonly (keyof ParamsResult)[];

export function formatParams(result: ParamsResult): string {
  const { config, memory } = result;
  const shape =
    `vocab ${formatCount(config.vocab_size)}, context ${formatCount(config.context_length)}, width ${formatCount(config.emb_dim)}, ` +
    `${config.n_heads} heads, ${config.n_layers} blocks, dropout ${config.drop_rate}` +
    `${config.qkv_bias ? ', qkv bias' : ''}${config.tie_weights ? ', tied weights' : ''}`;
  const counts = PARAMS_ROWS.map((row) => [row.replaceAll('_', ' '), formatCount(result[row])] as const);
  const bytes = [
    ['weights', formatBytes(memory.weightsBytes)],
    ['optimizer state', formatBytes(memory.optimizerBytes)],
    ['serving', formatBytes(memory.servingBytes)],
    ['training', formatBytes(memory.trainingBytes)],
  ] as const;
  return [
    `GPT: ${shape}`,
    `\nparameters\n${formatBlock(counts)}`,
    `\nmemory\n${formatBlock(bytes)}`,
    `\nplan\n${result.plan.map(formatStage).join('\n')}`,
  ].join('\n');
}

function formatStage(stage: PlanStage): string {
  const lastBlock = stage.endBlock - 1;
  const blocks =
    stage.endBlock <= stage.firstBlock
      ? []
      : [lastBlock === stage.firstBlock ? `block ${lastBlock}` : `blocks ${stage.firstBlock} to ${lastBlock}`];
  const parts = [...(stage.embeds ? ['embedding'] : []), ...blocks, ...(stage.head ? ['head'] : [])];
  return `worker ${stage.worker}: ${parts.join(', ')} (${formatCount(stage.params)} parameters)`;
}
