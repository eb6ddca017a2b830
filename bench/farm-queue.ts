/** Measures a farm's queue with jobs that compute nothing: time a job, and memory of the process that adds them. */

import { startRedis } from '../fixtures/redis.js';
import type { GroupPlan } from '../src/conversion/group-plan.js';
import { addJobs, type FarmUnit } from '../streams/farm/arrivals.js';
import { engineQueue, type FarmRun, jobId, openJobs } from '../streams/farm/farm-run.js';
import { KEY_PREFIX, openQueue } from '../streams/farm/redis.js';

export async function measureQueue(folder: string, count: number, onLine: (line: string) => void): Promise<void> {
  const redis = await startRedis(folder);
  const queue = await openQueue(redis.url);
  const mb = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
  try {
    const before = process.memoryUsage().rss;
    const run = { id: 'empty', engine: 'onnx-cpu' } as FarmRun;
    const units = Array.from({ length: count }, (_, layer): readonly [string, FarmUnit] => {
      const group = { layer, projection: 'gate_proj', group: 0, groups: 1 } as GroupPlan;
      const label = `layer ${layer} gate_proj`;
      return [jobId(run.id, label), { label, groups: [group] }];
    });
    let began = performance.now();
    await addJobs(openJobs(queue, run.engine), run, units, 3);
    const added = performance.now() - began;
    onLine(
      `${count} jobs are added in ${(added / 1000).toFixed(2)} s (${((1000 * added) / count).toFixed(0)} µs a job); this process grew by ${mb(process.memoryUsage().rss - before)}`,
    );
    const used = /used_memory:(\d+)/.exec(await queue.redis.info('memory'))?.[1];
    onLine(`Redis holds them in ${mb(Number(used))}`);
    began = performance.now();
    let done = 0;
    await new Promise<void>((resolve) => {
      const worker = new queue.bull.Worker(
        engineQueue('onnx-cpu'),
        async () => {
          if (++done === count) resolve(worker.close());
        },
        { connection: queue.redis, prefix: KEY_PREFIX },
      );
    });
    const took = performance.now() - began;
    onLine(
      `one worker takes and finishes them in ${(took / 1000).toFixed(2)} s: the queue costs ${(took / count).toFixed(2)} ms a job`,
    );
  } finally {
    await queue.close();
    await redis.kill();
  }
}
