// Measures the speed of one greedy stream through the whole daemon, early and late in the context.

import { median } from './daemon.js';

export const DECODING = {
  name: '124m-serve',
  preset: 'GPT_CONFIG_124M',
  tokens: 1000,
  early: [16, 116],
  late: [850, 950],
  flags: [],
};
export const TINY_DECODING = {
  name: 'tiny-serve',
  preset: 'GPT_CONFIG_124M',
  tokens: 60,
  early: [4, 24],
  late: [30, 50],
  flags: [
    '--emb-dim',
    '32',
    '--n-heads',
    '2',
    '--n-layers',
    '2',
    '--vocab-size',
    '300',
    '--context-length',
    '64',
    '--tokenizer',
    'byte',
  ],
};

/** Resolves to the tokens per second between two positions early and two late in the context, each the median of `turns`. */
export async function benchDecoding(daemon, { name, preset, tokens, early, late, flags }, turns) {
  await daemon.cli('create', name, '--config', preset, ...flags);
  const speeds = { early: [], late: [] };
  for (let turn = 0; turn < turns; turn++) {
    const events = await daemon.events('generate', name, '--prompt-ids', '1,2,3', '--max-tokens', String(tokens));
    const at = events.filter(({ type }) => type === 'token').map((event) => event.at);
    const speed = ([from, to]) => ((to - from) * 1000) / Math.max(1, at[to] - at[from]);
    speeds.early.push(speed(early));
    speeds.late.push(speed(late));
  }
  return { name, early: median(speeds.early), late: median(speeds.late) };
}
