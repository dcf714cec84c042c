// How an `export` job is printed: what was written, file by file.

import type { ExportResult } from '../../daemon/protocol/interchange.ts';
import { formatBytes, formatCount } from '../render/records.ts';
import { documentKind } from './kind.ts';

export const formatExported = ({ model, step, format, type, files }: ExportResult): string =>
  [
    `${model}: step ${formatCount(step)} as ${format} (${type})`,
    ...files.map(({ name, bytes, digest }) => `${name}  ${formatBytes(bytes)}  ${digest}`),
  ].join('\n');

export const exportKind = documentKind(formatExported);
