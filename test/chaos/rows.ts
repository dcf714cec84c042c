// The list of all rows of the chaos suite, in the order in which they run. A file has a group of rows, and a new one is added here.

import { acknowledgedRows } from './acknowledged.ts';
import { cancelRows } from './cancel.ts';
import { clockRows } from './clock.ts';
import { corruptionRows } from './corruption.ts';
import { diskFullRows } from './disk-full.ts';
import { jobStateRows } from './job-states.ts';
import { killSweepRows } from './kill-sweep.ts';
import { browserRows } from './browser-strangers.ts';
import { networkRows } from './network-strangers.ts';
import { nameRows } from './hostile-names.ts';
import { oneDaemonRows } from './one-daemon.ts';
import { secretRows } from './secrets.ts';
import { versionRows } from './versions.ts';
import { longReplyRows } from './long-replies.ts';
import { fuzzedWeightsRows } from './fuzzed-weights.ts';
import { hostileInputRows } from './hostile-input.ts';
import { shutdownRows } from './shutdown.ts';
import { slowReaderRows } from './slow-readers.ts';
import { soakRows } from './soak.ts';
import { streamRows } from './streams.ts';
import { storageFaultRows } from './storage-faults.ts';
import { submitOnceRows } from './submit-once.ts';
import { timingRows } from './token-timing.ts';
import { trainingFeatureRows } from './training-features.ts';
import { workerDeathRows } from './worker-deaths.ts';
import type { Row } from './row.ts';

export const ROWS: readonly Row[] = [
  ...oneDaemonRows,
  ...killSweepRows,
  ...trainingFeatureRows,
  ...acknowledgedRows,
  ...storageFaultRows,
  ...diskFullRows,
  ...corruptionRows,
  ...versionRows,
  ...hostileInputRows,
  ...browserRows,
  ...networkRows,
  ...nameRows,
  ...secretRows,
  ...timingRows,
  ...fuzzedWeightsRows,
  ...streamRows,
  ...slowReaderRows,
  ...longReplyRows,
  ...submitOnceRows,
  ...shutdownRows,
  ...workerDeathRows,
  ...jobStateRows,
  ...cancelRows,
  ...clockRows,
  ...soakRows,
];
