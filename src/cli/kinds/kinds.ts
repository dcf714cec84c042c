// The records of all kinds of jobs. This file does not compile when a kind of the wire contract has no record.

import type { JobKind } from '../../daemon/protocol/kinds.ts';
import { createKind } from './create.ts';
import { evaluateKind } from './evaluate.ts';
import { exportKind } from './export.ts';
import { generateKind } from './generate.ts';
import { importKind } from './import.ts';
import type { JobKindRecord } from './kind.ts';
import { paramsKind } from './params.ts';
import { trainKind } from './train.ts';

export const KINDS: Readonly<Record<JobKind, JobKindRecord>> = {
  params: paramsKind,
  create: createKind,
  train: trainKind,
  generate: generateKind,
  evaluate: evaluateKind,
  import: importKind,
  export: exportKind,
};
