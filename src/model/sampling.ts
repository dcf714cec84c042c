// From one row of logits to the next token. In this order: the repetition penalty, the presence and frequency penalties, the
// biases, the ban; then, unless the largest is taken, the temperature, top-k, top-p and min-p. One uniform draw, made by the
// caller, picks among what is left by walking the kept ids in ascending order. "Largest" and "likeliest" always mean the order
// "score down, then id up", so equal scores have one order. Nothing as long as the vocabulary is sorted, or allocated twice.
// Letter: V vocabulary.

import { assert, GptdError } from './errors.ts';

/** One row of a head's outputs, with what the engine tells of it: logitOutputs in head.ts. */
export interface LogitRow {
  /** (V,), only read. */
  readonly logits: Float32Array;
  /** NaN where a logit is not a finite number. */
  readonly max: number;
  /** log(sum(exp(logit - max))) */
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
  /** 0 takes the largest. */
  readonly temperature: number;
  /** Keep the k largest. */
  readonly topK?: number | undefined;
  /** Keep the fewest largest whose probabilities sum to at least topP of what top-k left. 1 keeps all. */
  readonly topP?: number | undefined;
  /** Keep those at least minP times as probable as the most probable. */
  readonly minP?: number | undefined;
  /** Logits of ids in `history` are divided by it when positive, multiplied by it otherwise; each id once. */
  readonly repetitionPenalty?: number | undefined;
  /** Taken from the logits of ids that were generated: once, and once for each time. */
  readonly presencePenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  /** Added to the logits of its ids. */
  readonly logitBias?: ReadonlyMap<number, number> | undefined;
  /** Never picked. */
  readonly bannedIds?: readonly number[] | undefined;
  /** The ids so far; those from `promptLength` on were generated. */
  readonly history?: readonly number[] | undefined;
  readonly promptLength?: number | undefined;
  /** How many of the likeliest tokens to list. */
  readonly logprobs?: number | undefined;
  /** A uniform draw in [0, 1). */
  readonly u: number;
}

export interface Logprob {
  readonly id: number;
  /**
   * Natural logarithm of softmax(logits)[id], over the logits as they came in: no penalty, no bias, no temperature, no filter.
   */
  readonly logprob: number;
}

export interface Sample extends Logprob {
  /** With `logprobs`, the likeliest tokens of the logits as they came in, likeliest first; fewer in a small vocabulary. */
  readonly top?: readonly Logprob[];
}

// Scratch of this thread, grown to the largest vocabulary seen.
let adjusted = new Float64Array(0);
/** Candidate i is token ids[i] with weight exp(exponents[i]); the largest has weight 1. */
let ids = new Uint32Array(0);
let exponents = new Float64Array(0);
let weights = new Float64Array(0);
/** Candidates in the order that a selection needs. */
let order = new Uint32Array(0);
const counts = new Map<number, number>();

type Scores = Float32Array | Float64Array;

/**
 * Picks one token; ids beyond V are ignored. Throws `engine_failed` when a logit is not finite, and `invalid_spec` when every id
 * is banned. The result depends on the arguments alone.
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

/** The model's own logprob of a token. Throws `engine_failed` when a logit is not finite. */
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

/** The logits after penalties, biases and the ban (-Infinity); the logits themselves when there are none. */
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
    // What is banned, or too unlikely for a double, has weight 0.
    if (weights[i] > 0) picked = i;
    sum += weights[i];
  }
  return ids[picked];
}

/** Leaves the candidates that top-p and min-p keep, in their order. */
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

/** order[0 .. k) becomes a heap of the k largest, the smallest of them at its root, which is returned. */
function lastOfLargest(scores: Scores, k: number): number {
  for (let id = 0; id < k; id++) order[id] = id;
  for (let at = (k >> 1) - 1; at >= 0; at--) sink(scores, at, k);
  let least = scores[order[0]];
  for (let id = k; id < scores.length; id++) {
    // On ties the lower id stays.
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

/** The k largest ids, largest first. */
function largestIds(scores: Scores, k: number): number[] {
  const count = Math.min(k, scores.length);
  lastOfLargest(scores, count);
  return Array.from(order.subarray(0, count)).sort((a, b) => scores[b] - scores[a] || a - b);
}

// ---- The likeliest with a given mass -----------------------------------------------------------------------------------

/** Candidates are put into buckets of equal width of their exponent, so that only one bucket has to be looked into. */
const BUCKETS_PER_UNIT = 64;
const BUCKET_COUNT = 32 * BUCKETS_PER_UNIT;
const bucketMass = new Float64Array(BUCKET_COUNT);

const bucketOf = (exponent: number): number =>
  exponent > -32 ? Math.min(BUCKET_COUNT - 1, Math.floor(-exponent * BUCKETS_PER_UNIT)) : BUCKET_COUNT - 1;

/** The last candidate of the shortest prefix, likeliest first, whose weights sum to at least `target`. */
function lastOfMass(count: number, target: number): number {
  bucketMass.fill(0);
  for (let i = 0; i < count; i++) bucketMass[bucketOf(exponents[i])] += weights[i];
  let bucket = 0;
  let before = 0;
  while (bucket < BUCKET_COUNT - 1 && before + bucketMass[bucket] < target) before += bucketMass[bucket++];
  let size = 0;
  for (let i = 0; i < count; i++) if (bucketOf(exponents[i]) === bucket) order[size++] = i;
  // Rounding may have left the last bucket empty: then everything before it is needed.
  if (size === 0) return leastLikely(count);
  return order[selectPrefix(size, target - before)];
}

function leastLikely(count: number): number {
  let least = 0;
  for (let i = 1; i < count; i++) if (exponents[i] <= exponents[least]) least = i;
  return least;
}

/**
 * Reorders order[0 .. size) so that the shortest prefix, likeliest first, whose weights sum to at least the target comes first;
 * returns the index of that prefix's last candidate. This is quickselect: linear time on average.
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

/** Partitions order[low .. high] around the middle one and returns where it ends up. */
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
