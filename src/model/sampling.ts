// From one row of logits to the next token. These steps come in this order: the repetition penalty, the presence and frequency
// penalties, the biases and the ban; then, unless the largest logit is taken, the temperature, top-k, top-p and min-p. One
// uniform draw, made by the caller, picks among the ids that are left, which are walked in ascending order. "Largest" and
// "likeliest" always mean the order "score down, then id up", so equal scores have one order. Nothing as long as the vocabulary
// is sorted, or allocated for each token. Letter: V vocabulary.

import { assert, GptdError } from './errors.ts';

/** One row of a head's outputs, with the two numbers that the engine computes of it: see logitOutputs in programs/head.ts. */
export interface LogitRow {
  /** The logits (V,), which are only read. */
  readonly logits: Float32Array;
  /** The largest logit, or NaN where a logit is not a finite number. */
  readonly max: number;
  /** This is log(sum(exp(logit - max))). */
  readonly logSum: number;
}

/** logits (N, V), max (N,), logSum (N,) -> views of the rows. */
export function logitRows({ logits, max, logSum }: Readonly<Record<string, Float32Array>>): LogitRow[] {
  const V = logits.length / max.length;
  return Array.from(max, (value, row) => ({
    logits: logits.subarray(row * V, (row + 1) * V),
    max: value,
    logSum: logSum[row],
  }));
}

export interface SampleOptions {
  /** Divides the logits. A temperature of 0 takes the largest logit. */
  readonly temperature: number;
  /** Keeps the k largest ids. */
  readonly topK?: number | undefined;
  /** Keeps the fewest of the likeliest ids whose probabilities sum to at least topP of what top-k left. 1 keeps all. */
  readonly topP?: number | undefined;
  /** Keeps the ids that are at least minP times as probable as the most probable id. */
  readonly minP?: number | undefined;
  /** Divides the positive logits of the ids in `history` and multiplies the others, once for each id. */
  readonly repetitionPenalty?: number | undefined;
  /** Is subtracted once from the logit of each id that was generated. */
  readonly presencePenalty?: number | undefined;
  /** Is subtracted from the logit of an id once for each time that the id was generated. */
  readonly frequencyPenalty?: number | undefined;
  /** Maps ids to what is added to their logits. */
  readonly logitBias?: ReadonlyMap<number, number> | undefined;
  /** The ids that are never picked. */
  readonly bannedIds?: readonly number[] | undefined;
  /** The ids so far. The ids from `promptLength` on were generated. */
  readonly history?: readonly number[] | undefined;
  readonly promptLength?: number | undefined;
  /** The number of likeliest tokens to list. */
  readonly logprobs?: number | undefined;
  /** A uniform draw in [0, 1). */
  readonly u: number;
}

export interface Logprob {
  readonly id: number;
  /**
   * The natural logarithm of softmax(logits)[id], without any penalty, bias, temperature or filter.
   */
  readonly logprob: number;
}

export interface Sample extends Logprob {
  /** With `logprobs`, the likeliest tokens of the unchanged logits, the likeliest first. A small vocabulary may have fewer. */
  readonly top?: readonly Logprob[];
}

// These arrays are this thread's scratch memory. They grow to the largest vocabulary seen.
let adjusted = new Float64Array(0);
/** Candidate i is token ids[i] with weight exp(exponents[i]). The likeliest candidate has weight 1. */
let ids = new Uint32Array(0);
let exponents = new Float64Array(0);
let weights = new Float64Array(0);
/** Holds ids or candidates in the order that a selection needs. */
let order = new Uint32Array(0);
const counts = new Map<number, number>();

type Scores = Float32Array | Float64Array;

/**
 * Picks one token. Ids beyond V in the options are ignored. Throws `engine_failed` when a logit is not finite, and `invalid_spec`
 * when every id is banned. The result depends on the arguments alone.
 */
export function sample(row: LogitRow, options: SampleOptions): Sample {
  const { temperature, u, logprobs = 0 } = options;
  const { logits } = row;
  assert(
    logits.length > 0 && temperature >= 0 && u >= 0 && u < 1,
    `temperature ${temperature} and u ${u} are in range`,
  );
  checkFinite(row);
  if (adjusted.length < logits.length) grow(logits.length);
  const scores = adjust(logits, options);
  const max = scores === logits ? row.max : largestOf(scores);
  if (max === -Infinity) {
    throw new GptdError('invalid_spec', 'Every token is banned: leave at least one id out of bannedIds.');
  }
  const id = temperature === 0 ? scores.indexOf(max) : draw(scores, { ...options, max });
  const of = (token: number): Logprob => ({ id: token, logprob: logprobOf(row, token) });
  return logprobs === 0 ? of(id) : { ...of(id), top: largestIds(logits, logprobs).map(of) };
}

/** Returns the model's own logprob of a token. Throws `engine_failed` when a logit is not finite. */
export function logprobOf(row: LogitRow, id: number): number {
  checkFinite(row);
  return row.logits[id] - row.max - row.logSum;
}

