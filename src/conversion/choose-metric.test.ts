/** Which metric a run gets, and what it takes. */
import { mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import type { RecordFacts } from '../calibration/record.js';
import { floatTensor } from '../checkpoint/header.js';
import { type Checkpoint, openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { OptionError } from '../errors.js';
import { encodeIndex, layoutShards } from '../output/layout.js';
import { planCompression } from './compression-plan.js';
import { jobMetric } from './metric-plan.js';
import { type CompressOptions, resultSettings } from './settings.js';

const folder = temporaryFolder();

/** A record of so many tokens. */
const facts = (tokens: number): RecordFacts => ({
  ...{ version: 1, sourceFingerprint: 'x', sequences: tokens / 64, length: 64, seed: 0, layers: [0] },
  texts: [{ name: 'text', bytes: 1, sha256: 'y' }],
});

const CALIBRATED = { calibration: 'record', allocate: 'uniform' } as const;

/** Writes a layer of DeepSeek-V3's experts: the headers, and holes for the weights. */
async function writeDeepSeek(path: string): Promise<Checkpoint> {
  const [n, p, d] = [256, 2048, 7168];
  const specs = Array.from({ length: n }, (_, expert) =>
    (['gate_proj', 'up_proj', 'down_proj'] as const).map((projection) =>
      floatTensor(
        `model.layers.0.mlp.experts.${expert}.${projection}.weight`,
        'BF16',
        ...((projection === 'down_proj' ? [d, p] : [p, d]) as [number, number]),
      ),
    ),
  ).flat();
  const layout = layoutShards(specs, 1e12);
  await mkdir(path, { recursive: true });
  for (const { file, header, bytes } of layout.shards) {
    const handle = await open(join(path, file), 'w');
    await handle.write(header);
    await handle.truncate(bytes);
    await handle.close();
  }
  const index = encodeIndex(layout);
  if (index) await writeFile(join(path, index.file), index.text);
  const sizes = { n_routed_experts: n, moe_intermediate_size: p, hidden_size: d };
  const config = { model_type: 'deepseek_v3', ...sizes, num_hidden_layers: 1, num_experts_per_tok: 8 };
  await writeFile(join(path, 'config.json'), JSON.stringify({ ...config, first_k_dense_replace: 0 }));
  return openCheckpoint(path);
}

describe("DeepSeek-V3's experts, 64 bases", () => {
  let source: Checkpoint;
  beforeAll(async () => {
    source = await writeDeepSeek(join(folder, 'deepseek'));
  });
  const projections = ['gate_proj', 'up_proj', 'down_proj'] as const;
  const options: CompressOptions = {
    bases: 64,
    threads: 8,
    maxMemory: 1e12,
    format: 'hf',
    projections: [...projections],
  };
  const plan = (more: CompressOptions = {}, tokens = 2 ** 20) =>
    planCompression(source, { ...options, ...more }, undefined, more.calibration ? facts(tokens) : undefined);

  test('get by default the highest rank that adds at most a quarter to the memory, and the plan says so', async () => {
    const plain = await plan();
    const weighed = await plan(CALIBRATED);
    const share = weighed.memory.expectedBytes / plain.memory.expectedBytes;
    expect(share).toBeGreaterThan(1.2);
    expect(share).toBeLessThanOrEqual(1.25);
    const { metric } = weighed.settings.weighing ?? {};
    expect(metric).toMatchObject({ form: 'low-rank', fit: true });
    expect((metric?.rank ?? 0) % 64).toBe(0);
    expect(weighed.metricNote).toContain(`rank ${metric?.rank} of 7168`);
    expect(weighed.metricNote).toMatch(/expected to keep about \d+ % of/);
    // A smaller covariance may take as much as a larger one.
    const down = weighed.groups.find(({ projection }) => projection === 'down_proj');
    expect(jobMetric(metric, down as NonNullable<typeof down>)?.form.rows).toMatchObject({ form: 'full' });
  });

  test('with full covariances take their memory, and more than twice that of a plain run', async () => {
    const [plain, weighed] = [await plan(), await plan({ ...CALIBRATED, metric: 'full' })];
    expect(weighed.memory.terms.metric).toBeGreaterThan(2 * 256 * 7168 ** 2 * 4);
    expect(weighed.memory.expectedBytes).toBeGreaterThan(2 * plain.memory.expectedBytes);
  });

  test('take the tokens themselves where these are few', async () => {
    const { settings } = await plan(CALIBRATED, 2 ** 13);
    expect(settings.weighing?.metric).toMatchObject({ form: 'low-rank', rank: 512 });
  });

  test('have only a metric of columns where fits are plain, and none of down', async () => {
    const { settings, groups } = await plan({ ...CALIBRATED, metric: 'none' });
    expect(settings.weighing?.metric?.fit).toBe(false);
    for (const group of groups) {
      const { rows, columns } = jobMetric(settings.weighing?.metric, group)?.form ?? {};
      expect(rows).toBeUndefined();
      expect(columns !== undefined).toBe(group.projection !== 'down_proj');
    }
  });
});

describe('a small model', () => {
  const plan = async (options: CompressOptions, tokens = 2 ** 15) =>
    planCompression(await openCheckpoint(TINY_MODEL), { bases: 8, ...options }, undefined, facts(tokens));

  test('has full covariances, and all projections', async () => {
    const { settings, groups } = await plan(CALIBRATED);
    expect(settings.weighing?.metric).toEqual({ form: 'full', fit: true });
    expect(groups).toHaveLength(12);
    expect(resultSettings(settings)).toMatchObject({
      calibration: { texts: [{ sha256: 'y' }], tokens: 2 ** 15 },
      metric: { form: 'full', fit: true, shrinkage: expect.stringContaining('0.1 at 20 tokens') },
      repair: 'factors',
    });
  });

  test('has none where nothing uses it', async () => {
    const { settings, memory } = await plan({ ...CALIBRATED, metric: 'none', repair: 'none' });
    expect(settings.weighing?.metric).toBeUndefined();
    expect(memory.terms.metric).toBe(0);
  });

  test('fitted by adam is only repaired', async () => {
    const { settings } = await plan({ ...CALIBRATED, solver: 'adam' });
    expect(settings.weighing?.metric?.fit).toBe(false);
    await expect(plan({ ...CALIBRATED, solver: 'adam', metric: 'full' })).rejects.toThrow(
      'the solver adam has no metric',
    );
  });

  test.each([
    ['a metric without a record', { metric: 'full' } as const, '--metric: full needs a calibration record'],
    ['a repair without a record', { repair: 'factors' } as const, '--repair: factors needs a calibration record'],
    ['a record for svd', { calibration: 'x', method: 'svd', bases: undefined, format: 'hf' } as const, '--calibration'],
  ])('refuses %s', async (_, options, message) => {
    await expect(plan(options)).rejects.toThrow(OptionError);
    await expect(plan(options)).rejects.toThrow(message);
  });
});
