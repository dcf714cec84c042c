// This file is loaded into a daemon with `node --require`. It interrupts the daemon from within at a chosen point of its work, so that
// a sweep reaches every kind of work and not only those that take long. A point is the n-th small piece of one kind of request on any
// thread, such as a run of an engine or of WebAssembly within `trainForward`, or a statement within `putChunks`. The product knows
// nothing of this file.
//   GPTD_INTERRUPT='{"point": "trainUpdate:7", "action": "SIGKILL", "times": 1, "log": "/path/of/a/new/file"}'
// The action is a signal for the process, or one of these: `exit` ends the thread, `mark` only writes the log, and `count` writes every
// piece. `trace` writes every request as a thread takes it up, and `cancelled` when the main thread cancels a job, in the order in which
// they come. For several points in turn, without a new daemon, `{"orders": "/path"}` names a file that says
// `{"point": "serveStep:3", "afterMs": 1}`. The thread that gets there removes the file, has itself terminated so much later, and goes
// on meanwhile. On the main thread SIGUSR2 terminates one of the threads that start after the store's and the preparer's: a stage's or
// the text's, a different one each time.

const { appendFileSync, existsSync, readFileSync, statSync, unlinkSync } = require('node:fs');
const { setTimeout } = require('node:timers');
const threads = require('node:worker_threads');

const { point, action, times = 1, log, orders } = JSON.parse(process.env.GPTD_INTERRUPT ?? '{}');

if (threads.isMainThread) {
  terminateOnSignal();
  if (action === 'trace') traceCancels();
} else if (point !== undefined) interruptThread();
else if (orders !== undefined) obeyOrders();

function interruptThread() {
  const [kind, number] = point.split(':');
  const counts = new Map();
  const interrupt = () => {
    if (existsSync(log) && statSync(log).size >= times) return;
    appendFileSync(log, '.');
    if (action === 'exit') process.exit(1);
    else if (action !== 'mark') process.kill(process.pid, action);
  };
  watchPieces((request) => {
    const count = (counts.get(request) ?? 0) + 1;
    counts.set(request, count);
    if (action === 'count') appendFileSync(log, `${threads.threadId} ${request}\n`);
    else if (request === kind && count === Number(number)) interrupt();
  });
}

function obeyOrders() {
  let order = null;
  let count = 0;
  watchPieces((request) => {
    let text;
    try {
      text = readFileSync(orders, 'utf8');
    } catch {
      return;
    }
    if (text !== order) [order, count] = [text, 0];
    const { point: wanted, afterMs } = JSON.parse(text);
    const [kind, number] = wanted.split(':');
    if (request !== kind || ++count !== Number(number)) return;
    try {
      unlinkSync(orders);
    } catch {
      // Another thread was faster.
      return;
    }
    threads.parentPort.postMessage({ terminateAfterMs: afterMs });
  });
}

/** Calls `onPiece` with the kind of the request that is under way, at its beginning and at each of its pieces. */
function watchPieces(onPiece) {
  let request = null;
  const piece = () => {
    if (request !== null) onPiece(request);
  };
  const receive = threads.receiveMessageOnPort;
  threads.receiveMessageOnPort = (port) => {
    const entry = receive(port);
    const type = entry?.message?.task?.type;
    if (type !== undefined) {
      request = type;
      if (action === 'trace') appendFileSync(log, `${threads.threadId} ${type}\n`);
      piece();
    }
    return entry;
  };
  // Only the threads for the store and for text are not told where the data are, and text prepares no statements.
  if (threads.workerData?.dataDir === undefined) countStatements(piece);
  else countRuns(piece);
}

function countRuns(piece) {
  const { binding } = require('onnxruntime-node/dist/binding.js');
  binding.InferenceSession = class extends binding.InferenceSession {
    loadModel(...args) {
      piece();
      super.loadModel(...args);
    }
    run(...args) {
      piece();
      return super.run(...args);
    }
  };
  const { Instance } = WebAssembly;
  WebAssembly.Instance = function (module, imports) {
    const instance = new Instance(module, imports);
    // The modules of an engine are left out, because its runs are counted.
    if (imports?.gptd === undefined) return instance;
    const run = (...args) => {
      piece();
      instance.exports.run(...args);
    };
    return { exports: { ...instance.exports, run } };
  };
}

function countStatements(piece) {
  const Database = require('better-sqlite3');
  const prepare = Database.prototype.prepare;
  Database.prototype.prepare = function (sql) {
    const statement = prepare.call(this, sql);
    const run = statement.run;
    statement.run = function (...args) {
      piece();
      return run.apply(this, args);
    };
    return statement;
  };
}

function traceCancels() {
  const abort = globalThis.AbortController.prototype.abort;
  globalThis.AbortController.prototype.abort = function (reason) {
    if (reason?.code === 'cancelled') appendFileSync(log, '0 cancelled\n');
    abort.call(this, reason);
  };
}

function terminateOnSignal() {
  const stages = [];
  const Worker = threads.Worker;
  threads.Worker = class extends Worker {
    constructor(...args) {
      super(...args);
      // The threads for the store and the preparer are the first two.
      this.number = terminateOnSignal.started++;
      if (this.number < 2) return;
      stages.push(this);
      this.on('message', ({ terminateAfterMs }) => {
        if (terminateAfterMs !== undefined) setTimeout(() => void this.terminate(), terminateAfterMs);
      });
      this.once('exit', () => stages.splice(stages.indexOf(this), 1));
    }
  };
  terminateOnSignal.started = 0;
  let next = 0;
  process.on('SIGUSR2', () => void stages[next++ % Math.max(stages.length, 1)]?.terminate());
}