function grow(V: number): void {
  adjusted = new Float64Array(V);
  ids = new Uint32Array(V);
  exponents = new Float64Array(V);
  weights = new Float64Array(V);
  order = new Uint32Array(V);
}

function checkFinite({ logits, max }: LogitRow): void {
  if (Number.isFinite(max)) return;
  const id = logits.findIndex((logit) => !Number.isFinite(logit));
  throw new GptdError(
    'engine_failed',
    `The logit of token ${id} is ${logits[id]}: every logit must be a finite number.`,
  );
}

function largestOf(scores: Scores): number {
  let max = -Infinity;
  for (let id = 0; id < scores.length; id++) if (scores[id] > max) max = scores[id];
  return max;
}

const EXP_STEPS = 64;
const STEPS_PER_LN = EXP_STEPS / Math.LN2;
// STEP_HIGH and STEP_LOW are ln(2) / 64 in two parts. Multiples of the first part, a float, are exact in double precision. The
// second part holds what the float and the double Math.LN2 lack.
const STEP_HIGH = Math.fround(Math.LN2 / EXP_STEPS);
const STEP_LOW = Math.LN2 / EXP_STEPS - STEP_HIGH + 2.3190468138462996e-17 / EXP_STEPS;
const EXP_X_MIN = -700;
/** Holds 2^(-i / 64), down to exp(EXP_X_MIN). */
const EXP_TABLE = Float64Array.from(
  { length: Math.ceil(-EXP_X_MIN * STEPS_PER_LN) + 2 },
  (_, i) => 2 ** (-i / EXP_STEPS),
);

/**
 * Returns exp(x) for x <= 0, and 0 below -700. A table and a polynomial give it within 1e-15 of Math.exp and several times as
 * fast.
 */
function expNonPositive(x: number): number {
  if (x < EXP_X_MIN) return 0;
  const i = (0.5 - x * STEPS_PER_LN) | 0;
  const r = x + i * STEP_HIGH + i * STEP_LOW;
  return EXP_TABLE[i] * (1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120))))));
}

/**
 * Returns the logits after penalties, biases and the ban (-Infinity), or the logits themselves when there are no such options.
 */
