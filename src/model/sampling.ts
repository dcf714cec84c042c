// From one row of logits to the next token. The filters apply in the order of Hugging Face's generate: repetition
// penalty, temperature, top-k, top-p, min-p; then one uniform draw, made by the caller, picks among what is left by
// walking the kept ids in ascending order. Nothing is sorted: each filter only moves a cut through the order "weight
// down, then id up". Letter: V vocabulary.

import { assert, GptdError } from './errors.ts';

export interface SampleOptions {
  /** 0 takes the largest logit, the first one on ties. */
  readonly temperature: number;
  /** Keep the k largest. */
  readonly topK?: number | undefined;
  /** Keep the fewest largest whose probabilities sum to at least topP of what top-k left. 1 keeps all. */
  readonly topP?: number | undefined;
  /** Keep those at least minP times as probable as the most probable. */
  readonly minP?: number | undefined;
  /** Logits of ids in `history` are divided by it when positive, multiplied by it otherwise; each id once. */
  readonly repetitionPenalty?: number | undefined;
  readonly history?: readonly number[] | undefined;
  /** A uniform draw in [0, 1). */
  readonly u: number;
}

export interface Sample {
  readonly id: number;
  /**
   * Natural logarithm of softmax(logits)[id], over the logits as they came in: no penalty, no temperature, no filter.
   */
  readonly logprob: number;
}

// Scratch of this thread, grown to the largest vocabulary seen.
let weights = new Float64Array(0);
let ids = new Uint32Array(0);

/**
 * Picks one token. logits (V,) are only read. Throws `engine_failed` when a logit is not finite. The result depends on
 * the arguments alone.
 */
export function sample(logits: Float32Array, options: SampleOptions): Sample {
  const { temperature, u } = options;
  assert(
    logits.length > 0 && temperature >= 0 && u >= 0 && u < 1,
    `temperature ${temperature} and u ${u} are in range`,
  );
  const largest = argmax(logits);
  const max = logits[largest];

  const penalized =
    options.repetitionPenalty !== undefined && options.repetitionPenalty !== 1 && options.history?.length;
  if (temperature === 0 && !penalized) return { id: largest, logprob: -logSumExp(logits, max) };

  const V = logits.length;
  if (weights.length < V) {
    weights = new Float64Array(V);
    ids = new Uint32Array(V);
  }
  weights.set(logits);
  if (penalized) penalize(logits, { history: options.history ?? [], penalty: options.repetitionPenalty ?? 1 });
  const id = temperature === 0 ? argmax(weights.subarray(0, V)) : draw(V, options);
  return { id, logprob: logits[id] - max - logSumExp(logits, max) };
}

/** Index of the largest value, the first one on ties. Throws `engine_failed` when a value is not finite. */
function argmax(values: Float32Array | Float64Array): number {
  let best = 0;
  let max = values[0];
  let poison = 0;
  for (let id = 0; id < values.length; id++) {
    const value = values[id];
    // Zero times a finite number is zero; times anything else it is NaN.
    poison += value * 0;
    if (value > max) {
      max = value;
      best = id;
    }
  }
  if (poison !== 0) {
    const id = values.findIndex((value) => !Number.isFinite(value));
    throw new GptdError(
      'engine_failed',
      `The logit of token ${id} is ${values[id]}: every logit must be a finite number.`,
    );
  }
  return best;
}

/** log(sum(exp(logits - max))) in double precision. */
function logSumExp(logits: Float32Array, max: number): number {
  let sum = 0;
  for (let id = 0; id < logits.length; id++) sum += expNonPositive(logits[id] - max);
  return Math.log(sum);
}

const EXP_STEPS = 64;
const STEPS_PER_LN = EXP_STEPS / Math.LN2;
// ln(2) / 64 in two parts. Multiples of the first, a float, are exact in double precision; the second holds what it and
// the double Math.LN2 lack.
const STEP_HIGH = Math.fround(Math.LN2 / EXP_STEPS);
const STEP_LOW = Math.LN2 / EXP_STEPS - STEP_HIGH + 2.3190468138462996e-17 / EXP_STEPS;
const EXP_X_MIN = -700;
/** 2^(-i / 64) down to exp(EXP_X_MIN). */
const EXP_TABLE = Float64Array.from(
  { length: Math.ceil(-EXP_X_MIN * STEPS_PER_LN) + 2 },
  (_, i) => 2 ** (-i / EXP_STEPS),
);

