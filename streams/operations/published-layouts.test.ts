/**
 * Experts in published layouts are converted to the same numbers as separate experts, which families.test.ts checks, and are
 * written where the source has them.
 */
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { readFloats } from '../../fixtures/dequantise.js';
import type { FamilyName } from '../../fixtures/families.js';
import { type GeneratedFamily, generateFamily, TINY } from '../../fixtures/generate-family.js';
import {
  type Published,
  type PublishedLayout,
  publish,
  publishedConfig,
  publishFloats,
} from '../../fixtures/published-layouts.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { encodeFloats } from '../../src/checkpoint/codec.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isFitted, isKept } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { detectModel } from '../../src/models/detect.js';
import { layoutOf, placeIn } from '../../src/models/expert-layout.js';
import { PROJECTIONS } from '../../src/models/family.js';
import type { Progress } from '../run-options.js';
import { compress as compressSmaller } from './compress.js';
import { expand } from './expand.js';
import { exportFactors as exportSmaller } from './export.js';
import { fitFactors } from './fit.js';
import { inspect } from './inspect.js';
import { plan } from './plan.js';
import { verify } from './verify.js';
import { verifyIntegrity } from './verify-manifest.js';

const root = temporaryFolder();
const SIZES = { ...TINY, layers: 3, rows: 32, cols: 64 }; // whole groups of MXFP4
const OUTPUT = { shardSize: 60_000, threads: 1 };
const QUICK: CompressOptions = { bases: 2, rank: 16, steps: 3, dtype: 'bfloat16', ...OUTPUT };
/** In bf16, results of quantised sources are larger than these. */
const compress: typeof compressSmaller = (model, out, options, run) =>
  compressSmaller(model, out, options, { allowLarger: true, ...run });
const exportFactors: typeof exportSmaller = (model, factors, out, options, run) =>
  exportSmaller(model, factors, out, options, { allowLarger: true, ...run });

const ROWS: ReadonlyArray<readonly [PublishedLayout, FamilyName, Record<string, unknown>]> = [
  ['transposed', 'multimodal', {}],
  ['alternating', 'unknown', { model_type: 'gpt_oss' }],
  ['mxfp4', 'unknown', { model_type: 'gpt_oss' }],
  ['fp8', 'qwen3_moe', {}],
];

const cost = thoroughBut('alternating');

for (const row of ROWS) describe(`experts ${row[0]}`, cost(row[0]), () => testLayout(...row));

