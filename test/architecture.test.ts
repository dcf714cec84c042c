// The rules that hold the code together, as facts about its text: which folder may import what, how long a file may be, and
// what appears nowhere.

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';

const ROOT = path.resolve(import.meta.dirname, '..');
const LINES_MAX = 500;

interface Source {
  /** Relative to the repository, with slashes: `src/model/init.ts`. */
  readonly file: string;
  readonly text: string;
}

const sourcesUnder = (folder: string): Source[] =>
  readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.includes('node_modules'))
    .map((name) => path.join(folder, name))
    .map((file) => ({ file: file.replaceAll(path.sep, '/'), text: readFileSync(path.join(ROOT, file), 'utf8') }));

const SOURCES = sourcesUnder('src');
const FOLDERS = ['cli', 'daemon', 'workers', 'model'] as const;
type Folder = (typeof FOLDERS)[number];

/** What each folder may import of ours beside its own files: a folder, or one file of it. */
const OURS: Readonly<Record<Folder, readonly string[]>> = {
  cli: ['src/daemon/protocol/protocol.ts'],
  daemon: [
    ...['src/workers/ending.ts', 'src/workers/messages.ts', 'src/workers/reply.ts', 'src/model/'],
    // Looked at before the store's thread is started, which takes it.
    'src/workers/store/lock.ts',
  ],
  workers: ['src/model/'],
  model: [],
};

/** Commands that do the daemon's work themselves load its code, and only when they run. */
const EXCEPTIONS = [
  { from: 'src/cli/commands/start.ts', to: 'src/daemon/main.ts' },
  { from: 'src/cli/commands/inspect.ts', to: 'src/offline/inspect.ts' },
  { from: 'src/cli/commands/data.ts', to: 'src/offline/token-export.ts' },
  { from: 'src/cli/commands/selftest.ts', to: 'src/offline/selftest.ts' },
  { from: 'src/cli/commands/doctor.ts', to: 'src/offline/doctor.ts' },
  { from: 'src/cli/commands/backup.ts', to: 'src/offline/backup.ts' },
];

/** Node's modules that a pure layer may use: hashing is arithmetic. */
const PURE_NODE_MODULES = ['node:crypto'];

/** Entries that piscina calls through their default export. */
const WORKER_ENTRIES = [
  'src/workers/data/thread.ts',
  'src/offline/selftest-thread.ts',
  'src/workers/stage.ts',
  'src/workers/store/thread.ts',
];

const READS_ENVIRONMENT = ['src/cli/main.ts'];

const folderOf = ({ file }: Source): Folder => {
  const folder = FOLDERS.find((name) => file.startsWith(`src/${name}/`));
  if (folder === undefined) throw new Error(`${file} is in none of ${FOLDERS.join(', ')}`);
  return folder;
};

/** Everything that a file imports, types and dynamic imports included; our own files by their path in the repository. */
const importsOf = ({ file, text }: Source): string[] =>
  ts
    .preProcessFile(text, true, true)
    .importedFiles.map(({ fileName }) =>
      fileName.startsWith('.') ? path.posix.join(path.posix.dirname(file), fileName) : fileName,
    );

/** The text with blanks for its comments, which may name what the code may not. */
function codeOf({ text }: Source): string {
  let code = text;
  const visit = (node: ts.Node): void => {
    const start = node.getFullStart();
    const comments = [
      ...(ts.getTrailingCommentRanges(text, start) ?? []),
      ...(ts.getLeadingCommentRanges(text, start) ?? []),
    ];
    for (const { pos, end } of comments) {
      code = code.slice(0, pos) + ' '.repeat(end - pos) + code.slice(end);
    }
    node.getChildren().forEach(visit);
  };
  visit(ts.createSourceFile('source.ts', text, ts.ScriptTarget.Latest, true));
  return code;
}

const filesWhere = (sources: readonly Source[], holds: (source: Source) => boolean): string[] =>
  sources
    .filter(holds)
    .map(({ file }) => file)
    .sort();

test('the scan sees the code: every folder has files, and imports are found', () => {
  expect([...new Set(SOURCES.map(folderOf))].sort()).toEqual([...FOLDERS].sort());
  for (const { from, to } of EXCEPTIONS) {
    const command = SOURCES.find(({ file }) => file === from)!;
    expect(importsOf(command)).toEqual(expect.arrayContaining(['commander', 'src/cli/context.ts', to]));
  }
});