/** exp(x) for x <= 0, 0 below -700: a table and a polynomial, within 1e-15 of Math.exp and several times as fast. */
function expNonPositive(x: number): number {
  if (x < EXP_X_MIN) return 0;
  const i = (0.5 - x * STEPS_PER_LN) | 0;
  const r = x + i * STEP_HIGH + i * STEP_LOW;
  return EXP_TABLE[i] * (1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120))))));
}

function penalize(
  logits: Float32Array,
  options: { readonly history: readonly number[]; readonly penalty: number },
): void {
  for (const id of options.history) {
    if (id < logits.length) weights[id] = logits[id] > 0 ? logits[id] / options.penalty : logits[id] * options.penalty;
  }
}

/** Turns weights[0 .. V) from logits into probabilities up to a factor, filters them and picks an id. */
function draw(V: number, { temperature, topK, topP, minP, u }: SampleOptions): number {
  let max = -Infinity;
  for (let id = 0; id < V; id++) if (weights[id] > max) max = weights[id];
  let total = 0;
  for (let id = 0; id < V; id++) {
    const weight = expNonPositive((weights[id] - max) / temperature);
    weights[id] = weight;
    total += weight;
  }

  // Kept are the ids that do not come after the cut.
  let cutWeight = 0;
  let cutId = V - 1;
  let count = V;
  const select = (target: number, byWeight: boolean): void => {
    const last = selectPrefix(count, { target, byWeight });
    count = last + 1;
    cutId = ids[last];
    cutWeight = weights[cutId];
  };
  if ((topK !== undefined && topK < V) || (topP !== undefined && topP < 1)) {
    for (let id = 0; id < V; id++) ids[id] = id;
    if (topK !== undefined && topK < V) {
      select(topK, false);
      total = 0;
      for (let i = 0; i < count; i++) total += weights[ids[i]];
    }
    if (topP !== undefined && topP < 1) select(topP * total, true);
  }
  // The largest weight is exp(0) = 1.
  if (minP !== undefined && minP > cutWeight) {
    cutWeight = minP;
    cutId = V - 1;
  }

  let kept = 0;
  for (let id = 0; id < V; id++) {
    const weight = weights[id];
    if (weight > cutWeight || (weight === cutWeight && id <= cutId)) kept += weight;
  }
  const target = u * kept;
  let sum = 0;
  let chosen = 0;
  for (let id = 0; id < V; id++) {
    const weight = weights[id];
    if (weight > 0 && (weight > cutWeight || (weight === cutWeight && id <= cutId))) {
      chosen = id;
      sum += weight;
      if (sum > target) break;
    }
  }
  return chosen;
}

/**
 * Reorders ids[0 .. count) so that the shortest prefix in the order "weight down, then id up" whose mass reaches the
 * target comes first; returns the index of that prefix's last id. An id's mass is its weight or, without `byWeight`, 1.
 * This is quickselect: linear time on average.
 */
function selectPrefix(count: number, options: { readonly target: number; readonly byWeight: boolean }): number {
  const { target, byWeight } = options;
  let low = 0;
  let high = count - 1;
  let massBefore = 0;
  while (low < high) {
    const pivot = partition(low, high);
    let mass = 0;
    if (byWeight) for (let i = low; i <= pivot; i++) mass += weights[ids[i]];
    else mass = pivot - low + 1;
    if (massBefore + mass >= target) {
      // The prefix may end earlier, unless the pivot itself is what reaches the target.
      const withoutPivot = massBefore + mass - (byWeight ? weights[ids[pivot]] : 1);
      if (pivot === low || withoutPivot < target) return pivot;
      high = pivot - 1;
    } else {
      massBefore += mass;
      low = pivot + 1;
    }
  }
  return Math.min(low, count - 1);
}

/** Partitions ids[low .. high] around the middle one and returns where it ends up. */
function partition(low: number, high: number): number {
  swap((low + high) >>> 1, high);
  const pivotId = ids[high];
  const pivotWeight = weights[pivotId];
  let end = low;
  for (let i = low; i < high; i++) {
    const id = ids[i];
    const weight = weights[id];
    if (weight > pivotWeight || (weight === pivotWeight && id < pivotId)) {
      ids[i] = ids[end];
      ids[end] = id;
      end++;
    }
  }
  swap(end, high);
  return end;
}

function swap(a: number, b: number): void {
  const id = ids[a];
  ids[a] = ids[b];
  ids[b] = id;
}
