// Reads our configuration from a safetensors file and the config.json beside it, and finds the tensor of the file for each of our
// tensors. It knows Hugging Face's GPT-2 configurations and our own, whose fields are those of GptConfig. GPT-2's layouts are
// ours, so nothing is transposed.

import { checkConfig, PRESETS, type GptConfig } from '../config.ts';
import { GptdError } from '../errors.ts';
import { feedForwardWidth, tensorTable } from '../tensors.ts';

export interface NamedShape {
  readonly name: string;
  readonly shape: readonly number[];
}

export interface HuggingFaceModel {
  readonly config: GptConfig;
  /** Maps the name of every tensor of our table to its name in the file. */
  readonly rename: ReadonlyMap<string, string>;
  /** The file's name of a head that a tied model carries along. It must equal the token embedding. */
  readonly spareHead: string | null;
}

const HEAD = 'lm_head.weight';
const QKV_BIAS = 'h.0.attn.c_attn.bias';
/** The classes of Hugging Face whose weights are a GPT-2 and nothing else. */
const ARCHITECTURES: ReadonlySet<string> = new Set(['GPT2LMHeadModel', 'GPT2Model']);
/** The names of causal masks, which old exports carry. They are not weights. */
const BUFFERS = /^h\.\d+\.attn\.(bias|masked_bias)$/;

interface HuggingFaceFile {
  /** The parsed config.json, or a configuration from the weights' own metadata; null when there is neither. */
  readonly json: unknown;
  readonly tensors: readonly NamedShape[];
  /** The number of heads that the user gave, for weights that come without a configuration. */
  readonly headCount?: number | undefined;
}

/**
 * Reads a configuration and checks it against the tensors of the file, or infers it from the tensors. `qkv_bias` follows from the
 * tensors. A model without a head in the file is tied, unless the configuration says that it is not. For a model with a head the
 * configuration decides (`tie_word_embeddings`, or our `tie_weights`). A configuration that says nothing has its dialect's
 * default: Hugging Face's ties, ours does not. Throws `incompatible` for a configuration that is not GPT-2's, for a missing or
 * unknown tensor and for a wrong shape.
 */
export function configFromHuggingFace({ json, tensors, headCount }: HuggingFaceFile): HuggingFaceModel {
  const inFile = new Map<string, NamedShape>();
  for (const tensor of tensors) {
    const name = tensor.name.replace(/^transformer\./, '');
    if (BUFFERS.test(name)) continue;
    const twin = inFile.get(name);
    if (twin !== undefined) throw incompatible(`Tensors ${twin.name} and ${tensor.name} are both ${name}.`);
    inFile.set(name, tensor);
  }
  const config =
    json === null
      ? inferConfig(inFile, headCount)
      : readConfig(requireObject(json), {
          hasHead: inFile.has(HEAD),
          hasQkvBias: inFile.has(QKV_BIAS),
          headCount,
        });
  const source = json === null ? 'the other tensors' : 'the configuration';
  const head = inFile.get(HEAD)?.name ?? null;
  if (config.tie_weights) inFile.delete(HEAD);

  const rename = new Map<string, string>();
  for (const { name, shape } of tensorTable(config)) {
    const found = inFile.get(name);
    if (found === undefined) throw incompatible(`Tensor ${name} of shape ${shown(shape)} is missing from the weights.`);
    if (shown(found.shape) !== shown(shape)) {
      throw incompatible(
        `Tensor ${found.name} has shape ${shown(found.shape)} but ${shown(shape)} is wanted by ${source}.`,
      );
    }
    rename.set(name, found.name);
    inFile.delete(name);
  }
  for (const { name, shape } of inFile.values()) {
    throw incompatible(`Tensor ${name} of shape ${shown(shape)} has no place in a GPT-2 of ${config.n_layers} blocks.`);
  }
  return { config, rename, spareHead: config.tie_weights ? head : null };
}

/** Infers the configuration from shapes. The number of heads is given, or that of the preset that has exactly these shapes. */
function inferConfig(inFile: ReadonlyMap<string, NamedShape>, headCount: number | undefined): GptConfig {
  const matrix = (name: string): readonly number[] => {
    const tensor = inFile.get(name);
    if (tensor === undefined) {
      throw incompatible(
        `Tensor ${name} is missing: these weights are not those of a GPT-2, the one supported architecture.`,
      );
    }
    if (tensor.shape.length !== 2) {
      throw incompatible(`Tensor ${tensor.name} has shape ${shown(tensor.shape)} but two dimensions are wanted.`);
    }
    return tensor.shape;
  };
  const [vocab_size, emb_dim] = matrix('wte.weight');
  const [context_length] = matrix('wpe.weight');
  const blocks = [...inFile.keys()].map((name) => Number(/^h\.(\d{1,6})\./.exec(name)?.[1] ?? -1));
  const shape = { vocab_size, context_length, emb_dim, n_layers: Math.max(...blocks) + 1 };
  const known = Object.values(PRESETS).find((preset) =>
    Object.entries(shape).every(([field, value]) => preset[field as keyof GptConfig] === value),
  );
  const n_heads = headCount ?? known?.n_heads;
  if (n_heads === undefined) {
    throw incompatible('There is no config.json, and shapes do not tell the number of heads: give it with --n-heads.');
  }
  return checked({
    ...shape,
    n_heads,
    drop_rate: 0,
    qkv_bias: inFile.has(QKV_BIAS),
    tie_weights: !inFile.has(HEAD),
  });
}

