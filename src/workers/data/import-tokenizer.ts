// Which tokenizer the files of an import tell: our own note in config.json, else the vocabulary beside it. A vocabulary that
// is GPT-2's own is known by that name; one that cannot be imitated leaves the model with token ids alone, and a note why.

import { readBpe } from '../../model/text/bpe-files.ts';
import { vocabularyTokenizer } from '../../model/text/choice.ts';
import type { GptConfig } from '../../model/config.ts';
import { GptdError } from '../../model/errors.ts';
import { charAlphabet } from '../../model/text/create-tokenizer.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { ChunkReader } from '../store/reader.ts';

/** A longer file of a tokenizer is refused; GPT-2's longest has 2 MB. */
const TOKENIZER_FILE_BYTES_MAX = 16 << 20;

interface ReadTokenizer {
  readonly tokenizer: TokenizerSpec | null;
  readonly notes: readonly string[];
}

export async function readTokenizer(
  reader: ChunkReader,
  { files, json, config }: { files: Readonly<Record<string, string>>; json: unknown; config: GptConfig },
): Promise<ReadTokenizer> {
  const text = (name: string): string | undefined => {
    if (!Object.hasOwn(files, name)) return undefined;
    const size = reader.blobSize(files[name]);
    if (size > TOKENIZER_FILE_BYTES_MAX) {
      throw new GptdError(
        'limit_exceeded',
        `${name} has ${size} bytes: it may have at most ${TOKENIZER_FILE_BYTES_MAX}.`,
      );
    }
    return new TextDecoder().decode(reader.readBlob(files[name]));
  };
  const parsed = (name: string): unknown => {
    const content = text(name);
    return content === undefined ? undefined : parseJson(content, name);
  };
  const own = ownTokenizer(json);
  if (own !== null) return { tokenizer: own, notes: [] };
  const [tokenizerJson, vocabJson, mergesText] = [parsed('tokenizer.json'), parsed('vocab.json'), text('merges.txt')];
  if (tokenizerJson === undefined && vocabJson === undefined) return { tokenizer: null, notes: [] };
  try {
    const vocabulary = readBpe({ tokenizerJson, vocabJson, mergesText });
    return { tokenizer: await vocabularyTokenizer(vocabulary, config.vocab_size), notes: [] };
  } catch (error) {
    if (!(error instanceof GptdError) || error.code !== 'incompatible') throw error;
    const note = `${error.message} Its files are kept; this model takes prompts as token ids (--prompt-ids).`;
    return { tokenizer: null, notes: [note] };
  }
}

/** What an export of ours wrote into config.json: a tokenizer that needs no vocabulary. */
function ownTokenizer(json: unknown): TokenizerSpec | null {
  const { gptd } = (json ?? {}) as { gptd?: { tokenizer?: unknown } | null };
  const { type, alphabet } = (gptd?.tokenizer ?? {}) as { type?: unknown; alphabet?: unknown };
  if (type === 'gpt2' || type === 'byte') return { type };
  if (type !== 'char') return null;
  if (typeof alphabet !== 'string' || alphabet === '' || charAlphabet(alphabet) !== alphabet) {
    throw new GptdError('corrupt', 'config.json gives an alphabet that is not in code point order.');
  }
  return { type, alphabet };
}

/** `what` names the text in the error. Throws `corrupt` for what is not JSON. */
export function parseJson(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new GptdError('corrupt', `${what} is not JSON.`, { cause: error });
  }
}
