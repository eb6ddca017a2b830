import { execFile } from 'node:child_process';
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { forgetManifest } from '../../fixtures/forget-manifest.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { CLI } from '../../fixtures/paths.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import type { TensorInfo } from '../../src/checkpoint/header.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { GroupKey } from '../../src/conversion/group-plan.js';
import { isFitted, isKept, POOR_FIT } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { type MobeError, NonFiniteWeightError, OptionError, OverflowError } from '../../src/errors.js';
import { compress } from '../operations/compress.js';
import { expand } from '../operations/expand.js';
import { exportFactors } from '../operations/export.js';
import { fitFactors } from '../operations/fit.js';
import { verify } from '../operations/verify.js';
import type { RunResult } from '../run-options.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
const QUICK = { bases: 3, steps: 3, threads: 1 } as const;
const label = ({ layer, projection }: GroupKey): string => `${layer} ${projection}`;
const isOf = ({ layer, projection }: GroupKey, tensor: string): boolean =>
  tensor.includes(`layers.${layer}.mlp.experts.`) &&
  (tensor.endsWith(`${projection}.weight`) ||
    tensor.endsWith(projection === 'down_proj' ? 'down_proj' : 'gate_up_proj'));
const bytesOf = (tensors: ReturnType<typeof readFolder>, name: string): Buffer =>
  Buffer.from(tensors.get(name)?.bytes ?? []);

describe.each([
  ['separate experts', {}],
  ['fused experts', { fused: true }],
  ['FP8 experts', { quantised: 'fp8' as const }],
])('--max-error, %s:', (layout, options) => {
  const family = layout === 'FP8 experts' ? 'deepseek_v3' : 'qwen3_moe';
  const model = at(layout, 'model');
  const out = (name: string): string => at(layout, name);
  const settings: CompressOptions = { ...QUICK, format: 'hf', dtype: 'bfloat16' };
  let plain: RunResult;
  let bounded: RunResult;
  let maxError = 0;
  beforeAll(async () => {
    await generateFamily(model, family, { ...options, sizes: { layers: 3 } });
    plain = await compress(model, out('plain'), settings, LARGER);
    const errors = plain.groups.filter(isFitted).map(({ relativeError }) => relativeError);
    errors.sort((a, b) => a - b);
    const middle = errors.length / 2;
    maxError = ((errors[middle - 1] as number) + (errors[middle] as number)) / 2;
    bounded = await compress(model, out('bounded'), { ...settings, maxError }, LARGER);
  });

  test('groups above it are kept, and are told; the others are as without it', () => {
    const kept = bounded.groups.filter(isKept);
    const fitted = plain.groups.filter(isFitted);
    expect(kept.map(label)).toEqual(fitted.filter(({ relativeError }) => relativeError > maxError).map(label));
    expect(kept.length).toBe(fitted.length / 2);
    for (const group of kept) {
      expect(group.keptError).toBe(fitted.find((it) => label(it) === label(group))?.relativeError);
      expect(bounded.warnings?.join('\n')).toContain(`layer ${group.layer} ${group.projection} was kept uncompressed`);
    }
    const stripped = ({ seconds: _, ...rest }: RunResult['groups'][number]) => rest;
    expect(bounded.groups.filter(isFitted).map(stripped)).toEqual(
      fitted.filter(({ relativeError }) => relativeError <= maxError).map(stripped),
    );
  });

  test('their weights are the source’s, decoded as without compression', async () => {
    await compress(model, out('none'), { ...settings, layers: [] }, LARGER);
    const [untouched, before, after] = ['none', 'plain', 'bounded'].map((name) => readFolder(out(name))) as [
      ReturnType<typeof readFolder>,
      ReturnType<typeof readFolder>,
      ReturnType<typeof readFolder>,
    ];
    expect([...after.keys()]).toEqual([...before.keys()]);
    const kept = new Set(bounded.groups.filter(isKept).map(label));
    for (const name of after.keys()) {
      const fused = name.endsWith('gate_up_proj');
      const [, layer, projection] = /layers\.(\d+)\.mlp\.experts\.(?:\d+\.)?(\w+)/.exec(name) ?? [];
      const parts = fused ? ['gate_proj', 'up_proj'] : [projection];
      const size = bytesOf(after, name).length / (fused ? 16 : 1); // 8 experts, gate over up
      for (let from = 0, i = 0; from < bytesOf(after, name).length; from += size, i++) {
        const expected = kept.has(`${layer} ${parts[i % parts.length]}`) ? untouched : before;
        const part = (tensors: typeof after) => bytesOf(tensors, name).subarray(from, from + size);
        expect(part(after).equals(part(expected)), `${name} ${i}`).toBe(true);
      }
    }
  });

  test('fit and export decide as one pass does, and write the same', async () => {
    await fitFactors(model, out('factors'), { ...QUICK, dtype: 'bfloat16' });
    await exportFactors(model, out('factors'), out('export'), { format: 'hf', threads: 1, maxError }, LARGER);
    expect(differingFiles(out('export'), out('bounded'))).toEqual([]);
  });

  test('verify compares what was kept byte by byte', async () => {
    const { problems, groups, copiedTensors } = await verify(model, out('bounded'), { threads: 1 });
    expect(problems).toEqual([]);
    expect(groups.map(label)).toEqual(bounded.groups.filter(isFitted).map(label));
    const first = bounded.groups.filter(isKept)[0] as GroupKey;
    cpSync(out('bounded'), out('flipped'), { recursive: true });
    forgetManifest(out('flipped'));
    const { tensors } = await openCheckpoint(out('flipped'));
    const name = [...tensors.keys()].find((it) => isOf(first, it)) as string;
    const { file, start, end } = tensors.get(name) as TensorInfo;
    const bytes = readFileSync(file);
    // The lowest significant bit of the last weight of the projection's first expert.
    const position = start + (end - start) / (name.endsWith('gate_up_proj') ? 16 : 1) - 2;
    const fused = first.projection === 'up_proj' && name.endsWith('gate_up_proj');
    const at = fused ? position + (end - start) / 16 : position;
    bytes[at] = (bytes[at] as number) ^ 1;
    writeFileSync(file, bytes);
    const flipped = await verify(model, out('flipped'), { threads: 1 });
    expect(flipped.problems).toHaveLength(1);
    expect(flipped.problems[0]).toContain(`tensor "${name}"`);
    expect(flipped.problems[0]).toContain('differs from the source at byte');
    expect(copiedTensors).toBeGreaterThan(0);
  });
});

