// This writes text to a file of token ids, as nanoGPT (plain uint16) and llm.c (the same behind a header of 256 numbers) read
// them. The ids are those that training on the text would see. It needs no daemon.

import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { GptdError } from '../model/errors.ts';
import { llmcHeader } from '../model/formats/token-files.ts';
import { createTokenizer } from '../model/text/create-tokenizer.ts';

export interface TokenExport {
  readonly files: readonly string[];
  readonly tokenizer: 'gpt2' | 'byte';
  readonly out: string;
  readonly llmc: boolean;
}

/**
 * Resolves to the number of tokens in the file. Documents, which are files and the lines of .jsonl, are separated as in training.
 * Throws `invalid_spec` for a file that is not text.
 */
export async function exportTokens({ files, tokenizer: name, out, llmc }: TokenExport): Promise<{ tokens: number }> {
  const tokenizer = await createTokenizer({ type: name });
  const parting = tokenizer.endOfText === null ? tokenizer.encode('\n') : Uint32Array.of(tokenizer.endOfText);
  const part = `${out}.part-${process.pid}`;
  const descriptor = openSync(part, 'w', 0o644);
  try {
    let tokens = 0;
    if (llmc) writeSync(descriptor, llmcHeader(tokens));
    for (const file of files) {
      for (const document of await documentsOf(file)) {
        for (const ids of [tokens === 0 ? new Uint32Array() : parting, tokenizer.encode(document)]) {
          const bytes = new Uint8Array(Uint16Array.from(ids).buffer);
          for (let at = 0; at < bytes.length;) at += writeSync(descriptor, bytes, at);
          tokens += ids.length;
        }
      }
    }
    if (llmc) writeSync(descriptor, llmcHeader(tokens), 0, undefined, 0);
    renameSync(part, out);
    return { tokens };
  } finally {
    closeSync(descriptor);
    rmSync(part, { force: true });
  }
}

async function documentsOf(file: string): Promise<string[]> {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file));
  } catch (cause) {
    throw new GptdError('invalid_spec', `${file} cannot be read as UTF-8 text: ${(cause as Error).message}.`, {
      cause,
    });
  }
  if (path.extname(file).toLowerCase() !== '.jsonl') return [text];
  return text.split('\n').flatMap((line, i) => {
    if (line.trim() === '') return [];
    try {
      const { text: field } = JSON.parse(line) as { text?: unknown };
      if (typeof field === 'string') return [field];
    } catch {
      // The error is thrown below, because a line without a text is no better than one that is not JSON.
    }
    throw new GptdError('invalid_spec', `Line ${i + 1} of ${file} is no JSON object with a "text" that is a string.`);
  });
}
