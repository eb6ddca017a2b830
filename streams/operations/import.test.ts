import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { TINY_MODEL, WAB_FILES } from '../../fixtures/paths.js';
import { startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { isFitted } from '../../src/conversion/run-report.js';
import * as errors from '../../src/errors.js';
import type { RunResult } from '../run-options.js';
import { exportFactors } from './export.js';
import { importFactors } from './import.js';
import { verify } from './verify.js';

/** The values that PyTorch computes from the files (fixtures/wab.py). */
const expected: Record<string, { activation: string; sigma: number; relativeError: number }> = JSON.parse(
  readFileSync(join(WAB_FILES, 'expected.json'), 'utf8'),
);
const GATE = 'model_layers_1_mlp_gate_proj_WAB.pth';
const UP = (group: number): string => `model_layers_2_mlp_up_proj_group${group}_WAB.pth`;

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);

/** Makes a folder with some of the files. */
function wab(name: string, ...files: string[]): string {
  mkdirSync(at(name));
  for (const file of files) copyFileSync(join(WAB_FILES, file), at(name, file));
  return at(name);
}

describe.each([
  ['one group, silu', 'gate', [GATE]],
  ['two groups, tanh', 'up', [UP(0), UP(1)]],
])('%s', (_, name, files) => {
  let result: RunResult;
  beforeAll(async () => {
    result = await importFactors(TINY_MODEL, wab(`${name}-wab`, ...files), at(name));
  });

  test('has the errors that PyTorch finds, and its σ, rounded to fp16 as there', () => {
    const groups = result.groups.filter(isFitted);
    expect(groups).toHaveLength(files.length);
    for (const [i, file] of files.entries()) {
      const { relativeError, sigma } = expected[file] as (typeof expected)[string];
      expect(groups[i]?.sigma).toBe(sigma);
      expect((groups[i]?.relativeError ?? 0) / relativeError).toBeCloseTo(1, 5);
    }
  });

  test('finds the activation by itself', () => {
    expect(result.settings.activation).toBe(expected[files[0] as string]?.activation);
  });

  test.each(['mobe', 'hf'] as const)('is exported as %s, and that verifies', async (format) => {
    const out = at(`${name}-${format}`);
    const { groups } = await exportFactors(TINY_MODEL, at(name), out, { format });
    expect(groups).toHaveLength(files.length);
    expect((await verify(TINY_MODEL, out)).problems).toEqual([]);
  });
});

test('a model elsewhere gives the same files as one here', async () => {
  const service = await startService(['serve', TINY_MODEL]);
  try {
    await importFactors(service.url, wab('served-wab', GATE), at('served'));
    const file = 'layer-001.gate_proj.safetensors';
    expect(readFileSync(at('served', file)).equals(readFileSync(at('gate', file)))).toBe(true);
  } finally {
    await service.stop();
  }
});

test('the other activation can be forced, and fits worse', async () => {
  const { groups } = await importFactors(TINY_MODEL, wab('forced-wab', GATE), at('forced'), { activation: 'tanh' });
  expect(groups.filter(isFitted)[0]?.relativeError).toBeGreaterThan(1.05 * (expected[GATE]?.relativeError ?? 0));
});

test('an interrupted import goes on where it stopped, and σ is that of all groups', async () => {
  const file = 'layer-002.up_proj.group-1.safetensors';
  await importFactors(TINY_MODEL, wab('resumed-wab', UP(0), UP(1)), at('resumed'));
  const whole = readFileSync(at('resumed', file));
  rmSync(at('resumed', file));
  await importFactors(TINY_MODEL, at('resumed-wab'), at('resumed'));
  expect(readFileSync(at('resumed', file)).equals(whole)).toBe(true);
});

describe('refused, and nothing is written:', () => {
  test('a group that is missing', async () => {
    const run = importFactors(TINY_MODEL, wab('one-missing', UP(1)), at('never'));
    await expect(run).rejects.toThrow(errors.ForeignFactorsError);
    await expect(run).rejects.toThrow('of the 2 groups of layer 2 up_proj there are 1');
    expect(existsSync(at('never'))).toBe(false);
  });
  test('a folder without such files', async () => {
    const run = importFactors(TINY_MODEL, TINY_MODEL, at('never'));
    await expect(run).rejects.toThrow(errors.ForeignFactorsError);
  });
  test('factors of another model', async () => {
    await generateCheckpoint(at('other'), { layers: 3, experts: 16, rows: 64, cols: 192 });
    const run = importFactors(at('other'), wab('other-wab', GATE), at('never'));
    await expect(run).rejects.toThrow(errors.ForeignFactorsError);
    await expect(run).rejects.toThrow('it is for 32 experts of 64 × 192');
  });
});
