// Loaded into a daemon with `node --require`: interrupts it from within at a chosen point of its work, so that a sweep reaches
// every kind of work and not only those that take long. A point is the n-th small piece of one kind of request on any thread:
// an engine's run within `trainForward`, a statement within `putChunks`. The product knows nothing of this file.
//   GPTD_INTERRUPT='{"point": "trainUpdate:7", "action": "SIGKILL", "times": 1, "log": "/path/of/a/new/file"}'
// Actions: a signal for the process; `exit`, which ends the thread; `mark`, which only writes the log; `count`, which writes
// every piece. On the main thread SIGUSR2 terminates one thread of a stage, a different one each time.

const { appendFileSync, existsSync, statSync } = require('node:fs');
const threads = require('node:worker_threads');

const { point, action, times = 1, log } = JSON.parse(process.env.GPTD_INTERRUPT ?? '{}');

if (threads.isMainThread) terminateOnSignal();
else if (point !== undefined) interruptThread();

function interruptThread() {
  const [kind, number] = point.split(':');
  const counts = new Map();
  let request = null;

  const piece = () => {
    if (request === null) return;
    const count = (counts.get(request) ?? 0) + 1;
    counts.set(request, count);
    if (action === 'count') appendFileSync(log, `${threads.threadId} ${request}\n`);
    else if (request === kind && count === Number(number)) interrupt();
  };
  const interrupt = () => {
    if (existsSync(log) && statSync(log).size >= times) return;
    appendFileSync(log, '.');
    if (action === 'exit') process.exit(1);
    else if (action !== 'mark') process.kill(process.pid, action);
  };

  const receive = threads.receiveMessageOnPort;
  threads.receiveMessageOnPort = (port) => {
    const entry = receive(port);
    const type = entry?.message?.task?.type;
    if (type !== undefined) {
      request = type;
      piece();
    }
    return entry;
  };
  // The store is the one thread that gets no settings.
  if (threads.workerData === undefined || threads.workerData === null) countStatements(piece);
  else countRuns(piece);
}

function countRuns(piece) {
  const { InferenceSession } = require('onnxruntime-node');
  const run = InferenceSession.prototype.run;
  InferenceSession.prototype.run = function (...args) {
    piece();
    return run.apply(this, args);
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

function terminateOnSignal() {
  const stages = [];
  const Worker = threads.Worker;
  threads.Worker = class extends Worker {
    constructor(...args) {
      super(...args);
      // The store's thread and the preparer's are the first two.
      this.number = terminateOnSignal.started++;
      if (this.number < 2) return;
      stages.push(this);
      this.once('exit', () => stages.splice(stages.indexOf(this), 1));
    }
  };
  terminateOnSignal.started = 0;
  let next = 0;
  process.on('SIGUSR2', () => void stages[next++ % Math.max(stages.length, 1)]?.terminate());
}
