/** The loss of fits in TF32, simulated, on the groups of the fixture: plain, in a metric, and with quantised factors. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { EVALUATION_TEXT, ROOT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { hiddenActivation } from '../../src/calibration/hidden-activation.js';
import { type CompressOptions, resolveSettings, storedDtypes } from '../../src/conversion/settings.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { Engine } from '../../src/engine/engine.js';
import { simulateTensorCores } from '../../src/engine/tensor-cores.js';
import { PrecisionError } from '../../src/errors.js';
import { ridgeFor } from '../../src/methods/mobe/ridge-for.js';
import { withThread } from '../compute/compute-thread.js';
import { type FitJob, type JobData, runJob } from '../compute/job.js';
import { RunnerPool } from '../compute/job-runner.js';
import { compressExperts } from '../pipeline.js';
import { calibrate } from './calibrate.js';
import { compress } from './compress.js';
import { planRun } from './plan-run.js';

const root = temporaryFolder();
const record = join(root, 'record');
/** Python, like the text that the fixture was trained on. */
const TEXT = [EVALUATION_TEXT, ...['inference', 'quantised', 'wab'].map((name) => `${ROOT}fixtures/${name}.py`)];
const STEPS = 100;
/** Fewer in a metric, where rounding is simulated in hundreds of small operations. */
const METRIC_STEPS = 30;
const OPTIONS = {
  ...{ bases: 8, steps: STEPS, threads: 1, allocate: 'uniform', projections: ['gate_proj', 'up_proj'] },
} as const satisfies CompressOptions;

/** A group's job and its data. */
interface Task {
  readonly job: FitJob;
  readonly data: JobData;
}

/** The jobs of the fixture's groups, with a metric of each. */
async function tasksOf(engine: Engine): Promise<Task[]> {
  const { planned, record: opened } = await planRun(TINY_MODEL, { ...OPTIONS, calibration: record }, {});
  const { source, settings, memory, groups, model } = planned;
  const tasks: Task[] = [];
  const runners = new RunnerPool([
    {
      name: 'here',
      async *run(job, data) {
        tasks.push({ job, data });
        yield* runJob(engine, { ...job, options: { ...job.options, steps: 1 } }, data);
      },
      close: async () => {},
    },
  ]);
  if (!opened || !settings.weighing?.metric) throw new Error('the record gives no metric');
  const weighing = {
    ...{ record: opened, metric: settings.weighing.metric, layers: model.layers, seed: 0 },
    activation: hiddenActivation(source),
  };
  const fitting = withThread({ engine: 'onnx-cpu', threads: 1 }, new AbortController().signal, (thread) =>
    compressExperts({
      ...{ groups, plan: planned, memory, settings, runners, written: 'factors' },
      reader: source.files,
      weighing: { ...weighing, thread },
    }),
  );
  for await (const _ of fitting) {
    // Only the jobs are of use.
  }
  await opened.close();
  return tasks;
}

/** The relative squared error of what a job writes, in its metric if it has one. */
async function errorOf(engine: Engine, { job, data }: Task): Promise<number> {
  let [error, norm] = [0, 0];
  for await (const output of runJob(engine, job, data)) {
    if (output.kind !== 'expert') continue;
    const { squaredError, squaredNorm } = output.metric ?? output;
    error += squaredError;
    norm += squaredNorm;
  }
  return error / norm;
}

const plain = ({ job: { metric: _, ...job }, data }: Task): Task => ({ job, data: { experts: data.experts } });
const inMetric = ({ job, data }: Task): Task => ({
  job: { ...job, options: { ...job.options, steps: METRIC_STEPS } },
  data,
});
const quantised = ({ job, data }: Task): Task => {
  const stored = storedDtypes(resolveSettings({ dtype: 'int5' }), 'BF16');
  const ridge = ridgeFor(stored.own) as number;
  return { job: { ...job, stored, options: { ...job.options, ridge } }, data };
};

describe('in TF32, on all eight groups, what is written has the error of f32 within .3 %:', THOROUGH, () => {
  let cpu: Engine;
  let tasks: Task[];
  beforeAll(async () => {
    await calibrate(TINY_MODEL, record, {
      ...{ text: TEXT, tokens: 4096, sequenceLength: 256, threads: 1 },
    });
    cpu = await createEngine('onnx-cpu', { threads: 1 });
    tasks = await tasksOf(cpu);
  }, 600_000);

  test.each<[string, (task: Task) => Task]>([
    ['plain', plain],
    ['in a metric', inMetric],
    ['with a ridge and quantised factors', (task) => quantised(plain(task))],
    ['with a ridge and quantised factors in a metric', (task) => quantised(inMetric(task))],
  ])('%s', { timeout: 3_600_000 }, async (name, of) => {
    expect(tasks).toHaveLength(8);
    for (const task of tasks.map(of)) {
      const { job, data } = task;
      const expected = await errorOf(cpu, task);
      const options = { ...job.options, precision: 'tf32' } as const;
      const found = await errorOf(simulateTensorCores(cpu), { job: { ...job, options }, data });
      console.log(`${name}: ${job.label} ${expected} ${found} ${(100 * (found / expected - 1)).toFixed(3)} %`);
      expect(Math.abs(found / expected - 1), job.label).toBeLessThan(0.003);
    }
  });
});

test('an engine without TF32 refuses it before anything is written', async () => {
  const refused = compress(TINY_MODEL, join(root, 'out'), { ...OPTIONS, precision: 'tf32' });
  await expect(refused).rejects.toThrow(PrecisionError);
  await expect(refused).rejects.toThrow('onnx-cpu');
});
