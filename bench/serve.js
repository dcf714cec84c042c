// `npm run bench:serve` measures generations through the whole daemon; tokens are timed where a client gets them. Where llama.cpp
// is installed (`npm --prefix bench/peer install`), it runs the same weights turn by turn. The last part shows how throughput
// grows. `--tiny` runs everything once at toy size, without the peer; `--turns N` repeats; `--part NAME` runs one of PARTS;
// `--save` keeps the growth.

import './no-reports.js';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs, TextEncoder } from 'node:util';
import { createModel, median, withDaemon } from './daemon.js';
import { printPanel, savePanels } from './growth.js';
import { startLlama } from './llama.js';
import { readBandwidth } from './machine.js';
import { openSocket } from './socket.js';

const { values: options } = parseArgs({
  options: {
    tiny: { type: 'boolean', default: false },
    turns: { type: 'string' },
    workers: { type: 'string', default: '2' },
    part: { type: 'string' },
    save: { type: 'boolean', default: false },
  },
});
const { tiny } = options;
const turns = tiny ? 1 : Number(options.turns ?? '3');
const FORMATS = ['f32', 'int8', 'int4'];
const LLAMA_THREADS = [1, 2];

/** The shape of the large model. */
const BIG = tiny
  ? { vocab: 300, context: 64, width: 32, heads: 2, layers: 2 }
  : { vocab: 50257, context: 1024, width: 768, heads: 12, layers: 12 };
const SMALL = { vocab: 256, context: tiny ? 64 : 1024, width: tiny ? 32 : 128, heads: 4, layers: tiny ? 1 : 4 };
const RUN = tiny
  ? {
      decoded: 9,
      prompt: 40,
      streams: [2, 4],
      streamTokens: 5,
      smallTokens: 20,
      firsts: 2,
      window: 8,
      late: 50,
      shortRuns: 1,
    }
  : {
      decoded: 201,
      prompt: 512,
      streams: [8, 32],
      streamTokens: 64,
      smallTokens: 800,
      firsts: 21,
      window: 60,
      late: 900,
      shortRuns: 5,
    };
const SHORT_PROMPT = tiny ? 4 : 16;

let prompts = 0;
/** Returns the ids of a prompt that shares its beginning with no other prompt, so that no cache holds any of it. */
function newPrompt(length, vocab = BIG.vocab) {
  prompts += 1;
  return Array.from({ length }, (_, i) => (i * 131 + 7 + prompts * 101) % vocab);
}

async function create(daemon, name, shape) {
  await createModel(daemon, name, { ...shape, tokenizer: shape.vocab === 50257 ? 'gpt2' : 'byte' });
  return name;
}

/** Returns a spec without guesses, unless guesses are what is measured: llama.cpp makes none. */
const specOf = (model, format, more) => ({
  model,
  temperature: 0,
  speculate: false,
  ...more,
  ...(format === 'f32' ? {} : { quantize: format }),
});

/** Returns the tokens per second between two of a stream's tokens. */
const rateBetween = (times, from, to) => ((to - from) * 1000) / (times[to] - times[from]);

/** Resolves to the tokens per second of all streams together; the time of their prompts counts. */
async function together(socket, specs) {
  const start = performance.now();
  const all = await Promise.all(specs.map((spec) => socket.generate(spec)));
  return (all.reduce((sum, { ids }) => sum + ids.length, 0) * 1000) / (performance.now() - start);
}

/**
 * Runs each side `warmUps` times, until its code is compiled and its memory is used again, then all sides turn by turn. Resolves
 * to the median of each side.
 */
async function interleaved(sides, { warmUps = 1, runsPerTurn = 1 } = {}) {
  const rates = new Map(Object.keys(sides).map((name) => [name, []]));
  if (!tiny) {
    for (const run of Object.values(sides)) for (let i = 0; i < warmUps; i++) await run();
  }
  for (let i = 0; i < turns * runsPerTurn; i++) {
    for (const [name, run] of Object.entries(sides)) rates.get(name).push(await run());
  }
  return Object.fromEntries([...rates].map(([name, all]) => [name, median(all)]));
}

