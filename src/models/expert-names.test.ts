import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { readFloats } from '../../fixtures/dequantise.js';
import type { FamilyName } from '../../fixtures/families.js';
import { type FamilyOptions, generateFamily } from '../../fixtures/generate-family.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { readMatrix } from '../checkpoint/stored-matrix.js';
import * as errors from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { detectModel } from './detect.js';
import { PROJECTIONS } from './family.js';

const root = temporaryFolder();
let made = 0;
const SIZES = { layers: 1, experts: 3, rows: 4, cols: 8 };

async function generate(family: FamilyName, options: FamilyOptions = {}) {
  const folder = join(root, String(made++));
  const source = await generateFamily(folder, family, { sizes: SIZES, ...options });
  return { source, model: async () => detectModel(await openCheckpoint(folder)) };
}

describe('an expert is found in its projection and place, with its own bytes:', () => {
  const cases: ReadonlyArray<[string, FamilyName, FamilyOptions]> = [
    ['gate_proj, up_proj, down_proj', 'qwen3_moe', {}],
    ['w1, w3, w2', 'mixtral', {}],
    ['nested under language_model', 'multimodal', {}],
    ['fused', 'qwen3_moe', { fused: true, dtype: 'F16' }],
    ['fused under block_sparse_moe', 'mixtral', { fused: true, dtype: 'F32' }],
  ];
  test.each(cases)('%s', async (_, family, options) => {
    const { source, model } = await generate(family, options);
    const { layers } = await model();
    const reader = new LocalFiles();
    const numbered = { gate_proj: 'w1', up_proj: 'w3', down_proj: 'w2' };
    for (const { prefix, experts } of layers)
      for (const projection of PROJECTIONS)
        for (const [expert, matrix] of experts[projection].entries()) {
          const name = `${prefix}experts.${expert}.${family === 'mixtral' ? numbered[projection] : projection}.weight`;
          const bytes = await readMatrix(reader, matrix);
          expect(readFloats(options.dtype ?? 'BF16', bytes), name).toEqual(source.weights.get(name)?.values);
          expect([matrix.rows, matrix.cols]).toEqual(source.weights.get(name)?.shape);
          if (!options.fused) expect(matrix.name).toBe(name);
        }
    await reader.close();
    expect(layers[0]?.experts.up_proj).toHaveLength(3);
  });
});

describe('refused:', () => {
  const reshape = (shapes: Readonly<Record<string, number[]>>) => (tensors: StoredTensor[]) =>
    tensors.map((tensor) => {
      const shape = shapes[tensor.name.split('.').at(-1) as string];
      return shape ? { ...tensor, shape } : tensor;
    });
  const fused = 'model.layers.0.mlp.experts.';

  test('fused experts whose sizes fit neither orientation', async () => {
    const alter = reshape({ gate_up_proj: [3, 4, 16], down_proj: [3, 4, 8] });
    const { model } = await generate('qwen3_moe', { fused: true, alter });
    await expect(model()).rejects.toThrow(errors.UnsupportedLayoutError);
    await expect(model()).rejects.toThrow(
      "an expert's gate_up_proj is [4,16] and its down_proj [4,8]; [2p, d] with [d, p] is read, and [d, 2p] with [p, d]",
    );
  });

  test.each(['down_proj', 'gate_up_proj'])('fused experts without %s', async (missing) => {
    const alter = (tensors: StoredTensor[]) => tensors.filter(({ name }) => name !== `${fused}${missing}`);
    const { model } = await generate('qwen3_moe', { fused: true, alter });
    await expect(model()).rejects.toThrow(errors.UnsupportedLayoutError);
    await expect(model()).rejects.toThrow(`there is no ${fused}${missing} beside it`);
  });

  test('fused experts one below the other', async () => {
    const alter = reshape({ gate_up_proj: [24, 8], down_proj: [24, 4] });
    const { model } = await generate('qwen3_moe', { fused: true, alter });
    await expect(model()).rejects.toThrow(errors.UnequalExpertError);
  });

  const halved = (dtype: string) => (tensors: StoredTensor[]) =>
    tensors.map((it) =>
      it.name === `${fused}down_proj` ? { ...it, dtype, bytes: it.bytes.subarray(0, it.bytes.length / 2) } : it,
    );

  test('fused experts in FP8 without scales', async () => {
    const { model } = await generate('qwen3_moe', { fused: true, alter: halved('F8_E4M3') });
    await expect(model()).rejects.toThrow(errors.MissingScaleError);
    await expect(model()).rejects.toThrow('down_proj_scale_inv" is in no shard');
  });

  test('fused experts in bytes', async () => {
    const { model } = await generate('qwen3_moe', { fused: true, alter: halved('U8') });
    await expect(model()).rejects.toThrow(errors.UnsupportedQuantisationError);
    await expect(model()).rejects.toThrow('fused experts are U8');
  });

  test.each(['0.up_proj.weight', '0.w3.weight'])('fused experts with %s beside them', async (name) => {
    const own: StoredTensor = { name: `${fused}${name}`, dtype: 'BF16', shape: [4, 8], bytes: new Uint8Array(64) };
    const { model } = await generate('qwen3_moe', { fused: true, alter: (tensors) => [...tensors, own] });
    await expect(model()).rejects.toThrow(errors.UnsupportedLayoutError);
    await expect(model()).rejects.toThrow('holds expert 0 too');
  });

  test("GPTQ's tensors without those that accompany them", async () => {
    const alter = (tensors: StoredTensor[]) =>
      tensors.map((it) => ({ ...it, name: it.name.replace(/(experts\..*)\.weight$/, '$1.qweight') }));
    const { model } = await generate('qwen3_moe', { alter });
    await expect(model()).rejects.toThrow(errors.MissingScaleError);
    await expect(model()).rejects.toThrow('.scales');
  });

  test('integers', async () => {
    const odd = `${fused}1.up_proj.weight`;
    const alter = (tensors: StoredTensor[]) => tensors.map((it) => (it.name === odd ? { ...it, dtype: 'I16' } : it));
    const { model } = await generate('qwen3_moe', { alter });
    await expect(model()).rejects.toThrow(errors.UnsupportedDtypeError);
    await expect(model()).rejects.toThrow(odd);
  });
});
