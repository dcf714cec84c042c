// Checks the rules that hold the code together as facts about its text: which folder may import what, how long a file may be, and
// what must appear nowhere.

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';

const ROOT = path.resolve(import.meta.dirname, '..');
const LINES_MAX = 500;
const FILES_MAX = 20;

interface Source {
  /** The path relative to the repository, with slashes: `src/model/init.ts`. */
  readonly file: string;
  readonly text: string;
}

const sourcesUnder = (folder: string): Source[] =>
  readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.includes('node_modules'))
    .map((name) => path.join(folder, name))
    .map((file) => ({ file: file.replaceAll(path.sep, '/'), text: readFileSync(path.join(ROOT, file), 'utf8') }));

const SOURCES = sourcesUnder('src');
const FLOORS = ['cli', 'offline', 'daemon', 'workers', 'model'] as const;
type Floor = (typeof FLOORS)[number];

/** The contracts between threads. */
const CONTRACTS = [
  'src/workers/settings.ts',
  'src/workers/stage-messages.ts',
  'src/workers/reply.ts',
  'src/workers/ending.ts',
  'src/workers/store/messages.ts',
  'src/workers/data/messages.ts',
  'src/workers/training/messages.ts',
  'src/workers/serving/messages.ts',
  'src/workers/text/messages.ts',
];
/** A kind of job may import these. It may not import the queue, which only `src/daemon/` itself and the edge know. */
const DOMAIN = [
  'src/daemon/jobs/context.ts',
  'src/daemon/jobs/kind.ts',
  'src/daemon/threads/',
  'src/daemon/protocol/',
  ...CONTRACTS,
  'src/model/',
];
/** A command may import these. A room of commands may not import another room of commands. */
const COMMAND = [
  'src/cli/connection.ts',
  'src/cli/context.ts',
  'src/cli/exit-codes.ts',
  'src/cli/flags.ts',
  'src/cli/follow.ts',
  'src/cli/source-files.ts',
  'src/cli/submit.ts',
  'src/cli/client/',
  'src/cli/kinds/',
  'src/cli/render/',
  'src/daemon/protocol/',
];
/**
 * What the files of each room may import beside the files of that room: single files, or rooms, which end with a slash and stand
 * for everything below them. Packages are not listed. A room is a folder of `src`. A file belongs to the room with the longest
 * name that its path begins with.
 */
const ROOMS: Readonly<Record<string, readonly string[]>> = {
  'src/cli/': ['src/cli/', 'src/daemon/protocol/'],
  'src/cli/commands/models/': COMMAND,
  'src/cli/commands/jobs/': COMMAND,
  'src/cli/commands/daemon/': COMMAND,
  'src/cli/kinds/': ['src/cli/context.ts', 'src/cli/render/', 'src/daemon/protocol/'],
  'src/cli/render/': ['src/cli/context.ts', 'src/daemon/protocol/'],
  // A client's errors say what happened. Exit codes, flags and texts belong to the command line.
  'src/cli/client/': ['src/daemon/protocol/'],
  'src/offline/': [
    // This file says how short a token may be.
    'src/daemon/edge/access.ts',
    'src/daemon/models/',
    'src/daemon/protocol/',
    'src/daemon/threads/',
    'src/daemon/training/',
    'src/workers/',
    'src/model/',
  ],
  // The daemon looks at the lock before it starts the store's thread, which takes the lock.
  'src/daemon/': ['src/daemon/', ...CONTRACTS, 'src/workers/store/lock.ts', 'src/model/'],
  'src/daemon/protocol/': ['src/model/'],
  'src/daemon/threads/': ['src/daemon/protocol/', ...CONTRACTS, 'src/model/'],
  'src/daemon/operations/': ['src/daemon/protocol/', ...CONTRACTS, 'src/model/'],
  'src/daemon/jobs/': [
    'src/daemon/protocol/',
    'src/daemon/threads/',
    'src/daemon/operations/',
    ...CONTRACTS,
    'src/model/',
  ],
  'src/daemon/edge/': ['src/daemon/jobs/', 'src/daemon/protocol/', 'src/daemon/threads/', ...CONTRACTS, 'src/model/'],
  'src/daemon/models/': DOMAIN,
  'src/daemon/serving/': DOMAIN,
  'src/daemon/training/': [...DOMAIN, 'src/daemon/models/'],
  'src/daemon/evaluation/': [...DOMAIN, 'src/daemon/training/', 'src/daemon/serving/'],
  'src/workers/': ['src/workers/', 'src/model/'],
  'src/workers/engines/': ['src/workers/ending.ts', 'src/workers/settings.ts', 'src/model/'],
  'src/workers/store/': [...CONTRACTS, 'src/model/'],
  'src/workers/training/': [
    'src/workers/engines/',
    'src/workers/memory/',
    ...CONTRACTS,
    'src/workers/store/reader.ts',
    'src/model/',
  ],
  'src/workers/serving/': [
    'src/workers/engines/',
    'src/workers/memory/',
    ...CONTRACTS,
    'src/workers/store/reader.ts',
    'src/model/',
  ],
  'src/workers/memory/': ['src/model/'],
  'src/workers/data/': [...CONTRACTS, 'src/workers/store/reader.ts', 'src/model/'],
  'src/workers/text/': [...CONTRACTS, 'src/model/'],
  'src/model/': ['src/model/'],
};

