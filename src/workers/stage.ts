// The entry of a stage's thread. The thread owns what training runs and served models keep on it, and answers StageRequests one
// at a time. It reads weights from the store's database over a connection of its own, which only reads.

import { workerData } from 'node:worker_threads';
import { assert } from '../model/errors.ts';
import { openReader, type ChunkReader } from './store/reader.ts';
import { loadThreadEngine, sameChoice } from './engines/choice.ts';
import { Loans } from './training/loans.ts';
import { STAGE_THREAD, type StageCalls, type StageRequest } from './stage-messages.ts';
import type { WorkerSettings } from './settings.ts';
import { replying } from './reply.ts';
import { ServeStage } from './serving/stage.ts';
import { servedWeights } from './serving/served-weights.ts';
import { decodeEmbed, decodeForward } from './training/decode.ts';
import { TrainStage } from './training/stage.ts';

const settings = workerData as WorkerSettings;
/**
 * The engine loads while the first request is on its way. If it does not load, each request that needs it fails with that error.
 */
const engine = loadThreadEngine(settings);
engine.catch(() => undefined);
const trainings = new Map<string, TrainStage>();
/** Holds the loans between the stages of each training, by lease. */
const loans = new Map<string, Loans>();
const served = new Map<string, ServeStage>();
let reader: ChunkReader | null = null;

function opened(): ChunkReader {
  reader ??= openReader(settings.dataDir);
  return reader;
}

function training(lease: string): TrainStage {
  const stage = trainings.get(lease);
  assert(stage !== undefined, `no training ${lease} on this stage`);
  return stage;
}

function loansOf({ lease }: { readonly lease: string }): Loans {
  const between = loans.get(lease);
  assert(between !== undefined, `no training ${lease} on this stage`);
  return between;
}

function serving(lease: string): ServeStage {
  const stage = served.get(lease);
  assert(stage !== undefined, `no served model ${lease} on this stage`);
  return stage;
}

async function loadServing(request: StageCalls['serveLoad'][0]): Promise<StageCalls['serveLoad'][1]> {
  const { lease, config, stage, quantization } = request;
  const weights = servedWeights(opened(), request);
  served.set(lease, await ServeStage.load(await engine, { config, stage, quantization }, weights));
  return { made: weights.made() };
}

async function unload(lease: string): Promise<void> {
  const stages = [trainings.get(lease), served.get(lease)];
  trainings.delete(lease);
  loans.get(lease)?.close();
  loans.delete(lease);
  served.delete(lease);
  for (const stage of stages) await stage?.close();
}

async function trainForward(
  stage: TrainStage,
  { micro, x }: StageCalls['trainForward'][0],
): Promise<StageCalls['trainForward'][1]> {
  const { y, losses } = await stage.forward(micro, x);
  return losses === null ? { y: y! } : { losses, dx: await stage.backward(micro, null) };
}

async function handle(request: StageRequest): Promise<StageCalls[keyof StageCalls][1]> {
  switch (request.type) {
    case 'trainLoad': {
      const { lease, checkpointId, setup, ports } = request;
      loans.set(lease, new Loans(ports));
      trainings.set(
        lease,
        new TrainStage(await engine, setup, ({ name: tensor }, part, into) =>
          opened().readTensorInto({ checkpointId, tensor, part }, into),
        ),
      );
      return {};
    }
    case 'trainEmbed':
      return { x: training(request.lease).embed(request.micro, { train: request.train }) };
    case 'trainForward':
      return await trainForward(training(request.lease), request);
    case 'trainBackward':
      return { dx: await training(request.lease).backward(request.micro, request.dy) };
    case 'trainWeightGradients':
      await training(request.lease).weightGradients(request.micro, request.unit);
      return {};
    case 'trainLend':
      loansOf(request).send(request.with, request.key, training(request.lease).lend(request.micro, request.block));
      return {};
    case 'trainWeightGradientsFor': {
      const loan = loansOf(request).take(request.with, request.key);
      loansOf(request).send(request.with, request.key, await training(request.lease).lentWeightGradients(loan));
      return {};
    }
    case 'trainTakeBack':
      training(request.lease).takeBack(request.block, loansOf(request).take(request.with, request.key));
      return {};
    case 'trainEmbedBackward':
      training(request.lease).embedBackward(request.micro, request.dx);
      return {};
    case 'trainFinish':
      return { squares: training(request.lease).finish() };
    case 'trainUpdate':
      return { done: training(request.lease).optimizer.update(request, request.unit) };
    case 'trainReset':
      training(request.lease).reset();
      return {};
    case 'trainEvaluate':
      return await training(request.lease).evaluate(request.micro, request.x);
    case 'trainDecodeEmbed':
      return { x: decodeEmbed(training(request.lease).decoding(), request.ids) };
    case 'trainDecode':
      return await decodeForward(training(request.lease).decoding(), request);
    case 'trainSnapshot':
      training(request.lease).optimizer.beginSnapshot(request);
      return {};
    case 'trainRead':
      training(request.lease).optimizer.readSnapshot(request.addresses, request.into);
      return {};
    case 'trainSnapshotEnd':
      trainings.get(request.lease)?.optimizer.endSnapshot();
      return {};
    case 'serveLoad':
      return await loadServing(request);
    case 'serveEmbed':
      return { x: serving(request.lease).embed(request.ids, request.shares) };
    case 'serveStep':
      return await serving(request.lease).step(request);
    case 'serveFollow':
      return await serving(request.lease).follow(request);
    case 'serveEnd':
      served.get(request.lease)?.end(request);
      return {};
    case 'unload':
      await unload(request.lease);
      return {};
    case 'engine': {
      const loaded = await engine;
      const { name, backend, version, fingerprint } = loaded;
      return { name, backend, version, fingerprint, choice: sameChoice(loaded) };
    }
    default:
      request satisfies never;
      throw new Error('unknown request');
  }
}

export default replying(handle, STAGE_THREAD);