function readConfig(
  fields: Readonly<Record<string, unknown>>,
  {
    hasHead,
    hasQkvBias,
    headCount,
  }: { readonly hasHead: boolean; readonly hasQkvBias: boolean; readonly headCount: number | undefined },
): GptConfig {
  const { model_type: type, architectures, n_inner: inner } = fields;
  if (type !== undefined && type !== 'gpt2' && type !== 'gptd') {
    throw incompatible(`The model_type is ${shownValue(type)}: the one supported architecture is "gpt2".`);
  }
  const others = Array.isArray(architectures) ? architectures.filter((name) => !ARCHITECTURES.has(name as string)) : [];
  if (others.length > 0) {
    throw incompatible(
      `The architecture is ${shownValue(others[0])}: supported are ${[...ARCHITECTURES].join(' and ')}.`,
    );
  }
  const activation = fields['activation_function'];
  if (activation !== undefined && activation !== 'gelu_new' && activation !== 'gelu_pytorch_tanh') {
    throw incompatible(`The activation_function is ${shownValue(activation)}: it must be "gelu_new".`);
  }
  const epsilon = fields['layer_norm_epsilon'];
  if (epsilon !== undefined && epsilon !== 1e-5) {
    throw incompatible(`The layer_norm_epsilon is ${shownValue(epsilon)}: it must be 1e-5.`);
  }
  if (fields['scale_attn_weights'] === false || fields['scale_attn_by_inverse_layer_idx'] === true) {
    throw incompatible(
      'The attention must be scaled by 1/sqrt(head width): scale_attn_weights true, scale_attn_by_inverse_layer_idx false.',
    );
  }
  const tieFlag = fields['tie_word_embeddings'] ?? fields['tie_weights'] ?? fields['tied'];
  const tied = tieFlag === undefined || tieFlag === null ? fields['emb_dim'] === undefined : tieFlag !== false;
  const config = {
    vocab_size: requireNumber(fields, ['vocab_size']),
    context_length: requireNumber(fields, ['context_length', 'n_positions', 'n_ctx']),
    emb_dim: requireNumber(fields, ['emb_dim', 'n_embd']),
    n_heads: requireNumber({ given: headCount, ...fields }, ['n_heads', 'n_head', 'given']),
    n_layers: requireNumber(fields, ['n_layers', 'n_layer']),
    drop_rate: requireNumber({ none: 0, ...fields }, ['drop_rate', 'resid_pdrop', 'none']),
    qkv_bias: hasQkvBias,
    tie_weights: tied || (!hasHead && tieFlag !== false),
  };
  if (headCount !== undefined && headCount !== config.n_heads) {
    throw incompatible(`config.json has ${config.n_heads} heads and --n-heads is ${headCount}: leave the flag out.`);
  }
  if (inner !== undefined && inner !== null && inner !== feedForwardWidth(config)) {
    throw incompatible(
      `The n_inner is ${shownValue(inner)}: it must be 4 times the width, ${feedForwardWidth(config)}.`,
    );
  }
  return checked(config);
}

function checked(config: GptConfig): GptConfig {
  try {
    return checkConfig(config);
  } catch (cause) {
    throw new GptdError('incompatible', `The configuration is impossible: ${(cause as Error).message}`, { cause });
  }
}

function requireObject(json: unknown): Readonly<Record<string, unknown>> {
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw incompatible('config.json is not an object.');
  return json as Record<string, unknown>;
}

/** Returns the value of the first of the names that is present. */
function requireNumber(fields: Readonly<Record<string, unknown>>, names: readonly string[]): number {
  const name = names.find((candidate) => fields[candidate] !== undefined && fields[candidate] !== null);
  if (name === undefined) throw incompatible(`config.json has no ${names.join(' or ')}.`);
  const value = fields[name];
  if (typeof value !== 'number')
    throw incompatible(`The ${name} of config.json is ${shownValue(value)}: it must be a number.`);
  return value;
}

const incompatible = (message: string): GptdError => new GptdError('incompatible', message);
const shown = (shape: readonly number[]): string => `(${shape.join(', ')})`;
const shownValue = (value: unknown): string => JSON.stringify(value).slice(0, 100);
