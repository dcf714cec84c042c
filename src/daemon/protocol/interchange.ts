// This file defines the specs and results of imports and exports. The daemon opens no path that a client names: an import is made
// of blobs, and an export makes blobs that the client fetches by the digests in its result.

import { z } from 'zod';
import { CONFIG_MAX } from '../../model/config.ts';
import { digest, integer, LIMITS, modelName, modelReference, TOKENIZERS } from './fields.ts';

/** The files of a tokenizer that an import keeps with its model and an export gives back. */
export const TOKENIZER_FILES = [
  'tokenizer.json',
  'vocab.json',
  'merges.txt',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
] as const;
/** Weights are in one file, or in shards with an index that tells which tensor is where. */
export const WEIGHTS_FILE = 'model.safetensors';
export const WEIGHTS_INDEX_FILE = 'model.safetensors.index.json';
export const SHARD_PATTERN = /^model-\d{5}-of-\d{5}\.safetensors$/;

const IMPORT_FILES: readonly string[] = [WEIGHTS_FILE, WEIGHTS_INDEX_FILE, 'config.json', ...TOKENIZER_FILES];
const importFileName = z
  .string()
  .refine(
    (name) => IMPORT_FILES.includes(name) || SHARD_PATTERN.test(name),
    `a file of an import is ${IMPORT_FILES.join(', ')} or a shard like model-00001-of-00002.safetensors`,
  );

export const importSpec = z.strictObject({
  model: modelName,
  /**
   * The digests of the files, by name. Without a config.json the configuration is in the weights' own metadata, or inferred from
   * shapes.
   */
  files: z
    .record(importFileName, digest)
    .refine((files) => WEIGHTS_FILE in files !== WEIGHTS_INDEX_FILE in files, {
      message: `give ${WEIGHTS_FILE}, or ${WEIGHTS_INDEX_FILE} with its shards`,
    })
    .refine((files) => Object.keys(files).length <= LIMITS.dataFilesMax, { message: 'too many files' }),
  tokenizer: z.enum(TOKENIZERS).optional(),
  /** The number of heads, for weights that come without a configuration. */
  nHeads: integer(1, CONFIG_MAX.n_heads).optional(),
});

export const EXPORT_FORMATS = ['safetensors', 'gguf', 'onnx'] as const;
export type ExportFormat = (typeof EXPORT_FORMATS)[number];
/** The types that matrices are written in. Vectors and positions stay f32. */
export const EXPORT_TYPES = ['f32', 'f16', 'q8_0', 'q4_0'] as const;
export type ExportType = (typeof EXPORT_TYPES)[number];
/** The types that each format can hold. The first one is its default. */
const TYPES_OF_FORMAT: Readonly<Record<ExportFormat, readonly ExportType[]>> = {
  safetensors: ['f32', 'f16'],
  gguf: ['f32', 'f16', 'q8_0', 'q4_0'],
  onnx: ['f32'],
};

export const exportSpec = z
  .strictObject({
    model: modelReference,
    format: z.enum(EXPORT_FORMATS),
    type: z.enum(EXPORT_TYPES).default('f32'),
  })
  .refine(({ format, type }) => TYPES_OF_FORMAT[format].includes(type), {
    path: ['type'],
    error: (issue) => {
      const { format } = issue.input as { format: ExportFormat };
      return `${format} is written as ${TYPES_OF_FORMAT[format].join(' or ')}`;
    },
  });

/** A file of an export: its path below the directory that it is meant for, with slashes, and the blob that holds it. */
export interface ExportedFile {
  readonly name: string;
  readonly digest: string;
  readonly bytes: number;
}

export interface ExportResult {
  readonly model: string;
  readonly step: number;
  /** The digest of the weights. */
  readonly digest: string;
  readonly format: ExportFormat;
  readonly type: ExportType;
  /** Lists the files of the weights first. */
  readonly files: readonly ExportedFile[];
}

/** Holds what `gptd inspect` finds in one file. */
export interface InspectedFile {
  readonly path: string;
  readonly bytes: number;
  readonly format: 'safetensors' | 'gguf' | 'onnx' | 'tokens' | 'llm.c tokens';
  readonly tensors: readonly { readonly name: string; readonly dtype: string; readonly shape: readonly number[] }[];
  readonly parameters: number;
  readonly metadata: Readonly<Record<string, unknown>>;
}

export interface Inspection {
  readonly path: string;
  readonly files: readonly InspectedFile[];
  /** A guess at the architecture, in words. */
  readonly architecture: string;
}
