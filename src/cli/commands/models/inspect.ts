// `gptd inspect`: shows what a file of weights or token ids holds, from its header. No daemon is asked. The code that reads
// formats is loaded only when the command runs.

import type { Command } from 'commander';
import type { Inspection } from '../../../daemon/protocol/interchange.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { formatBytes, formatCount } from '../../render/records.ts';

const VALUE_CHARACTERS_MAX = 100;

export function addInspectCommand(program: Command, context: CliContext): void {
  program
    .command('inspect')
    .argument('<path>', 'a .safetensors, .gguf, .onnx or .bin file, or a directory of them')
    .description('show what a file of weights holds without loading it; no daemon is needed')
    .option('--json', 'print one JSON document')
    .action(async (path: string, { json = false }: { readonly json?: boolean }) => {
      const { inspectPath } = await import('../../../offline/inspect.ts');
      const inspection = await inspectPath(path);
      if (json) printJson(context, inspection);
      else printText(context, formatInspection(inspection));
      context.exitCode = EXIT.ok;
    });
}

function formatInspection({ files, architecture }: Inspection): string {
  const lines = files.flatMap(({ path, format, bytes, parameters, metadata, tensors }) => [
    `${path}: ${format}, ${formatBytes(bytes)}, ${formatCount(tensors.length)} tensors, ${formatCount(parameters)} parameters`,
    ...Object.entries(metadata).map(
      ([key, value]) => `  ${key} = ${JSON.stringify(value).slice(0, VALUE_CHARACTERS_MAX)}`,
    ),
    ...tensors.map(({ name, dtype, shape }) => `  ${name}  ${dtype}  (${shape.join(', ')})`),
  ]);
  return [...lines, `architecture: ${architecture}`].join('\n');
}
