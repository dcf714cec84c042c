// llama.cpp in a process of its own, through node-llama-cpp: a line of JSON in is a request, a line out its answer, in order. It
// times what gptd is timed at: decoding between two positions, a prompt, and several streams at once.

import { createInterface } from 'node:readline';
import { getLlama } from 'node-llama-cpp';

const THREADS_MAX = 2;
const llama = await getLlama({
  ...{ gpu: false, build: 'never', progressLogs: false, logLevel: 'error', maxThreads: THREADS_MAX },
});
/** By the file's name. */
const models = new Map();
/** By model, threads, context and number of sequences. */
const contexts = new Map();

async function sequencesOf({ model, threads, contextSize, count = 1 }) {
  const key = [model, threads, contextSize, count].join();
  if (!contexts.has(key)) {
    const options = { contextSize, sequences: count, threads, batchSize: 512, flashAttention: false };
    const context = await models.get(model).createContext(options);
    contexts.set(
      key,
      Array.from({ length: count }, () => context.getSequence()),
    );
  }
  return contexts.get(key);
}

/** Greedy tokens after a prompt; resolves to the moment of each. */
async function decode(sequence, { prompt, tokens }) {
  await sequence.clearHistory();
  const times = [];
  for await (const id of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    void id;
    if (times.push(performance.now()) === tokens) break;
  }
  return times;
}

const REQUESTS = {
  load: async ({ file }) => {
    models.set(file, await llama.loadModel({ modelPath: file, useMmap: false }));
    return {};
  },
  /** Tokens a second after the first token. */
  stream: async ({ prompt, tokens, ...at }) => {
    const [sequence] = await sequencesOf(at);
    const times = await decode(sequence, { prompt, tokens });
    return { rate: ((tokens - 1) * 1000) / (times.at(-1) - times[0]) };
  },
  /** Tokens of the prompt a second. */
  prompt: async ({ prompt, ...at }) => {
    const [sequence] = await sequencesOf(at);
    await sequence.clearHistory();
    const start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(prompt);
    return { rate: (prompt.length * 1000) / (performance.now() - start) };
  },
  /** Tokens of all streams a second, prompts included. */
  streams: async ({ prompts, tokens, ...at }) => {
    const sequences = await sequencesOf({ ...at, count: prompts.length });
    const start = performance.now();
    await Promise.all(prompts.map((prompt, i) => decode(sequences[i], { prompt, tokens })));
    return { rate: (prompts.length * tokens * 1000) / (performance.now() - start) };
  },
};

// Its pending work does not keep the process alive by itself.
const alive = setInterval(() => undefined, 1000);
for await (const line of createInterface({ input: process.stdin })) {
  const { type, ...request } = JSON.parse(line);
  console.log(JSON.stringify(await REQUESTS[type](request)));
}
clearInterval(alive);
process.exit(0);
