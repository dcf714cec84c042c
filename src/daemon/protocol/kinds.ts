// The kinds of jobs and the schemas of their specs: the one list that a new kind is added to.

import type { z } from 'zod';
import { evaluateSpec } from './evaluation.ts';
import { generateSpec } from './generation.ts';
import { exportSpec, importSpec } from './interchange.ts';
import { createSpec, paramsSpec } from './models.ts';
import { trainSpec } from './training.ts';

export const JOB_SPECS = {
  params: paramsSpec,
  create: createSpec,
  train: trainSpec,
  generate: generateSpec,
  evaluate: evaluateSpec,
  import: importSpec,
  export: exportSpec,
} as const;

export type JobKind = keyof typeof JOB_SPECS;

export const JOB_KINDS = Object.keys(JOB_SPECS) as JobKind[];

/** Specs with every default filled in, as jobs are stored. */
export type JobSpecs = { readonly [K in JobKind]: z.output<(typeof JOB_SPECS)[K]> };

/** Specs as a client writes them. */
export type JobSpecInputs = { readonly [K in JobKind]: z.input<(typeof JOB_SPECS)[K]> };

export type TrainSpec = JobSpecs['train'];

export type GenerateSpec = JobSpecs['generate'];
