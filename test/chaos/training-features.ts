// Every control of a training is tried by itself. On two, three and four workers, with other checkpoint intervals and an interruption
// at a random step, a training gives the losses and the digest that it gives undisturbed on one worker.

import type { DataHome } from '../e2e/daemon-fixture.ts';
import type { Random } from './random.ts';
import type { Row } from './row.ts';
import {
  checkSame,
  essence,
  hookEnv,
  makeModel,
  STEPS,
  submit,
  trainSpec,
  wholeLog,
  type Essence,
} from './training.ts';

interface Feature {
  readonly config?: object;
  readonly spec?: object;
  /** Whether another training of the model comes before the attacked one. */
  readonly after?: boolean;
}

const FEATURES: Readonly<Record<string, Feature>> = {
  'linear schedule, warm-up': { spec: { schedule: 'linear', warmupSteps: 4, minLr: 1e-4 } },
  'cosine schedule': { spec: { schedule: 'cosine', minLr: 1e-5 } },
  'warm-up, stable, decay': { spec: { schedule: 'wsd', warmupSteps: 2, decaySteps: 5 } },
  'decay of all tensors': { spec: { decay: 'all', weightDecay: 0.3 } },
  'no clipping': { spec: { gradClip: 0 } },
  'a tight clip': { spec: { gradClip: 0.05 } },
  'other moments': { spec: { beta1: 0.8, beta2: 0.95, eps: 1e-6 } },
  'one micro-batch': { spec: { microBatchSize: 4 } },
  'micro-batches of two': { spec: { microBatchSize: 2 } },
  'no dropout': { config: { drop_rate: 0 } },
  'half dropped': { config: { drop_rate: 0.5 } },
  'tied head, bias of q, k and v': { config: { tie_weights: true, qkv_bias: true } },
  characters: { config: { tokenizer: 'char', vocab_size: 80 } },
  'windows that overlap, in order': { spec: { stride: 5, shuffle: false } },
  'a shorter context': { spec: { contextLength: 20 } },
  'several epochs': { spec: { batchSize: 32, microBatchSize: 8 } },
  'no validation': { spec: { valSplit: 0, evalEvery: 0 } },
  'samples on the way': { spec: { sampleEvery: 3, sampleTokens: 8, sampleTemperature: 1 } },
  patience: { spec: { patience: 1, evalEvery: 2, lr: 0.05 } },
  'fine-tuning': { after: true, spec: { lr: 1e-4 } },
  'going on with the optimizer': { after: true, spec: { resume: true } },
};
const NAMES = Object.keys(FEATURES);
const WORKER_COUNTS = [2, 3, 4];
const INTERVALS = [0, 1, 2, 5];

export const trainingFeatureRows: readonly Row[] = [
  {
    name: 'R9f',
    title: 'every control of a training gives the same bits on 1 to 4 workers, whatever interrupts it',
    tries: NAMES.length * WORKER_COUNTS.length,
    short: 2,
    async run({ tries, random, tally, home: makeHome }) {
      const home = makeHome();
      await home.start({ workers: 1, env: hookEnv() });
      const references = new Map<string, Essence>();
      for (let i = 0; i < tries; i++) {
        const name = NAMES[i % NAMES.length];
        const feature = FEATURES[name];
        const workers = WORKER_COUNTS[Math.floor(i / NAMES.length + i) % WORKER_COUNTS.length];
        await tally.try(async () => {
          const how = { workers, action: random.pick(['SIGKILL', 'SIGTERM', 'pause', 'thread'] as const), random };
          try {
            const reference = references.get(name) ?? (await undisturbed(home, { feature, model: `reference-${i}` }));
            references.set(name, reference);
            checkSame(await attacked(home, { feature, model: `m-${i}`, ...how }), { ...reference, checkpoints: [] });
          } catch (error) {
            throw new Error(`${name}, ${workers} workers, ${how.action}: ${String(error)}`, { cause: error });
          }
        });
      }
      tally.note(NAMES.slice(0, tries).join('; '));
      return tally.outcome();
    },
  },
];

async function prepare(home: DataHome, { feature, model }: { feature: Feature; model: string }): Promise<void> {
  await makeModel(home, model, feature.config);
  if (feature.after !== true) return;
  const client = await home.connect();
  try {
    await client.follow('train', { ...trainSpec(model), steps: 4 });
  } finally {
    client.close();
  }
}

async function undisturbed(home: DataHome, what: { feature: Feature; model: string }): Promise<Essence> {
  await home.restart('SIGTERM', { workers: 1, env: hookEnv() });
  await prepare(home, what);
  const jobId = await submit(home, what.model, what.feature.spec);
  return essence(await wholeLog(home, jobId!));
}

async function attacked(
  home: DataHome,
  {
    feature,
    model,
    workers,
    action,
    random,
  }: {
    readonly feature: Feature;
    readonly model: string;
    readonly workers: number;
    readonly action: 'SIGKILL' | 'SIGTERM' | 'pause' | 'thread';
    readonly random: Random;
  },
): Promise<Awaited<ReturnType<typeof wholeLog>>> {
  await home.restart('SIGTERM', { workers, env: hookEnv() });
  await prepare(home, { feature, model });
  const fields = { ...feature.spec, checkpointEvery: random.pick(INTERVALS) };
  const jobId = (await submit(home, model, fields))!;
  const client = await home.connect();
  await client.subscribe(jobId);
  // A run with patience may have ended by then, so that nothing is left to interrupt.
  await Promise.race([client.untilStep(jobId, random.integer(1, STEPS - 2)), client.untilEnd(jobId)]);
  client.close();
  const workersAfter = random.integer(1, 4);
  if (action === 'pause') {
    await home.cli(['pause', jobId]);
    await home.restart('SIGKILL', { workers: workersAfter, env: hookEnv() });
    await home.cli(['resume', jobId]);
  } else if (action === 'thread') {
    process.kill(home.daemon.pid, 'SIGUSR2');
  } else {
    await home.restart(action, { workers: workersAfter, env: hookEnv() });
  }
  return await wholeLog(home, jobId);
}
