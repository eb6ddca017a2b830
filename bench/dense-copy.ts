/** Copies of the trained fixture with rounded gate and up matrices: what plain quantisation makes of it. */
import { cpSync } from 'node:fs';
import { basename } from 'node:path';
import { TINY_MODEL } from '../fixtures/paths.js';
import { writeTensors } from '../fixtures/write-tensors.js';
import { tokensOfExperts } from '../src/calibration/expert-tokens.js';
import { openRecord } from '../src/calibration/open-record.js';
import { shrinkage } from '../src/calibration/shrinkage.js';
import { tokenBatches } from '../src/calibration/token-batches.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { LocalFiles } from '../src/sources/files.js';
import { type Group, readGroups } from './study/checkpoint.js';

/** Rounds one expert. `covariance` is that of its inputs, (cols, cols). */
export type Round = (weights: Float32Array, group: Group, covariance: Float32Array) => Float32Array;

/** Writes a copy in which experts are f32, so that nothing but `round` changes them. */
export async function writeRounded(folder: string, record: string, round: Round): Promise<void> {
  const rounded = new Map<string, Float32Array>();
  const groups = await readGroups();
  const covariances = await inputCovariances(record, (groups[0] as Group).experts.length);
  for (const group of groups)
    for (const [expert, { name }] of group.stored.entries()) {
      const layer = Number(/layers\.(\d+)\./.exec(name)?.[1]);
      const covariance = covariances.get(layer)?.[expert] as Float32Array;
      rounded.set(name, round(group.experts[expert] as Float32Array, group, covariance));
    }
  const source = await openCheckpoint(TINY_MODEL);
  const files = new LocalFiles();
  const tensors = [];
  for (const { name, dtype, shape, file, start, end } of source.tensors.values()) {
    const values = rounded.get(name);
    const bytes = values
      ? new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
      : await files.readRange({ file, start, end });
    tensors.push({ name, dtype: values ? 'F32' : dtype, shape, bytes });
  }
  await files.close();
  await source.files.close();
  cpSync(TINY_MODEL, folder, { recursive: true, filter: (path) => !basename(path).startsWith('model') });
  await writeTensors(folder, tensors, source.config);
}

/** The covariance of each expert's inputs, as the metric of a fit has it: by layer, mean diagonal 1, shrunk towards the identity. */
async function inputCovariances(folder: string, experts: number): Promise<Map<number, Float32Array[]>> {
  const record = await openRecord(folder);
  const found = new Map<number, Float32Array[]>();
  for (const number of record.facts.layers) {
    const layer = await record.layer(number);
    const own: Float32Array[] = [];
    for (const tokens of tokensOfExperts(layer, experts)) {
      const sum = new Float64Array(layer.width ** 2);
      for await (const { inputs, importance } of tokenBatches(layer, tokens)) addSquares(sum, inputs, importance);
      own.push(shrunk(sum, layer.width, shrinkage(tokens.tokens.length, layer.width)));
    }
    found.set(number, own);
  }
  await record.close();
  return found;
}

/** Adds Σ v² h hᵀ; the lower triangle alone. */
function addSquares(sum: Float64Array, inputs: Float32Array, importance: Float32Array): void {
  const d = inputs.length / importance.length;
  for (const [t, v] of importance.entries())
    for (let i = 0; i < d; i++) {
      const x = v * v * (inputs[t * d + i] as number);
      for (let j = 0; j <= i; j++) sum[i * d + j] = (sum[i * d + j] as number) + x * (inputs[t * d + j] as number);
    }
}

function shrunk(sum: Float64Array, d: number, share: number): Float32Array {
  let mean = 0;
  for (let i = 0; i < d; i++) mean += (sum[i * d + i] as number) / d;
  const result = new Float32Array(d * d);
  for (let i = 0; i < d; i++)
    for (let j = 0; j <= i; j++) {
      const value = ((1 - share) * (sum[i * d + j] as number)) / mean + (i === j ? share : 0);
      result[i * d + j] = result[j * d + i] = value;
    }
  return result;
}