/** Compares gptd with llama.cpp. llama.cpp runs with each number of threads, and its best one counts. */
async function compared(llama, format, { gptd, peer, warmUps }) {
  const sides = { gptd };
  if (llama !== null) {
    for (const threads of LLAMA_THREADS) sides[threads] = () => llama.ask(format, { ...peer(), threads });
  }
  const { gptd: ours, ...theirs } = await interleaved(sides, { warmUps });
  const [threads, best] = Object.entries(theirs).sort((a, b) => b[1] - a[1])[0] ?? [];
  return { ours, told: best === undefined ? '' : `${best.toFixed(1)} (${threads} of 2 threads)`, ratio: ours / best };
}

/** Prints a line of the table of figures; `reach` is the goal. */
function tell(figure, { measured, reach, detail }) {
  console.log(`${figure.padEnd(44)} ${measured.padStart(9)}  ${`to reach ${reach}`.padEnd(16)} ${detail}`);
}
const tellRatio = (figure, { ours, told, ratio }, reach) =>
  tell(figure, {
    measured: told === '' ? '-' : ratio.toFixed(2),
    reach: String(reach),
    detail: `${ours.toFixed(1)} tokens/s; llama.cpp ${told === '' ? 'was not run' : told}`,
  });

/** The parts, each with a daemon of its own. A part gets the daemon's socket, and `llama`, which runs the weights of `model`. */
const PARTS = {
  async stream({ socket, model, llama }) {
    const reach = { f32: 1.1, int8: 1.2, int4: 1.1 };
    const bandwidths = [readBandwidth()];
    for (const format of FORMATS) {
      const tokens = RUN.decoded;
      const result = await compared(llama, format, {
        gptd: async () => {
          const spec = specOf(model, format, { promptIds: newPrompt(SHORT_PROMPT), maxTokens: tokens });
          return rateBetween((await socket.generate(spec)).times, 0, tokens - 1);
        },
        peer: () => ({ type: 'stream', prompt: newPrompt(SHORT_PROMPT), tokens, contextSize: BIG.context }),
      });
      tellRatio(`one stream, ${format}, ratio`, result, reach[format]);
      if (format !== 'f32') continue;
      bandwidths.push(readBandwidth());
      // A token reads all matrices, the head's included.
      const bytes = 4 * (12 * BIG.width ** 2 * BIG.layers + BIG.vocab * BIG.width);
      const read = (bytes * result.ours) / 1e9;
      const most = Math.max(...bandwidths);
      tell('share of the memory bandwidth, f32', {
        measured: `${((100 * read) / most).toFixed(0)} %`,
        reach: '85 %',
        detail: `${read.toFixed(1)} GB/s of weights; ${most.toFixed(1)} GB/s read on 1 thread`,
      });
    }
  },

  async prompt({ socket, model, llama }) {
    const reach = { f32: 2.5, int8: 2.2, int4: '-' };
    for (const format of FORMATS) {
      const result = await compared(llama, format, {
        gptd: async () => {
          const spec = specOf(model, format, { promptIds: newPrompt(RUN.prompt), maxTokens: 1 });
          return (RUN.prompt * 1000) / (await socket.generate(spec)).times[0];
        },
        peer: () => ({ type: 'prompt', prompt: newPrompt(RUN.prompt), contextSize: BIG.context }),
        warmUps: 6,
      });
      tellRatio(`prompt of ${RUN.prompt}, ${format}, ratio`, result, reach[format]);
    }
  },

  async streams({ socket, model, llama }) {
    const reach = { f32: 5, int8: 5, int4: 3 };
    const [some, many] = RUN.streams;
    const tokens = RUN.streamTokens;
    const gptd = (format, count) => () => {
      const spec = () => specOf(model, format, { promptIds: newPrompt(SHORT_PROMPT), maxTokens: tokens });
      return together(socket, Array.from({ length: count }, spec));
    };
    for (const format of FORMATS) {
      const promptsOfAll = () => Array.from({ length: some }, () => newPrompt(SHORT_PROMPT));
      const result = await compared(llama, format, {
        gptd: gptd(format, some),
        peer: () => ({ type: 'streams', prompts: promptsOfAll(), tokens, contextSize: 256 }),
        warmUps: 3,
      });
      tellRatio(`${some} streams, ${format}, ratio of all tokens`, result, reach[format]);
      const { more } = await interleaved({ more: gptd(format, many) });
      tell(`${many} streams against ${some}, ${format}`, {
        measured: (more / result.ours).toFixed(2),
        reach: 'above 1',
        detail: `${more.toFixed(1)} tokens/s of all streams`,
      });
    }
  },

  async context({ socket, model }) {
    const rates = await ratesAt(socket, model, { format: 'f32', positions: [SHORT_PROMPT, RUN.late] });
    tell(`position ${RUN.late} against ${SHORT_PROMPT}, f32`, {
      measured: `${((100 * rates[1]) / rates[0]).toFixed(0)} %`,
      reach: '80 %',
      detail: `${rates.map((rate) => rate.toFixed(1)).join(' and ')} tokens/s, first and last`,
    });
  },

  /** Trains a model with the byte tokenizer on a JSON list, and lets it continue that list. */
  async speculation({ daemon, socket }) {
    const shape = { vocab: 256, context: tiny ? 64 : 256, width: tiny ? 32 : 256, heads: 4, layers: tiny ? 1 : 4 };
    const model = await create(daemon, 'list', shape);
    const items = Array.from({ length: 2000 }, (_, i) => ({
      id: i,
      name: `item ${i}`,
      price: (i * 37) % 100,
      stock: i % 7,
    }));
    const text = items.map((item) => JSON.stringify(item)).join(',\n');
    const data = path.join(daemon.folder, 'list.txt');
    writeFileSync(data, text);
    const steps = tiny ? '2' : '120';
    const flags = ['--steps', steps, '--batch-size', '8', '--lr', '0.002', '--stride', '64', '--val-split', '0'];
    await daemon.cli('train', model, '--data', data, ...flags);
    const from = text.indexOf('{"id":1500');
    const promptIds = [...new TextEncoder().encode(text.slice(from, from + shape.context / 2))];
    let accepted = 0;
    const rate = (speculate) => async () => {
      const maxTokens = shape.context / 2 - 1;
      const { times, speculation } = await socket.generate(specOf(model, 'f32', { promptIds, maxTokens, speculate }));
      if (speculate) accepted = speculation.accepted / Math.max(1, speculation.drafted);
      return rateBetween(times, 0, maxTokens - 1);
    };
    // One run takes some 50 ms, so each turn has several.
    const { guessed, plain } = await interleaved(
      { guessed: rate(true), plain: rate(false) },
      { warmUps: 15, runsPerTurn: RUN.shortRuns },
    );
    tell('speculation on a JSON list', {
      measured: (guessed / plain).toFixed(2),
      reach: '1.8',
      detail: `${guessed.toFixed(0)} tokens/s, ${plain.toFixed(0)} without; ${(100 * accepted).toFixed(0)} % of the guesses were right`,
    });
  },

  async latency({ daemon, socket, model }) {
    const first = [];
    for (let i = 0; i <= RUN.firsts; i++) {
      const spec = specOf(model, 'f32', { promptIds: newPrompt(32), maxTokens: 1 });
      const { times, timings } = await socket.generate(spec);
      // The first generation loads the model.
      if (i > 0) first.push(times[0] - timings.prefillMs);
    }
    tell("first token beyond the engine's own time", {
      measured: `${median(first).toFixed(1)} ms`,
      reach: 'under 5 ms',
      detail: `at most ${Math.max(...first).toFixed(1)} ms of ${RUN.firsts}; 32 tokens of prompt`,
    });
    const small = await create(daemon, 'small', SMALL);
    const rate = async () => {
      const spec = { promptIds: newPrompt(8, SMALL.vocab), maxTokens: RUN.smallTokens };
      return rateBetween((await socket.generate(specOf(small, 'f32', spec))).times, 0, RUN.smallTokens - 1);
    };
    const measured = await interleaved({ rate }, { warmUps: 3 });
    tell(`small model (width ${SMALL.width}, ${SMALL.layers} layers), one stream`, {
      measured: measured.rate.toFixed(0),
      reach: '1500',
      detail: 'tokens/s, no guesses',
    });
  },

  async growth({ daemon, socket, model }) {
    const counts = tiny ? [1, 2] : [1, 2, 4, 8, 16, 32];
    const aggregate = async (format) => {
      const rates = [];
      for (const count of counts) {
        const spec = () => specOf(model, format, { promptIds: newPrompt(SHORT_PROMPT), maxTokens: RUN.window });
        const run = () => together(socket, Array.from({ length: count }, spec));
        rates.push((await interleaved({ run })).run);
      }
      return { name: format, values: rates };
    };
    const positions = tiny ? [4, 30, 50] : [16, 128, 256, 512, 900];
    const late = async (format) => ({ name: format, values: await ratesAt(socket, model, { format, positions }) });
    const sizes = tiny
      ? [
          [32, 1],
          [32, 2],
        ]
      : [
          [128, 4],
          [256, 6],
          [384, 6],
          [512, 8],
          [768, 12],
        ];
    const bySize = { f32: [], int8: [] };
    for (const [width, layers] of sizes) {
      const name = await create(daemon, `size-${width}-${layers}`, {
        ...BIG,
        width,
        heads: width / (tiny ? 16 : 64),
        layers,
      });
      for (const [format, rates] of Object.entries(bySize)) {
        const spec = () => specOf(name, format, { promptIds: newPrompt(SHORT_PROMPT), maxTokens: RUN.window });
        const run = async () => rateBetween((await socket.generate(spec())).times, 0, RUN.window - 1);
        rates.push((await interleaved({ run })).run);
      }
    }
    const unit = 'tokens/s';
    const panels = [
      {
        title: 'All streams',
        over: 'streams',
        steps: counts,
        series: [await aggregate('f32'), await aggregate('int8')],
      },
      {
        title: 'One stream by position',
        over: 'position',
        steps: positions,
        series: [await late('f32'), await late('int8')],
      },
      {
        title: 'One stream by size',
        over: 'width x layers',
        steps: sizes.map((size) => size.join(' x ')),
        series: Object.entries(bySize).map(([name, values]) => ({ name, values })),
      },
    ].map((panel) => ({ ...panel, unit }));
    for (const panel of panels) printPanel(panel);
    if (options.save) savePanels('serving', { heading: 'How serving grows', panels });
  },
};
const WITH_PEER = new Set(['stream', 'prompt', 'streams']);

/** Resolves to the tokens per second of one stream behind each position. A turn is one run through all of the positions. */
async function ratesAt(socket, model, { format, positions }) {
  const maxTokens = positions.at(-1) + RUN.window - SHORT_PROMPT;
  const rates = positions.map(() => []);
  for (let turn = 0; turn < turns; turn++) {
    const { times } = await socket.generate(specOf(model, format, { promptIds: newPrompt(SHORT_PROMPT), maxTokens }));
    for (const [i, position] of positions.entries()) {
      const from = position - SHORT_PROMPT;
      rates[i].push(rateBetween(times, from, Math.min(maxTokens - 1, from + RUN.window)));
    }
  }
  return rates.map(median);
}

for (const [name, part] of Object.entries(PARTS)) {
  if (options.part !== undefined && options.part !== name) continue;
  await withDaemon(Number(options.workers), async (daemon) => {
    const model = await create(daemon, 'big', BIG);
    const socket = await openSocket(daemon.address());
    const llama = WITH_PEER.has(name) && !tiny ? await startLlama(daemon, { name: model, formats: FORMATS }) : null;
    await part({ daemon, socket, model, llama });
    socket.close();
    await llama?.stop();
  });
}
