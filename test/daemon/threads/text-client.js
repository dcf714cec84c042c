// Reads and writes text in the built program with more tokenizers than the text thread keeps, and prints the results. The
// argument is the folder of the built program.

import path from 'node:path';
import { pathToFileURL } from 'node:url';

const { Texts, TOKENIZERS_MAX } = await import(
  pathToFileURL(path.join(process.argv[2], 'daemon/threads/texts.js')).href
);
const deaths = [];
const texts = new Texts({ onDeath: (error) => deaths.push(error) });
const letters = (n) => String.fromCodePoint(0x61 + n, 0x62 + n);
const models = Array.from({ length: 2 * TOKENIZERS_MAX }, (_, n) => ({
  model: { name: `m${n}`, createdAt: n },
  tokenizer: { type: 'char', alphabet: letters(n) },
}));
const bad = { model: { name: 'bad', createdAt: 0 }, tokenizer: { type: 'char', alphabet: 'ba' } };
const codeOf = (promise) =>
  promise.then(
    () => 'no error',
    ({ code }) => code,
  );

const round = async () => {
  // All of them are used at once. The thread opens each one, uses it, and closes it to make room.
  const results = await Promise.all(
    models.map(async (text, n) => {
      const [ids, decoding] = await Promise.all([texts.encode(text, letters(n).repeat(2)), texts.decoding(text)]);
      return ids.join() === '0,1,0,1' && decoding.decode(ids) === letters(n).repeat(2);
    }),
  );
  return results.filter(Boolean).length;
};
const report = {
  wanted: models.length,
  rounds: [await round(), await round()],
  isShared:
    (await texts.decoding(models[0])) === (await texts.decoding({ ...models[1], tokenizer: models[0].tokenizer })),
  refused: [
    await codeOf(texts.encode(models[0], 'z')),
    await codeOf(texts.decoding(bad)),
    await codeOf(texts.encode(bad, 'a')),
  ],
};
await texts.close();
await texts.close();
report.closed = await codeOf(texts.encode(models[0], 'a'));
report.deaths = deaths.length;
console.log(JSON.stringify(report));