/** Commands that do the daemon's work themselves load this code when they run, and never when the program starts. */
const LOADED_BY_COMMANDS = ['src/offline/', 'src/daemon/main.ts'];

/** The entry of the client that a browser could run. Neither this file nor any client file that it imports may know Node. */
const BROWSER_ENTRY = 'src/cli/client/session.ts';

/** The modules of Node that a pure layer may use: hashing is arithmetic. */
const PURE_NODE_MODULES = ['node:crypto'];

/** The entries of threads. Piscina calls them through their default export. */
const WORKER_ENTRIES = [
  'src/offline/selftest-thread.ts',
  'src/workers/data/thread.ts',
  'src/workers/stage.ts',
  'src/workers/store/thread.ts',
  'src/workers/text/thread.ts',
];

const READS_ENVIRONMENT = ['src/cli/main.ts'];

const floorOf = ({ file }: Source): Floor => {
  const floor = FLOORS.find((name) => file.startsWith(`src/${name}/`));
  if (floor === undefined) throw new Error(`${file} is in none of ${FLOORS.join(', ')}`);
  return floor;
};

const roomOf = (file: string): string =>
  Object.keys(ROOMS)
    .filter((room) => file.startsWith(room))
    .reduce((a, b) => (b.length > a.length ? b : a), '');

/**
 * Returns everything that a file imports, types and dynamic imports included. Our own files are named by their path in the
 * repository.
 */
const importsOf = ({ file, text }: Source): string[] =>
  ts
    .preProcessFile(text, true, true)
    .importedFiles.map(({ fileName }) =>
      fileName.startsWith('.') ? path.posix.join(path.posix.dirname(file), fileName) : fileName,
    );

const LOADING = /\bawait import\('([^']+)'\)/g;

/** Returns the files that a file loads only when it reaches the line with the import. */
const loadsOf = ({ file, text }: Source): string[] =>
  [...text.matchAll(LOADING)].map(([, name]) => path.posix.join(path.posix.dirname(file), name));

const isAmong = (file: string, names: readonly string[]): boolean =>
  names.some((name) => file === name || (name.endsWith('/') && file.startsWith(name)));

/** Returns the imports of our own files that the file's room does not allow. */
function strangersOf(source: Source): string[] {
  const room = roomOf(source.file);
  const isCommand = source.file.startsWith('src/cli/commands/');
  const allowed = [room, ...ROOMS[room]];
  const allowedToLoad = isCommand ? [...allowed, ...LOADED_BY_COMMANDS] : allowed;
  return [
    ...importsOf({ ...source, text: source.text.replace(LOADING, '') }).filter((target) => !isAmong(target, allowed)),
    ...loadsOf(source).filter((target) => !isAmong(target, allowedToLoad)),
  ]
    .filter((target) => target.startsWith('src/'))
    .map((target) => `${source.file} imports ${target}`);
}

/** Returns the text with blanks in place of its comments, which may name what the code may not. */
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

/**
 * Returns the sets of files that import each other, directly or through other files (Tarjan, 1972). A set is its sorted names.
 */
function circlesOf(imports: ReadonlyMap<string, readonly string[]>): string[] {
  const order = new Map<string, number>();
  const lowest = new Map<string, number>();
  const stack: string[] = [];
  const circles: string[] = [];
  const visit = (file: string): void => {
    order.set(file, order.size);
    lowest.set(file, order.get(file)!);
    stack.push(file);
    for (const target of imports.get(file)!.filter((name) => imports.has(name))) {
      if (!order.has(target)) visit(target);
      if (stack.includes(target)) lowest.set(file, Math.min(lowest.get(file)!, lowest.get(target)!));
    }
    if (lowest.get(file) !== order.get(file)) return;
    const circle = stack.splice(stack.indexOf(file));
    if (circle.length > 1 || imports.get(file)!.includes(file)) circles.push(circle.sort().join(' '));
  };
  for (const file of imports.keys()) if (!order.has(file)) visit(file);
  return circles;
}

const filesWhere = (sources: readonly Source[], holds: (source: Source) => boolean): string[] =>
  sources
    .filter(holds)
    .map(({ file }) => file)
    .sort();

test('the scan sees the code: every folder has files, and imports are found', () => {
  expect([...new Set(SOURCES.map(floorOf))].sort()).toEqual([...FLOORS].sort());
  const start = SOURCES.find(({ file }) => file === 'src/cli/commands/daemon/start.ts')!;
  expect(importsOf(start)).toEqual(expect.arrayContaining(['commander', 'src/cli/context.ts', 'src/daemon/main.ts']));
  expect(loadsOf(start)).toEqual(['src/daemon/main.ts']);
});