describe('imports point one way', () => {
  test.each(FOLDERS)('src/%s', (folder) => {
    const strangers = SOURCES.filter((source) => folderOf(source) === folder).flatMap((source) =>
      importsOf(source)
        .filter((target) => target.startsWith('src/') && !target.startsWith(`src/${folder}/`))
        .filter(
          (target) =>
            !OURS[folder].some(
              (allowed) => target === allowed || (allowed.endsWith('/') && target.startsWith(allowed)),
            ),
        )
        .filter((target) => !EXCEPTIONS.some(({ from, to }) => source.file === from && target === to))
        .map((target) => `${source.file} imports ${target}`),
    );
    expect(strangers).toEqual([]);
  });

  test('nothing leaves src, and our own files are named with their ending', () => {
    const odd = SOURCES.flatMap((source) =>
      importsOf(source)
        .filter(
          (target) =>
            target.startsWith('..') || (target.startsWith('src/') && !SOURCES.some(({ file }) => file === target)),
        )
        .map((target) => `${source.file} imports ${target}`),
    );
    expect(odd).toEqual([]);
  });

  test.each(EXCEPTIONS)('$from loads $to with a dynamic import only', ({ from, to }) => {
    const { text } = SOURCES.find(({ file }) => file === from)!;
    const path = to.replace('src/', '../');
    expect(text).toContain(`await import('${path}')`);
    expect(text).not.toContain(`from '${path}'`);
  });

  test('the model is pure: no module of Node but for hashing, no clock, no chance, no output', () => {
    const model = SOURCES.filter((source) => folderOf(source) === 'model');
    const nodeModules = model.flatMap(importsOf).filter((target) => target.startsWith('node:'));
    expect([...new Set(nodeModules)].filter((name) => !PURE_NODE_MODULES.includes(name))).toEqual([]);
    const impure = /\b(Math\.random|Date\.now|new Date|performance|setTimeout|setInterval|console|process|fetch)\b/;
    expect(filesWhere(model, (source) => impure.test(codeOf(source)))).toEqual([]);
  });

  test('chance has a seed wherever it shapes results', () => {
    expect(filesWhere(SOURCES, (source) => /\bMath\.random\b/.test(codeOf(source)))).toEqual([]);
  });
});

describe('files', () => {
  test(`have at most ${LINES_MAX} lines`, () => {
    expect(filesWhere(SOURCES, ({ text }) => text.trimEnd().split('\n').length > LINES_MAX)).toEqual([]);
  });

  test('open with a comment that says what they are', () => {
    const opening = /^(#!.*\n)?\/\/ [^\n]{30}/;
    expect(filesWhere(SOURCES, ({ text }) => !opening.test(text))).toEqual([]);
  });

  test('are named in kebab-case after what they hold, never `utils`, `helpers`, `types` or `index`', () => {
    expect(filesWhere(SOURCES, ({ file }) => !/^src\/[a-z]+\/[a-z0-9]+(-[a-z0-9]+)*\.ts$/.test(file))).toEqual([]);
    expect(filesWhere(SOURCES, ({ file }) => /\/(utils?|helpers?|types|index|common|misc)\.ts$/.test(file))).toEqual(
      [],
    );
  });

  test('have no default export but for the entries of worker threads, and re-export no whole file', () => {
    expect(filesWhere(SOURCES, (source) => /\bexport default\b|\bas default\b/.test(codeOf(source)))).toEqual(
      WORKER_ENTRIES,
    );
    expect(filesWhere(SOURCES, (source) => /\bexport \*/.test(codeOf(source)))).toEqual([]);
  });

  test('leave the environment and the arguments to the program itself', () => {
    const reads = /\bprocess\s*(\.\s*(env|argv)|\[)|\bimport\s*\{[^}]*\b(env|argv)\b[^}]*\}\s*from 'node:process'/;
    expect(filesWhere(SOURCES, (source) => reads.test(codeOf(source)))).toEqual(READS_ENVIRONMENT);
  });
});

test('no test is skipped, left to do, or run alone', () => {
  const tests = sourcesUnder('test').filter(({ file }) => file !== 'test/architecture.test.ts');
  const held = /\b(test|it|describe)\s*\.\s*(skip|skipIf|runIf|todo|only|fails)\b|\b(xit|xdescribe|fit|fdescribe)\s*\(/;
  expect(filesWhere(tests, (source) => held.test(codeOf(source)))).toEqual([]);
});