describe('--max-error and native checkpoints:', () => {
  const model = at('native', 'model');
  beforeAll(async () => {
    await generateFamily(model, 'qwen3_moe', { sizes: { layers: 3 } });
    await fitFactors(model, at('native', 'factors'), QUICK);
  });

  test('one pass refuses it before anything is read', async () => {
    const refused = compress(model, at('native', 'out'), { ...QUICK, maxError: 0.5 });
    await expect(refused).rejects.toThrow(OptionError);
    await expect(refused).rejects.toThrow('mobe export --max-error');
    expect(existsSync(at('native', 'out'))).toBe(false);
  });

  test('export leaves out the layers that hold a worse group, in weights and config alike', async () => {
    const report = JSON.parse(readFileSync(at('native', 'factors', 'mobe.json'), 'utf8')) as RunResult;
    const worst = [0, 1, 2].map((layer) => {
      const own = report.groups.filter(isFitted).filter((group) => group.layer === layer);
      return { layer, error: Math.max(...own.map(({ relativeError }) => relativeError)) };
    });
    worst.sort((a, b) => a.error - b.error);
    const [best, next] = worst as [(typeof worst)[0], (typeof worst)[0]];
    const maxError = (best.error + next.error) / 2;
    const options = { format: 'mobe', threads: 1, maxError } as const;
    const result = await exportFactors(model, at('native', 'factors'), at('native', 'some'), options);
    expect(new Set(result.groups.filter(isFitted).map(({ layer }) => layer))).toEqual(new Set([best.layer]));
    expect(result.groups.filter(isKept)).toHaveLength(4);
    const { config, tensors } = await openCheckpoint(at('native', 'some'));
    expect(config.mobe).toMatchObject({ factors: [{ layers: [best.layer] }] });
    expect([...tensors.keys()].filter((name) => name.includes('.B_'))).toHaveLength(2);
    expect((await verify(model, at('native', 'some'), { threads: 1 })).problems).toEqual([]);
    await expand(at('native', 'some'), at('native', 'dense'), { threads: 1 });
    const [dense, source] = [readFolder(at('native', 'dense')), readFolder(model)];
    const other = `model.layers.${next.layer}.mlp.experts.3.up_proj.weight`;
    expect(bytesOf(dense, other).equals(bytesOf(source, other))).toBe(true);
  });

  test('when every layer is left out, the source remains', async () => {
    const options = { format: 'mobe', threads: 1, maxError: 1e-6 } as const;
    const { groups } = await exportFactors(model, at('native', 'factors'), at('native', 'none'), options);
    expect(groups.every(isKept)).toBe(true);
    expect((await verify(model, at('native', 'none'), { threads: 1 })).problems).toEqual([]);
  });
});