function adjust(logits: Float32Array, options: SampleOptions): Scores {
  const { history = [], promptLength = 0, repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  const { logitBias, bannedIds = [] } = options;
  const repeated = repetitionPenalty !== 1 && history.length > 0;
  const counted = (presencePenalty !== 0 || frequencyPenalty !== 0) && history.length > promptLength;
  if (!repeated && !counted && (logitBias?.size ?? 0) === 0 && bannedIds.length === 0) return logits;

  const V = logits.length;
  const scores = adjusted.subarray(0, V);
  scores.set(logits);
  if (repeated) {
    for (const id of history) {
      if (id < V) scores[id] = logits[id] > 0 ? logits[id] / repetitionPenalty : logits[id] * repetitionPenalty;
    }
  }
  if (counted) {
    counts.clear();
    for (let i = promptLength; i < history.length; i++) counts.set(history[i], (counts.get(history[i]) ?? 0) + 1);
    for (const [id, count] of counts) if (id < V) scores[id] -= presencePenalty + count * frequencyPenalty;
  }
  for (const [id, bias] of logitBias ?? []) if (id < V) scores[id] += bias;
  for (const id of bannedIds) if (id < V) scores[id] = -Infinity;
  return scores;
}

/** Picks an id; `max` is the largest score. */
function draw(
  scores: Scores,
  { temperature, topK = Infinity, topP = 1, minP = 0, max, u }: SampleOptions & { readonly max: number },
): number {
  const V = scores.length;
  const last = topK < V ? lastOfLargest(scores, topK) : null;
  const cut = last === null ? -Infinity : scores[last];
  let count = 0;
  let total = 0;
  for (let id = 0; id < V; id++) {
    const score = scores[id];
    if (score < cut || (score === cut && last !== null && id > last)) continue;
    const exponent = (score - max) / temperature;
    const weight = expNonPositive(exponent);
    ids[count] = id;
    exponents[count] = exponent;
    weights[count] = weight;
    total += weight;
    count++;
  }
  if (topP < 1 || minP > 0) ({ count, total } = filter(count, { topP, minP, total }));
  const target = u * total;
  let sum = 0;
  let picked = 0;
  for (let i = 0; i < count && sum <= target; i++) {
    // An id that is banned, or too unlikely for a double, has weight 0.
    if (weights[i] > 0) picked = i;
    sum += weights[i];
  }
  return ids[picked];
}

/** Removes the candidates that top-p and min-p do not keep. The others stay in their order. */
function filter(
  count: number,
  { topP, minP, total }: { readonly topP: number; readonly minP: number; readonly total: number },
): { readonly count: number; readonly total: number } {
  const last = topP < 1 ? lastOfMass(count, topP * total) : count - 1;
  const cut = topP < 1 ? exponents[last] : -Infinity;
  let kept = 0;
  let mass = 0;
  for (let i = 0; i < count; i++) {
    const exponent = exponents[i];
    const weight = weights[i];
    if (exponent < cut || (exponent === cut && i > last) || weight < minP) continue;
    ids[kept] = ids[i];
    weights[kept] = weight;
    mass += weight;
    kept++;
  }
  return { count: kept, total: mass };
}

// ---- The k largest ---------------------------------------------------------------------------------------------------

/** Whether token a comes after token b. */
const isSmaller = (scores: Scores, a: number, b: number): boolean =>
  scores[a] < scores[b] || (scores[a] === scores[b] && a > b);

/** Makes order[0 .. k) a heap of the k largest ids and returns its root, the smallest of them. */
function lastOfLargest(scores: Scores, k: number): number {
  for (let id = 0; id < k; id++) order[id] = id;
  for (let at = (k >> 1) - 1; at >= 0; at--) sink(scores, at, k);
  let least = scores[order[0]];
  for (let id = k; id < scores.length; id++) {
    // Of equal scores the lower id stays.
    if (scores[id] > least) {
      order[0] = id;
      sink(scores, 0, k);
      least = scores[order[0]];
    }
  }
  return order[0];
}

function sink(scores: Scores, from: number, k: number): void {
  let at = from;
  const id = order[at];
  for (;;) {
    let child = 2 * at + 1;
    if (child >= k) break;
    if (child + 1 < k && isSmaller(scores, order[child + 1], order[child])) child++;
    if (!isSmaller(scores, order[child], id)) break;
    order[at] = order[child];
    at = child;
  }
  order[at] = id;
}

/** Returns the k largest ids, the largest first. */
function largestIds(scores: Scores, k: number): number[] {
  const count = Math.min(k, scores.length);
  lastOfLargest(scores, count);
  return Array.from(order.subarray(0, count)).sort((a, b) => scores[b] - scores[a] || a - b);
}

// ---- The likeliest with a given mass -----------------------------------------------------------------------------------

/** The candidates' weights are summed in buckets of exponents, all equally wide, so that only one bucket must be searched. */
const BUCKETS_PER_UNIT = 64;
const BUCKET_COUNT = 32 * BUCKETS_PER_UNIT;
const bucketMass = new Float64Array(BUCKET_COUNT);

const bucketOf = (exponent: number): number =>
  exponent > -32 ? Math.min(BUCKET_COUNT - 1, Math.floor(-exponent * BUCKETS_PER_UNIT)) : BUCKET_COUNT - 1;

/** Returns the last candidate of the shortest prefix, in the order of likelihood, whose weights sum to at least `target`. */
function lastOfMass(count: number, target: number): number {
  bucketMass.fill(0);
  for (let i = 0; i < count; i++) bucketMass[bucketOf(exponents[i])] += weights[i];
  let bucket = 0;
  let before = 0;
  while (bucket < BUCKET_COUNT - 1 && before + bucketMass[bucket] < target) before += bucketMass[bucket++];
  let size = 0;
  for (let i = 0; i < count; i++) if (bucketOf(exponents[i]) === bucket) order[size++] = i;
  // Rounding may have left the last bucket empty. Then all candidates before it are needed.
  if (size === 0) return leastLikely(count);
  return order[selectPrefix(size, target - before)];
}

function leastLikely(count: number): number {
  let least = 0;
  for (let i = 1; i < count; i++) if (exponents[i] <= exponents[least]) least = i;
  return least;
}

/**
 * Reorders order[0 .. size) so that it begins with the shortest prefix, in the order of likelihood, whose weights sum to at least
 * the target. Returns the index of that prefix's last candidate. This is quickselect, which takes linear time on average.
 */
function selectPrefix(size: number, target: number): number {
  let low = 0;
  let high = size - 1;
  let massBefore = 0;
  while (low < high) {
    const pivot = partition(low, high);
    let mass = 0;
    for (let i = low; i <= pivot; i++) mass += weights[order[i]];
    if (massBefore + mass >= target) {
      // The prefix may end earlier, unless the pivot itself is what reaches the target.
      if (pivot === low || massBefore + mass - weights[order[pivot]] < target) return pivot;
      high = pivot - 1;
    } else {
      massBefore += mass;
      low = pivot + 1;
    }
  }
  return Math.min(low, size - 1);
}

/** Partitions order[low .. high] around its middle candidate and returns the index where this candidate ends up. */
function partition(low: number, high: number): number {
  swap((low + high) >>> 1, high);
  const pivot = order[high];
  const pivotExponent = exponents[pivot];
  let end = low;
  for (let at = low; at < high; at++) {
    const i = order[at];
    if (exponents[i] > pivotExponent || (exponents[i] === pivotExponent && i < pivot)) {
      order[at] = order[end];
      order[end] = i;
      end++;
    }
  }
  swap(end, high);
  return end;
}

function swap(a: number, b: number): void {
  const i = order[a];
  order[a] = order[b];
  order[b] = i;
}
