// This file lists the kinds of jobs, with the schemas of their specs and the types of their results. A new kind is added here.

import type { z } from 'zod';
import { evaluateSpec, type EvaluateResult } from './evaluation.ts';
import { generateSpec, type GenerateResult } from './generation.ts';
import { exportSpec, importSpec, type ExportResult } from './interchange.ts';
import { createSpec, paramsSpec, type CreateResult, type ParamsResult } from './models.ts';
import { trainSpec, type TrainResult } from './training.ts';

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

/** The specs with every default filled in, as jobs are stored. */
export type JobSpecs = { readonly [K in JobKind]: z.output<(typeof JOB_SPECS)[K]> };

/** The specs as a client writes them. */
export type JobSpecInputs = { readonly [K in JobKind]: z.input<(typeof JOB_SPECS)[K]> };

export type TrainSpec = JobSpecs['train'];

export type GenerateSpec = JobSpecs['generate'];

/** The result of a job that has succeeded, by kind. */
export interface JobResults {
  readonly params: ParamsResult;
  readonly create: CreateResult;
  readonly train: TrainResult;
  readonly generate: GenerateResult;
  readonly evaluate: EvaluateResult;
  readonly import: CreateResult;
  readonly export: ExportResult;
}