test('a bad fit is told on stderr, in the record and on the model card', async () => {
  await generateFamily(at('poor', 'model'), 'qwen3_moe', { sizes: { layers: 1 } });
  const args = ['compress', at('poor', 'model'), at('poor', 'out'), '--bases', '1', '--steps', '1', '--threads', '1'];
  const { stderr } = await promisify(execFile)(process.execPath, [CLI, ...args]);
  const report = JSON.parse(readFileSync(at('poor', 'out', 'mobe.json'), 'utf8')) as RunResult;
  const poor = report.groups.filter(isFitted).filter(({ relativeError }) => relativeError > POOR_FIT);
  expect(poor.length).toBeGreaterThan(0);
  expect(report.warnings).toHaveLength(poor.length);
  const card = readFileSync(at('poor', 'out', 'README.md'), 'utf8');
  for (const { layer, projection, relativeError } of poor) {
    const words = `layer ${layer} ${projection} fits badly: its relative error is ${relativeError.toFixed(4)}`;
    expect(stderr).toContain(`warning: ${words}`);
    expect(card).toContain(words);
  }
});

describe('found on the way:', () => {
  /** Expects the run to be refused, and no file to be left that a loader could take for a result. */
  async function refused(name: string, options: CompressOptions): Promise<unknown> {
    const run = compress(at(name, 'model'), at(name, 'out'), { ...QUICK, ...options }, LARGER);
    const error = await run.catch((reason: unknown) => reason);
    const left = existsSync(at(name, 'out')) ? readdirSync(at(name, 'out')) : [];
    expect(left).toEqual((error as MobeError).kept === undefined ? [] : ['.mobe-partial']);
    return error;
  }
  const alter = (name: string, change: (bytes: Uint8Array) => void) => (tensors: StoredTensor[]) => {
    const tensor = tensors.find((it) => it.name === name);
    if (!tensor) throw new RangeError(`no tensor ${name}`);
    change(tensor.bytes);
    return tensors;
  };
  const make = (name: string, tensor: string, change: (bytes: Uint8Array) => void) =>
    generateFamily(at(name, 'model'), name.includes('FP8') ? 'deepseek_v3' : 'qwen3_moe', {
      ...(name.includes('FP8') && { quantised: 'fp8' }),
      sizes: { layers: 2 },
      alter: alter(tensor, change),
    });

  test('a NaN in an FP8 tensor that is decoded and not factorised', async () => {
    const tensor = 'model.layers.0.self_attn.q_b_proj.weight';
    await make('FP8 NaN', tensor, (bytes) => bytes.fill(0x7f, 17, 18)); // S.1111.111 is NaN
    const error = await refused('FP8 NaN', {});
    expect(error).toBeInstanceOf(NonFiniteWeightError);
    expect((error as Error).message).toContain(`"${tensor}"`);
  });

  test('an infinite scale', async () => {
    const tensor = 'model.layers.1.mlp.experts.2.down_proj.weight_scale_inv';
    await make('FP8 scale', tensor, (bytes) => new DataView(bytes.buffer, bytes.byteOffset).setFloat32(0, 1 / 0, true));
    const error = await refused('FP8 scale', {});
    expect(error).toBeInstanceOf(NonFiniteWeightError);
    expect((error as Error).message).toContain('experts.2.down_proj.weight"');
  });

  test('a decoded value beyond fp16', async () => {
    const tensor = 'model.layers.0.self_attn.q_b_proj.weight';
    await make('FP8 large', `${tensor}_scale_inv`, (bytes) =>
      new DataView(bytes.buffer, bytes.byteOffset).setFloat32(0, 1e30, true),
    );
    const error = await refused('FP8 large', { dtype: 'float16' });
    expect(error).toBeInstanceOf(OverflowError);
    expect((error as Error).message).toContain(`"${tensor}"`);
  });

  test('a NaN, or with fp16 weights a value beyond it, in an expert', async () => {
    const tensor = 'model.layers.1.mlp.experts.5.gate_proj.weight';
    const bits = (value: number) => (bytes: Uint8Array) =>
      new DataView(bytes.buffer, bytes.byteOffset).setUint16(40, value, true);
    await make('NaN', tensor, bits(0x7fc0));
    await make('large', tensor, bits(0x4780)); // 65536
    for (const [name, options, kind] of [
      ['NaN', {}, NonFiniteWeightError],
      ['large', { format: 'hf', dtype: 'float16' }, OverflowError],
    ] as const) {
      const error = await refused(name, options);
      expect(error).toBeInstanceOf(kind);
      expect((error as Error).message).toContain(`"${tensor}"`);
    }
    const fine = await compress(at('large', 'model'), at('large', 'bf16'), { ...QUICK, format: 'hf' });
    expect(fine.groups).toHaveLength(4);
  });
});
