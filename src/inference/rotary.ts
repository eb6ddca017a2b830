/** Rotary position embeddings (arXiv 2104.09864), and YaRN, which stretches them (arXiv 2309.00071). */
import { add, concat, mul, reshape, slice, sub, type Value } from '../engine/ops.js';
import { UnsupportedModelError } from '../errors.js';
import type { ConfigReader } from './config-reader.js';

/** How a model rotates queries and keys. */
export interface Rotary {
  /** Angle per position of each rotated pair, radians, f32. */
  readonly frequencies: Float32Array;
  /** Factor of the cosines and sines. */
  readonly magnitude: number;
}

/** Positions of a pair's two numbers: `halves`: i and i + size/2; `pairs`: 2i and 2i + 1. */
export type RotaryLayout = 'halves' | 'pairs';

/**
 * The frequencies of a config: `rope_scaling` in the models' repositories, `rope_parameters` in transformers 5.
 * Throws an `UnsupportedModelError` for a kind of scaling other than YaRN.
 * @param size number of a head's numbers that are rotated
 * @param theta default for configs without `rope_theta`
 */
export function readRotary(config: ConfigReader, size: number, theta = 10_000): Rotary {
  const scaling = config.section('rope_parameters') ?? config.section('rope_scaling');
  const base = scaling?.number('rope_theta', config.number('rope_theta', theta)) ?? config.number('rope_theta', theta);
  const kind = scaling?.text('rope_type', scaling.text('type', 'default')) ?? 'default';
  const plain = Array.from({ length: size / 2 }, (_, i) => 1 / base ** ((2 * i) / size));
  if (kind === 'default' || !scaling) return { frequencies: Float32Array.from(plain), magnitude: 1 };
  if (kind !== 'yarn') throw new UnsupportedModelError(config.file, `its rotary embeddings are scaled by "${kind}"`);

  const factor = scaling.number('factor');
  const length = scaling.number('original_max_position_embeddings', 0) || config.number('max_position_embeddings');
  // The pair that makes `turns` full turns over the trained length.
  const pairOf = (turns: number): number => (size * Math.log(length / (turns * 2 * Math.PI))) / (2 * Math.log(base));
  const whole = scaling.flag('truncate', true);
  const [fast, slow] = [pairOf(scaling.number('beta_fast', 32)), pairOf(scaling.number('beta_slow', 1))];
  const low = Math.max(whole ? Math.floor(fast) : fast, 0);
  const high = Math.min(whole ? Math.ceil(slow) : slow, size - 1);
  const frequencies = plain.map((frequency, i) => {
    const stretched = Math.min(1, Math.max(0, (i - low) / Math.max(high - low, 0.001)));
    return frequency * (1 - stretched) + (frequency / factor) * stretched;
  });
  return { frequencies: Float32Array.from(frequencies), magnitude: yarnMagnitude(scaling, factor) };
}

function yarnMagnitude(scaling: ConfigReader, factor: number): number {
  const [own, all] = [scaling.number('mscale', 0), scaling.number('mscale_all_dim', 0)];
  return scaling.number(
    'attention_factor',
    own && all ? yarnScale(factor, own) / yarnScale(factor, all) : yarnScale(factor),
  );
}

const yarnScale = (factor: number, share = 1): number => (factor <= 1 ? 1 : 0.1 * share * Math.log(factor) + 1);

/** Factor of DeepSeek's attention scores, besides 1/√size. It is YaRN's temperature, which `mscale_all_dim` moves to the scores. */
export function latentScale(config: ConfigReader): number {
  const scaling = config.section('rope_parameters') ?? config.section('rope_scaling');
  if (!scaling || scaling.text('rope_type', scaling.text('type', 'default')) === 'default') return 1;
  const all = scaling.number('mscale_all_dim', 0);
  return all ? yarnScale(scaling.number('factor'), all) ** 2 : 1;
}

/** Cosine and sine of each position and pair, (count, size/2). */
export interface Rotation {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

/** Rotations of the positions `first` … `first + count − 1`. Angles are f32 products, as in PyTorch and in the models' training. */
export function rotation({ frequencies, magnitude }: Rotary, first: number, count: number): Rotation {
  const cos = new Float32Array(count * frequencies.length);
  const sin = new Float32Array(cos.length);
  for (let t = 0, at = 0; t < count; t++) {
    for (const frequency of frequencies) {
      const angle = Math.fround((first + t) * frequency);
      cos[at] = Math.cos(angle) * magnitude;
      sin[at++] = Math.sin(angle) * magnitude;
    }
  }
  return { cos, sin };
}

/**
 * Rotates the first 2 · half numbers of every head; the others do not change. x: (…, t, size), cos and sin: (t, half).
 * The result has the layout `halves` in both cases. Queries and keys are permuted alike, so their products are the same.
 */
export function rotate(x: Value, cos: Value, sin: Value, layout: RotaryLayout): Value {
  const half = cos.shape.at(-1) as number;
  const size = x.shape.at(-1) as number;
  const rotated = size === 2 * half ? x : slice(x, -1, 0, 2 * half);
  const [a, b] = layout === 'halves' ? halves(rotated, half) : pairs(rotated, half);
  const turned = [sub(mul(a, cos), mul(b, sin)), add(mul(b, cos), mul(a, sin))];
  return concat(size === 2 * half ? turned : [...turned, slice(x, -1, 2 * half, size)], -1);
}

const halves = (x: Value, half: number): [Value, Value] => [slice(x, -1, 0, half), slice(x, -1, half, 2 * half)];

function pairs(x: Value, half: number): [Value, Value] {
  const leading = x.shape.slice(0, -1);
  const paired = reshape(x, [...leading, half, 2]);
  return [0, 1].map((i) => reshape(slice(paired, -1, i, i + 1), [...leading, half])) as [Value, Value];
}
