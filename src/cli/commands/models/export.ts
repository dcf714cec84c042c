// `gptd export`: a job writes the model in another program's format. Then the command fetches the files into a directory, or the
// weights alone into a file.

import { readdir, stat } from 'node:fs/promises';
import { Option, type Command } from 'commander';
import {
  EXPORT_FORMATS,
  EXPORT_TYPES,
  type ExportFormat,
  type ExportResult,
} from '../../../daemon/protocol/interchange.ts';
import { downloadFiles, type Target } from '../../client/download.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { usageError } from '../../exit-codes.ts';
import { addSubmitFlags, checkSpec, type SubmitFlags } from '../../flags.ts';
import { formatExported } from '../../kinds/export.ts';
import { submitJob } from '../../submit.ts';

interface ExportFlags extends SubmitFlags {
  readonly format: ExportFormat;
  readonly type?: string;
  readonly force?: boolean;
}

const EXTENSION: Readonly<Record<ExportFormat, string>> = {
  safetensors: '.safetensors',
  gguf: '.gguf',
  onnx: '.onnx',
};

export function addExportCommand(program: Command, context: CliContext): void {
  const command = program
    .command('export')
    .argument('<name>', 'model, NAME@STEP or NAME@best')
    .argument('<path>', 'directory to write, or a file for the weights alone')
    .description('write a model as safetensors (Hugging Face), GGUF (llama.cpp) or ONNX (transformers.js)')
    .addOption(new Option('--format <format>', 'what to write').choices([...EXPORT_FORMATS]).makeOptionMandatory())
    .addOption(new Option('--type <type>', 'how matrices are written (default: f32)').choices([...EXPORT_TYPES]))
    .option('--force', 'overwrite files that are there');
  addSubmitFlags(command).action(async (model: string, path: string, flags: ExportFlags) => {
    context.exitCode = await exportModel({ model, path }, { flags, context });
  });
}

async function exportModel(
  { model, path }: { readonly model: string; readonly path: string },
  { flags, context }: { readonly flags: ExportFlags; readonly context: CliContext },
): Promise<number> {
  const spec = { model, format: flags.format, type: flags.type };
  checkSpec('export', spec);
  const target = await checkTarget(path, { extension: EXTENSION[flags.format], force: flags.force === true });
  return submitJob({
    kind: 'export',
    flags,
    context,
    spec: () => Promise.resolve(spec),
    finish: async (result, { session, progress }) => {
      const exported = result as ExportResult;
      const paths = await downloadFiles(exported.files, {
        target,
        address: session.address,
        onProgress: (data) => progress.updatePhase(data),
      });
      progress.clear();
      if (flags.json === true) printJson(context, { ...exported, paths });
      else printText(context, [formatExported(exported), ...paths.map((written) => `wrote ${written}`)].join('\n'));
    },
  });
}

/**
 * Resolves to the target at `path`. Where nothing is there, `path` names a file if it ends in `extension`, and otherwise a
 * directory. Throws a usage error when a file or a directory that is not empty is there, unless `force` is set.
 */
async function checkTarget(
  path: string,
  { extension, force }: { readonly extension: string; readonly force: boolean },
): Promise<Target> {
  const there = await stat(path).catch(() => undefined);
  const isFile = there === undefined ? path.endsWith(extension) : there.isFile();
  if (force || there === undefined) return { path, isFile };
  if (isFile) throw usageError(`${path} is there already: take another name, or overwrite it with --force.`);
  if ((await readdir(path)).length > 0) {
    throw usageError(`${path} is not empty: take another directory, or overwrite files in it with --force.`);
  }
  return { path, isFile };
}