describe('imports point one way', () => {
  test.each(Object.keys(ROOMS))('%s', (room) => {
    expect(SOURCES.filter(({ file }) => roomOf(file) === room).flatMap(strangersOf)).toEqual([]);
  });

  test("and commands load what does the daemon's work, but do not import it", () => {
    const file = 'src/cli/commands/daemon/start.ts';
    const name = '../../../daemon/main.ts';
    const strangers = [`${file} imports src/daemon/main.ts`];
    expect(strangersOf({ file, text: `const { runDaemon } = await import('${name}');` })).toEqual([]);
    expect(strangersOf({ file, text: `import { runDaemon } from '${name}';` })).toEqual(strangers);
    expect(strangersOf({ file, text: `import type { runDaemon } from '${name}';` })).toEqual(strangers);
    expect(strangersOf({ file, text: `void import('${name}');` })).toEqual(strangers);
    expect(strangersOf({ file: 'src/cli/submit.ts', text: `await import('../daemon/main.ts');` })).toEqual([
      'src/cli/submit.ts imports src/daemon/main.ts',
    ]);
  });

  test('in no circles, even when types and dynamic imports count', () => {
    expect(circlesOf(new Map(SOURCES.map((source) => [source.file, importsOf(source)])))).toEqual([]);
    expect(
      circlesOf(
        new Map([
          ['a', ['b']],
          ['b', ['c', 'd']],
          ['c', ['a']],
          ['d', []],
        ]),
      ),
    ).toEqual(['a b c']);
  });

  test('and from the contract of a thread, which both ends load, only to contracts and the model', () => {
    const contracts = [...CONTRACTS, 'src/offline/selftest-messages.ts'];
    const strangers = SOURCES.filter(({ file }) => contracts.includes(file)).flatMap((source) =>
      importsOf(source)
        .filter((target) => !contracts.includes(target) && !target.startsWith('src/model/'))
        .filter((target) => !target.startsWith('node:') && target !== 'piscina')
        .map((target) => `${source.file} imports ${target}`),
    );
    expect(strangers).toEqual([]);
  });

  test('and never to the entry of a thread', () => {
    const entered = SOURCES.flatMap((source) =>
      importsOf(source)
        .filter((target) => WORKER_ENTRIES.includes(target))
        .map((target) => `${source.file} imports ${target}`),
    );
    expect(entered).toEqual([]);
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

  test('the client that a browser could run knows nothing of Node', () => {
    const reached = new Set([BROWSER_ENTRY]);
    for (const file of reached) {
      const targets = importsOf(SOURCES.find((source) => source.file === file)!);
      for (const target of targets) if (!target.startsWith('src/daemon/protocol/')) reached.add(target);
    }
    expect([...reached].sort()).toEqual([
      'src/cli/client/address.ts',
      'src/cli/client/client.ts',
      'src/cli/client/faults.ts',
      'src/cli/client/session.ts',
    ]);
    const ofNode = /\b(Buffer|NodeJS|process|require|setImmediate)\b/;
    expect(filesWhere(SOURCES, (source) => reached.has(source.file) && ofNode.test(codeOf(source)))).toEqual([]);
  });

  test('the model is pure: no module of Node but for hashing, no clock, no chance, no output', () => {
    const model = SOURCES.filter((source) => floorOf(source) === 'model');
    const nodeModules = model.flatMap(importsOf).filter((target) => target.startsWith('node:'));
    expect([...new Set(nodeModules)].filter((name) => !PURE_NODE_MODULES.includes(name))).toEqual([]);
    const impure = /\b(Math\.random|Date\.now|new Date|performance|setTimeout|setInterval|console|process|fetch)\b/;
    expect(filesWhere(model, (source) => impure.test(codeOf(source)))).toEqual([]);
  });

  test('chance has a seed wherever it shapes results', () => {
    expect(filesWhere(SOURCES, (source) => /\bMath\.random\b/.test(codeOf(source)))).toEqual([]);
  });
});

describe('folders', () => {
  test(`hold at most ${FILES_MAX} source files of their own`, () => {
    const counts = new Map<string, number>();
    for (const { file } of SOURCES) {
      const folder = path.posix.dirname(file);
      counts.set(folder, (counts.get(folder) ?? 0) + 1);
    }
    expect([...counts].filter(([, count]) => count > FILES_MAX)).toEqual([]);
    expect(counts.get('src/workers/store')).toBeGreaterThan(10);
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
    expect(filesWhere(SOURCES, ({ file }) => !/^src(\/[a-z]+)+\/[a-z0-9]+(-[a-z0-9]+)*\.ts$/.test(file))).toEqual([]);
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
