/** Sensitivities from each layer's own record: the loss of the change of the layer's output. */
import { chooseNumbers } from '../../src/calibration/choose-numbers.js';
import { readTokens } from '../../src/calibration/output-differences.js';
import { outputLosses } from '../../src/calibration/output-loss.js';
import type { LayerRecord } from '../../src/calibration/record.js';
import { projectionKey } from '../../src/conversion/group-plan.js';
import type { Probe } from './probe-weights.js';
import { arrangeProbes, changesOf } from './probed-outputs.js';
import type { Measurement } from './sensitivity-measurement.js';

/** Measures layer by layer. Finished layers are kept. */
export async function measureLocal(measurement: Measurement): Promise<Map<string, number>> {
  const { record, probes, parts } = measurement;
  const found = new Map<string, number>();
  let done = 0;
  for (const [number, own] of probes) {
    const part = `local-${String(number).padStart(3, '0')}`;
    let values = await parts.find(part);
    if (!values) {
      values = await measureLayer(measurement, await record.layer(number), own, done);
      await parts.keep(part, values);
      await record.release(number);
    }
    for (const [key, value] of Object.entries(values)) found.set(key, value);
    measurement.onProgress(++done, probes.size);
  }
  return found;
}

async function measureLayer(
  measurement: Measurement,
  recorded: LayerRecord,
  probes: readonly Probe[],
  done: number,
): Promise<Record<string, number>> {
  const { tokens: most, seed, onProgress } = measurement;
  const { together, tokens } = arrangeProbes(measurement, recorded, probes, Math.min(most, recorded.tokens));
  const sample = chooseNumbers(recorded.tokens, tokens, seed);
  const routed = await readTokens(recorded, sample);
  const scale = Float32Array.from(sample, (token) => recorded.scale[token] as number);
  const values: Record<string, number> = {};
  for (const [pass, own] of together.entries()) {
    const onShare = (share: number) => onProgress(done + (pass + share) / together.length, measurement.probes.size);
    const { outputs, changes } = await changesOf(measurement, recorded.layer, routed, own, onShare);
    const losses = await outputLosses(measurement.runner, outputs, changes, scale);
    for (const [i, probe] of own.entries()) values[projectionKey(probe)] = losses[i] as number;
  }
  return values;
}
