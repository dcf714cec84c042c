// Runs generations over the daemon's WebSocket as a client does, and notes the moment at which each token comes.

import { connect } from '../dist/cli/client/connect.js';

/**
 * Resolves to a client: `generate(spec)` resolves to the job's result and the tokens' times, in milliseconds from the submission.
 */
export async function openSocket(address) {
  const client = await connect(address);
  return {
    async generate(spec) {
      const start = performance.now();
      const { jobId } = await client.request('job.submit', { kind: 'generate', spec });
      const times = [];
      const result = new Promise((resolve, reject) => {
        client.listen(jobId, {
          event: ({ type, data }) => {
            if (type === 'token') times.push(performance.now() - start);
            if (type === 'succeeded') resolve(data.result);
            if (type === 'failed' || type === 'cancelled') reject(new Error(`a generation ended as ${type}`));
          },
          lost: reject,
        });
      });
      await client.request('job.subscribe', { jobId });
      const { timings, ids, speculation } = await result;
      client.unlisten(jobId);
      return { times, timings, ids, speculation };
    },
    close: () => client.close(),
  };
}
