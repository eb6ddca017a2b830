import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles, differingWeights, weightOf } from '../../fixtures/compare-weights.js';
import {
  type FamilyOptions,
  type GeneratedFamily,
  generateFamily,
  type KnownWeight,
} from '../../fixtures/generate-family.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const OUTPUT = { shardSize: 20_000, threads: 1 };

const isOf = ({ kind, name }: KnownWeight, layer: number, ...projections: string[]): boolean =>
  kind === 'expert' && name.includes(`layers.${layer}.`) && projections.some((it) => name.includes(it));

/** Converts to both formats and expands. Checks everything that must not depend on the choice of layers. */
async function convert(name: string, family: FamilyOptions, options: CompressOptions) {
  const at = (...path: string[]) => join(root, name, ...path);
  const source = await generateFamily(at('model'), 'deepseek_v3', family);
  const quick = { bases: 3, steps: 3, ...OUTPUT, ...options };
  await compress(at('model'), at('native'), quick, LARGER);
  await compress(at('model'), at('hf'), { ...quick, format: 'hf' }, LARGER);
  await expand(at('native'), at('expanded'), OUTPUT);
  for (const folder of ['native', 'hf', 'expanded'])
    expect((await verify(at('model'), at(folder), { threads: 1 })).problems, folder).toEqual([]);
  const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
  expect(config('hf')).toEqual(source.config);
  return { at, source, config, native: readFolder(at('native')), hf: readFolder(at('hf')) };
}

const expectSameWeights = (source: GeneratedFamily, a: ReturnType<typeof readFolder>, b: typeof a): void => {
  for (const weight of source.weights.values()) expect(weightOf(a, weight), weight.name).toEqual(weightOf(b, weight));
};

describe('one layer of two', () => {
  const layers = [2];

  test('leaves the other as it was, and the native config says which', async () => {
    const { at, source, config, native, hf } = await convert('separate', {}, { layers });
    const untouched = (it: KnownWeight) => !isOf(it, 2, 'gate_proj', 'up_proj');
    for (const written of [native, hf]) expect(differingWeights(written, source, untouched)).toEqual([]);
    expect(config('native').mobe.factors).toMatchObject([{ layers, projections: ['gate_proj', 'up_proj'] }]);
    expect([...native.keys()].filter((name) => /\.B_/.test(name))).toHaveLength(2);
    expect(differingFiles(at('expanded'), at('hf'))).toEqual([]);
  });

  test('of a fused checkpoint: hf stays fused; native takes apart only the tensor that holds factorised projections', async () => {
    const { at, source, native, hf } = await convert('fused', { fused: true }, { layers });
    const untouched = (it: KnownWeight) => !isOf(it, 2, 'gate_proj', 'up_proj');
    for (const written of [native, hf]) expect(differingWeights(written, source, untouched)).toEqual([]);
    expect([...hf.keys()].sort()).toEqual([...source.tensors.keys()].sort());
    for (const name of ['layers.1.mlp.experts.gate_up_proj', 'layers.2.mlp.experts.down_proj'])
      expect(
        Buffer.compare(
          hf.get(`model.${name}`)?.bytes ?? Buffer.of(),
          source.tensors.get(`model.${name}`)?.bytes ?? Buffer.of(1),
        ),
      ).toBe(0);
    const fused = [...native.keys()].filter((name) => /experts\.(gate_up|down)_proj$/.test(name)).sort();
    const own = [...source.tensors.keys()].filter((name) => /experts\.(gate_up|down)_proj$/.test(name));
    expect(fused).toEqual(own.filter((name) => name !== 'model.layers.2.mlp.experts.gate_up_proj').sort());
    expect(differingFiles(at('expanded'), at('hf'))).toEqual([]);
  });
});

describe('one projection, in another dtype', () => {
  const options: CompressOptions = { projections: ['up_proj'], layers: [1], dtype: 'float32' };
  const untouched = (it: KnownWeight) => !isOf(it, 1, 'up_proj');

  test('of separate experts: only those tensors change', THOROUGH, async () => {
    const { source, config, native, hf } = await convert('separate-f32', {}, options);
    for (const written of [native, hf]) expect(differingWeights(written, source, untouched)).toEqual([]);
    expect(hf.get('model.layers.1.mlp.experts.0.up_proj.weight')?.dtype).toBe('F32');
    expect(hf.get('model.layers.1.mlp.experts.0.gate_proj.weight')?.dtype).toBe('BF16');
    expect(native.get('model.layers.1.mlp.B_up')?.dtype).toBe('F32');
    expect(config('native').mobe.factors).toMatchObject([{ projections: ['up_proj'] }]);
  });

  test('of fused experts: the gate beside it is kept, in the new dtype', async () => {
    const { at, source, native, hf } = await convert('fused-f32', { fused: true }, options);
    for (const written of [native, hf]) expect(differingWeights(written, source, untouched)).toEqual([]);
    expect(hf.get('model.layers.1.mlp.experts.gate_up_proj')?.dtype).toBe('F32');
    expect(hf.get('model.layers.2.mlp.experts.gate_up_proj')?.dtype).toBe('BF16');
    expectSameWeights(source, readFolder(at('expanded')), hf);
  });

  test('of fused down projections', THOROUGH, async () => {
    const down: CompressOptions = { ...options, projections: ['down_proj'] };
    const { at, source, native, hf } = await convert('fused-down', { fused: true }, down);
    for (const written of [native, hf])
      expect(differingWeights(written, source, (it) => !isOf(it, 1, 'down_proj'))).toEqual([]);
    expect(hf.get('model.layers.1.mlp.experts.down_proj')?.dtype).toBe('F32');
    expectSameWeights(source, readFolder(at('expanded')), hf);
  });
});

test('no layer at all: the very same checkpoint', async () => {
  const at = (...path: string[]) => join(root, 'none', ...path);
  const source = await generateFamily(at('model'), 'bailing_moe_v2', { fused: true });
  for (const format of ['mobe', 'hf'] as const) {
    await compress(at('model'), at(format), { ...OUTPUT, layers: [], format });
    expect(differingWeights(readFolder(at(format)), source, () => true)).toEqual([]);
    expect(JSON.parse(readFileSync(at(format, 'config.json'), 'utf8'))).toEqual(source.config);
    expect((await verify(at('model'), at(format))).problems).toEqual([]);
  }
});
