// How a `create` job is printed: one line about the new model.

import type { CreateResult } from '../../daemon/protocol/models.ts';
import { formatCount } from '../render/records.ts';
import { documentKind } from './kind.ts';

export const formatCreated = (result: CreateResult): string =>
  `${result.model}: ${formatCount(result.parameters)} parameters, step ${result.step}, digest ${result.digest}`;

export const createKind = documentKind(formatCreated);