function testLayout(layout: PublishedLayout, family: FamilyName, config: Record<string, unknown>): void {
  const at = (...path: string[]) => join(root, layout, ...path);
  let published: Published;
  let source: GeneratedFamily;

  beforeAll(async () => {
    source = await generateFamily(at('model'), family, {
      sizes: SIZES,
      config: { ...config, ...publishedConfig(layout) },
      alter(tensors) {
        published = publish(tensors, layout, SIZES);
        return published.tensors;
      },
    });
    await generateFamily(at('separate'), family, { sizes: SIZES, config, alter: () => published.meaning });
    await compress(at('model'), at('hf'), { ...QUICK, format: 'hf' });
  });

  /** The conversion of the separate experts, in bf16, in the layout of the source. */
  async function expected(options: CompressOptions): Promise<StoredTensor[]> {
    const name = `separate ${JSON.stringify(options)}`;
    await compress(at('separate'), at(name), { ...QUICK, dtype: 'bfloat16', format: 'hf', ...options });
    const tensors = [...readFolder(at(name)).values()].map((tensor) =>
      tensor.name.includes('.experts.')
        ? { ...tensor, dtype: 'BF16', bytes: encodeFloats('BF16', readFloats(tensor.dtype, tensor.bytes)) }
        : tensor,
    );
    return publishFloats(tensors, layout, SIZES);
  }

  /** Checks the tensors of a result: names, dtypes, shapes and every byte. */
  async function expectResult(folder: string, options: CompressOptions = {}): Promise<void> {
    const written = readFolder(at(folder));
    const wanted = await expected(options);
    const biases = published.tensors.filter(({ name }) => name.endsWith('_bias'));
    expect([...written.keys()].sort()).toEqual([...wanted, ...biases].map(({ name }) => name).sort());
    for (const { name, dtype, shape, bytes } of [...wanted, ...biases]) {
      expect(written.get(name), name).toMatchObject({ dtype, shape });
      expect(Buffer.compare(written.get(name)?.bytes ?? Buffer.of(), bytes), name).toBe(0);
    }
  }

  async function convert(folder: string, options: CompressOptions) {
    const result = await compress(at('model'), at(folder), { ...QUICK, format: 'hf', ...options });
    expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);
    return result;
  }

  test('keep their tensors, and the weights are those of separate experts', async () => {
    await expectResult('hf');
    const { quantization_config: _, ...plain } = source.config;
    expect(JSON.parse(readFileSync(at('hf', 'config.json'), 'utf8'))).toEqual(plain);
    const { problems, groups } = await verify(at('model'), at('hf'), { threads: 1 });
    expect(problems).toEqual([]);
    expect(groups).toHaveLength(2 * source.moeLayers.length);
  });

  test('are counted by their weights', async () => {
    const [own, separate] = [await inspect(at('model')), await inspect(at('separate'))];
    const biases = published.tensors.filter(({ name }) => name.endsWith('_bias'));
    const extra = biases.reduce((sum, { bytes }) => sum + bytes.byteLength / 2, 0);
    expect(own.total.parameters).toBe(separate.total.parameters + extra);
    const kind = { fp8: 'F8_E4M3 in 12 × 16 blocks', mxfp4: 'MXFP4 in groups of 32', transposed: '', alternating: '' }[
      layout
    ];
    const tensors = published.tensors.filter(({ dtype, name }) => dtype === 'F8_E4M3' || name.endsWith('_blocks'));
    expect(own.quantised).toEqual(kind ? { [kind]: tensors.length } : {});
    expect(own).toMatchObject({ expertShape: [SIZES.rows, SIZES.cols], obstacle: undefined });
  });

  test('wait for each other in planned memory', async () => {
    const slicesOf = async (options: CompressOptions) =>
      (await plan(at('model'), { ...QUICK, ...options })).memory.terms.slices;
    const projection = 2 * SIZES.experts * SIZES.rows * SIZES.cols;
    const slice = (2 * projection) / SIZES.experts;
    expect(await slicesOf({ format: 'hf' })).toBe(layout === 'fp8' ? 0 : projection + 4 * slice);
    expect(await slicesOf({ format: 'hf', groups: 2 })).toBe(layout === 'fp8' ? 0 : projection + 4 * slice);
    expect(await slicesOf({ format: 'hf', projections: ['up_proj'] })).toBe(layout === 'fp8' ? 0 : 4 * slice);
  });

  test('have a layout from which their places follow', async () => {
    const checkpoint = await openCheckpoint(at('model'));
    for (const layer of detectModel(checkpoint).layers) {
      const found = layoutOf(layer, checkpoint.tensors);
      for (const projection of PROJECTIONS)
        for (const [expert, matrix] of layer.experts[projection].entries())
          expect(placeIn(found, layer.prefix, projection, expert, matrix)).toEqual(matrix.place);
    }
  });

  test('fit and export write the same', async () => {
    await fitFactors(at('model'), at('factors'), QUICK);
    await exportFactors(at('model'), at('factors'), at('export'), { ...QUICK, format: 'hf' });
    expect(differingFiles(at('export'), at('hf'))).toEqual([]);
  });

  if (layout !== 'transposed')
    test('native, and expanded to the layout of the source', async () => {
      const options: CompressOptions = { ...QUICK, dtype: 'bfloat16', projections: ['up_proj', 'down_proj'] };
      await compress(at('model'), at('native'), options);
      expect((await verify(at('model'), at('native'), { threads: 1 })).problems).toEqual([]);
      await expand(at('native'), at('expanded'), OUTPUT);
      await compress(at('model'), at('dense'), { ...options, format: 'hf' });
      expect(differingFiles(at('expanded'), at('dense'))).toEqual([]);
      expect((await verify(at('model'), at('expanded'), { threads: 1 })).problems).toEqual([]);
    });

  test('one projection: the other is read from the source', async () => {
    await convert('one', { projections: ['up_proj'] });
    await expectResult('one', { projections: ['up_proj'] });
  });

  test.each<[string, CompressOptions]>([
    ['all projections, in two groups', { projections: ['gate_proj', 'up_proj', 'down_proj'], groups: 2 }],
    ['one layer', { layers: [1] }],
    ['no layer', { layers: [] }],
  ])('%s', THOROUGH, async (name, options) => {
    await convert(name, options);
    await expectResult(name, options);
  });

  test('one of two projections is kept by --max-error, and its weights stay', THOROUGH, async () => {
    const errors = (await compress(at('model'), at('hf'), { ...QUICK, format: 'hf' })).groups.filter(isFitted);
    const maxError = errors.map(({ relativeError }) => relativeError).sort()[1] as number;
    const { groups } = await convert('max-error', { maxError });
    expect(groups.filter(isKept).length).toBeGreaterThan(0);
    expect(groups.filter(isFitted).length).toBeGreaterThan(0);
    await expectResult('max-error', { maxError });
    await fitFactors(at('model'), at('factors-max'), QUICK);
    await exportFactors(at('model'), at('factors-max'), at('export-max'), { ...QUICK, format: 'hf', maxError });
    expect(differingFiles(at('export-max'), at('max-error'))).toEqual([]);
  });

  test('one of two projections is dropped by a stage of the caller', THOROUGH, async () => {
    const run = {
      async *ownStage<T extends { group: { projection: string } }>(all: AsyncIterable<T>) {
        for await (const it of all) if (it.group.projection !== 'gate_proj') yield it;
      },
    };
    await compress(at('model'), at('dropped'), { ...QUICK, format: 'hf' }, run);
    expect((await verify(at('model'), at('dropped'), { threads: 1 })).problems).toEqual([]);
    await expectResult('dropped', { projections: ['up_proj'] });
  });

  test('a run that ends between gate and up of a layer goes on, and writes the same', async () => {
    const controller = new AbortController();
    const begun = new Set<string>();
    const onProgress = (it: Progress): void => {
      if (it.kind === 'fold') begun.add(`${it.layer} ${it.projection}`);
      if (begun.size === 4) controller.abort(); // up of the second layer
    };
    const options = { ...QUICK, format: 'hf' } as const;
    const stopped = compress(at('model'), at('resumed'), options, { onProgress, signal: controller.signal });
    await expect(stopped).rejects.toMatchObject({ kept: at('resumed') });
    const fitted: string[] = [];
    await compress(at('model'), at('resumed'), options, {
      onProgress: (it) => it.kind === 'group' && fitted.push(`${it.report.layer} ${it.report.projection}`),
    });
    expect(fitted.length).toBeLessThan(2 * source.moeLayers.length);
    const [, , gate, up] = begun;
    if (layout !== 'fp8') expect(fitted).toEqual(expect.arrayContaining([gate, up]));
    expect(differingFiles(at('resumed'), at('hf'))).toEqual([]);
    expect((await verifyIntegrity(at('resumed'))).problems).toEqual([]);
  });

  test('factors of a part of the experts are exported, the others stay', THOROUGH, async () => {
    const options = { ...QUICK, groups: 2 };
    await fitFactors(at('model'), at('parts'), options);
    const files = readdirSync(at('parts')).filter((file) => file.endsWith('.group-1.safetensors'));
    for (const file of files) rmSync(at('parts', file));
    const { groups } = await exportFactors(at('model'), at('parts'), at('parts-export'), { ...QUICK, format: 'hf' });
    expect(groups).toHaveLength(2 * source.moeLayers.length);
    expect((await verify(at('model'), at('parts-export'), { threads: 1 })).problems).toEqual([]);
    const written = readFolder(at('parts-export'));
    const [all, none] = [await expected({ groups: 2 }), await expected({ layers: [] })];
    for (const [i, { name, bytes }] of all.entries()) {
      if (!name.endsWith('gate_up_proj') || name.startsWith('mtp')) continue;
      const half = bytes.length / 2;
      const own = written.get(name)?.bytes ?? Buffer.of();
      expect(Buffer.compare(own.subarray(0, half), bytes.subarray(0, half)), name).toBe(0);
      expect(Buffer.compare(own.subarray(half), none[i]?.bytes.subarray(half) ?? Buffer.of()), name).toBe(0);
    }
  });

  test('over three other machines, and again after the sender stopped: the same bytes', THOROUGH, async () => {
    const services = await Promise.all([
      startService(['serve', at('model')]),
      startService(['worker', '--threads', '1']),
      startService(['receive', at('received')]),
    ]);
    const [from, worker, to] = services.map(({ url }) => url) as [string, string, string];
    const options = { ...QUICK, format: 'hf' } as const;
    const controller = new AbortController();
    let finished = 0;
    const onProgress = ({ kind }: Progress): void => {
      if (kind === 'group' && ++finished === 2) controller.abort();
    };
    const stopped = compress(from, to, options, { workers: [worker], onProgress, signal: controller.signal });
    await expect(stopped).rejects.toMatchObject({ kept: to });
    const fitted: Progress[] = [];
    await compress(from, to, options, {
      workers: [worker],
      onProgress: (it) => it.kind === 'group' && fitted.push(it),
    });
    await Promise.all(services.map((service) => service.stop()));
    expect(fitted.length).toBeLessThan(2 * source.moeLayers.length);
    expect(differingFiles(at('received'), at('hf'))).toEqual([]);
    expect((await verify(at('model'), at('received'), { threads: 1 })).problems).toEqual([]);
  });

  const quantisedAgain = test.runIf(layout === 'mxfp4');
  quantisedAgain('--keep-quantized puts codes between those that are not converted', async () => {
    const [first = 0] = source.moeLayers;
    const options: CompressOptions = { layers: [first], keepQuantized: true };
    const read = (folder: string, name: string): Uint8Array => readFolder(at(folder)).get(name)?.bytes ?? Buffer.of();
    await convert('again', options);
    await convert('again up', { ...options, projections: ['up_proj'] });
    await convert('again down', { ...options, projections: ['gate_proj', 'up_proj', 'down_proj'] });
    for (const folder of ['again', 'again up', 'again down']) {
      expect(readFileSync(at(folder, 'config.json'), 'utf8')).toBe(readFileSync(at('model', 'config.json'), 'utf8'));
      const written = readFolder(at(folder));
      expect([...written.keys()].sort()).toEqual(published.tensors.map(({ name }) => name).sort());
      for (const { name, dtype, shape, bytes } of published.tensors) {
        expect(written.get(name), name).toMatchObject({ dtype, shape });
        const [, projection = ''] =
          new RegExp(`layers\\.${first}\\..*experts\\.(gate_up|down)_proj_(?:blocks|scales)$`).exec(name) ?? [];
        const converted = projection === 'gate_up' || (projection === 'down' && folder === 'again down');
        expect(Buffer.compare(written.get(name)?.bytes ?? Buffer.of(), bytes) === 0, name).toBe(!converted);
      }
    }
    // Rows alternate: gate, up, gate, …
    for (const [part, rowBytes] of [
      ['blocks', SIZES.cols / 2],
      ['scales', SIZES.cols / 32],
    ] as const) {
      const name = published.tensors
        .map((it) => it.name)
        .find((it) => it.includes(`layers.${first}.`) && it.endsWith(`gate_up_proj_${part}`)) as string;
      const [all, up, before] = ['again', 'again up', 'model'].map((folder) => read(folder, name)) as [
        Uint8Array,
        Uint8Array,
        Uint8Array,
      ];
      for (let row = 0; row * rowBytes < all.length; row++) {
        const own = (bytes: Uint8Array): Uint8Array => bytes.subarray(row * rowBytes, (row + 1) * rowBytes);
        expect(own(up)).toEqual(own(row % 2 === 0 ? before : all));
      }
    }
    await fitFactors(at('model'), at('factors again'), { ...QUICK, ...options });
    await exportFactors(at('model'), at('factors again'), at('exported again'), {
      ...OUTPUT,
      format: 'hf',
      keepQuantized: true,
    });
    expect(differingFiles(at('exported again'), at('again'))).toEqual([]);
    const errors = (await compress(at('model'), at('again'), { ...QUICK, format: 'hf', ...options })).groups.filter(
      isFitted,
    );
    const maxError = Math.min(...errors.map(({ relativeError }) => relativeError)); // one of the two groups is kept
    const { groups } = await convert('again max', { ...options, maxError });
    expect(groups.filter(isKept)).toHaveLength(1);
  });

  test.skipIf(layout === 'mxfp4')(
    '--keep-quantized decodes the experts of converted layers, and names them in the config',
    THOROUGH,
    async () => {
      const [first = 0] = source.moeLayers;
      await convert('kept', { layers: [first], keepQuantized: true });
      const written = readFolder(at('kept'));
      const wanted = new Map((await expected({ layers: [first] })).map((tensor) => [tensor.name, tensor]));
      const isConverted = (name: string): boolean => name.includes(`layers.${first}.`) && !name.startsWith('mtp');
      for (const tensor of published.tensors) {
        if (isConverted(tensor.name) && /experts\.(gate_up|down)_proj(_|$)(?!bias)/.test(tensor.name)) continue;
        expect(Buffer.compare(written.get(tensor.name)?.bytes ?? Buffer.of(), tensor.bytes), tensor.name).toBe(0);
      }
      for (const [name, { bytes }] of wanted)
        if (isConverted(name)) expect(Buffer.compare(written.get(name)?.bytes ?? Buffer.of(), bytes), name).toBe(0);
      const { quantization_config: entry } = JSON.parse(readFileSync(at('kept', 'config.json'), 'utf8'));
      const module = `model.layers.${first}.mlp.experts`;
      if (source.config.quantization_config) expect(entry.modules_to_not_convert).toContain(module);
      else expect(entry).toBeUndefined();
    },
  );

  test('verify finds a wrong weight beside rebuilt ones', THOROUGH, async () => {
    await convert('spoiled', { projections: ['up_proj'] });
    const [prefix] = [...source.weights.keys()].filter((name) => name.includes('.experts.0.gate_proj'));
    const name = `${prefix?.replace(/0\.gate_proj\.weight$/, '')}gate_up_proj`;
    const { file } = readFolder(at('spoiled')).get(name) ?? {};
    cpSync(at('spoiled'), at('spoiled again'), { recursive: true });
    const path = at('spoiled again', file as string);
    const bytes = readFileSync(path);
    const header = 8 + Number(bytes.readBigUInt64LE(0));
    const { data_offsets } = JSON.parse(bytes.subarray(8, header).toString())[name];
    const byte = header + data_offsets[0];
    bytes[byte] = (bytes[byte] as number) ^ 1; // the first number of every layout is of expert 0's gate
    writeFileSync(path, bytes);
    const { problems } = await verify(at('model'), at('spoiled again'), { threads: 1 });
    expect(problems.join()).toContain(name);
  });
}
