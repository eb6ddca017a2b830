import { join } from 'node:path';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { planCompression } from '../../src/conversion/compression-plan.js';
import { planConversion } from '../../src/conversion/conversion-plan.js';
import { UnknownModelError } from '../../src/errors.js';
import { detectModel } from '../../src/models/detect.js';
import { nullOutput } from '../../src/output/null-output.js';
import { createStageClocks, type Slowdown } from '../flow/stage-clock.js';
import { compressPlanned } from '../operations/compress.js';
import { convert } from '../operations/convert.js';
import type { OutputPlace } from '../operations/open-output.js';
import { inFolder } from './in-folder.js';
import { type Outcome, startTimer } from './sample.js';
import { planCopy, restrict } from './sample-model.js';
import type { SampleOfModel } from './task.js';

/**
 * Does the same as `mobe compress --layers none` with the measured shards.
 * @param parent the folder to write in; undefined: the output is thrown away
 */
export const passThroughConversion = (
  source: SampleOfModel,
  parent: string | undefined,
  slow?: Slowdown,
): Promise<Outcome> =>
  parent === undefined
    ? passThroughTo(nullOutput(), source, slow)
    : inFolder(parent, (folder) => passThroughTo(join(folder, 'out'), source, slow));

async function passThroughTo(out: OutputPlace, source: SampleOfModel, slow?: Slowdown): Promise<Outcome> {
  const clocks = createStageClocks(slow);
  const stop = startTimer();
  const plan = planCopy(await openCheckpoint(source.folder), source.shards);
  await convert({
    plan,
    out,
    inputs: [source.folder],
    experts: async function* () {},
    companions: { config: {} },
    record: { kind: 'compress', sourceFingerprint: 'of a measurement', settings: {} },
    run: { clocks },
    started: performance.now(),
  });
  const time = stop();
  return { bytes: source.bytes, ...time, heldBytes: clocks.peakHeldBytes, stages: clocks.times() };
}

/** Few steps, few experts and a low rank: the time of the arithmetic is measured elsewhere (`npm run bench:step`). */
const SOLVER_STEPS = 3;
const MOST_EXPERTS = 8;

/** `mobe compress` of the first layer with experts. Only one group is fitted; the other experts are copied. */
export const compressLayer = (model: string, parent: string, slow?: Slowdown): Promise<Outcome> =>
  inFolder(parent, async (folder) => {
    const checkpoint = await openCheckpoint(model);
    const [layer] = detectModel(checkpoint).layers;
    if (!layer) throw new UnknownModelError(checkpoint.folder, 'no layer has routed experts');
    const projection = layer.experts.gate_proj.length ? 'gate_proj' : 'up_proj';
    const experts = layer.experts[projection];
    const groups =
      experts.findIndex((_, i) => experts.length % (i + 1) === 0 && experts.length / (i + 1) <= MOST_EXPERTS) + 1;
    const planned = await planCompression(checkpoint, {
      layers: [layer.layer],
      projections: [projection],
      groups,
      bases: groups,
      rank: Math.max(1, (experts[0] as StoredMatrix).rows >> 3),
      steps: SOLVER_STEPS,
      format: 'hf',
    });
    const source = restrict(checkpoint, (name) => name.startsWith(layer.prefix));
    const { settings, model: detected } = planned;
    const fitted = planned.groups.slice(0, 1);
    const part = planConversion({
      source,
      groups: fitted,
      layers: detected.layers,
      format: 'hf',
      shardBytes: settings.shardSize,
    });
    const clocks = createStageClocks(slow);
    const stop = startTimer();
    await compressPlanned({ planned: { ...planned, ...part }, remote: undefined }, join(folder, 'out'), { clocks });
    const time = stop();
    return { bytes: part.bytesBefore, ...time, heldBytes: clocks.peakHeldBytes, stages: clocks.times() };
  });
