import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { availableEngines } from '../../fixtures/engines.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { EngineUnavailableError } from '../errors.js';
import { chooseEngine, fastest } from './choose-engine.js';
import { createEngine, ENGINE_NAMES } from './create-engine.js';
import { probeEngine, type WorkingEngine, works } from './probe.js';

const engines = await availableEngines();
const broken = ENGINE_NAMES.filter((name) => !engines.some((engine) => engine.name === name));
const root = temporaryFolder();
const { NODE_OPTIONS } = process.env;

afterEach(() => {
  if (NODE_OPTIONS === undefined) delete process.env.NODE_OPTIONS;
  else process.env.NODE_OPTIONS = NODE_OPTIONS;
});

/** Makes every process that is started from now on crash like native code. */
function sabotage(): void {
  writeFileSync(join(root, 'abort.cjs'), 'process.abort();');
  process.env.NODE_OPTIONS = `--require ${join(root, 'abort.cjs')}`;
}

describe('probing', () => {
  test.each(engines.map(({ name }) => name))('%s finds what it runs on, and a rate', async (name) => {
    const engine = engines.find((it) => it.name === name);
    const probe = await probeEngine(name as (typeof ENGINE_NAMES)[number], { threads: 1, rate: 'any' });
    expect(probe).toMatchObject({ name, device: engine?.device, kind: engine?.kind });
    expect((probe as WorkingEngine).gemmRate).toBeGreaterThan(1e6);
  });

  test('measures only when asked to', async () =>
    expect(await probeEngine('onnx-cpu', { threads: 1 })).not.toHaveProperty('gemmRate'));

  test.each(broken)('%s tells why it does not work, and what to do', async (name) => {
    const probe = await probeEngine(name, { threads: 1 });
    expect(works(probe)).toBe(false);
    expect(probe).toMatchObject({ reason: expect.stringContaining('--engine onnx-cpu') });
    await expect(createEngine(name, { threads: 1 })).rejects.toThrow(EngineUnavailableError);
    await expect(chooseEngine(name, 1)).rejects.toThrow(EngineUnavailableError);
  });

  test.runIf(broken.includes('tensorflow'))('tensorflow tells how it is linked', async () => {
    const reason = expect.stringMatching(/npm install .*tfjs-node-gpu|mobe engines --link-tensorflow/);
    expect(await probeEngine('tensorflow', { threads: 1 })).toMatchObject({ reason });
  });

  test('a runtime that ends its process ends only the probe', async () => {
    sabotage();
    expect(await probeEngine('onnx-cpu', { threads: 1 })).toMatchObject({
      name: 'onnx-cpu',
      reason: expect.stringMatching(/ended the process that tried it \(SIGABRT|134/),
    });
    await expect(createEngine('onnx-webgpu', { threads: 1 })).rejects.toThrow('ended the process that tried it');
  });
});

describe('the choice', () => {
  const engine = (name: string, kind: 'cpu' | 'gpu', gemmRate: number) =>
    ({ name, device: name, kind, gemmRate }) as WorkingEngine;
  const cpu = engine('onnx-cpu', 'cpu', 200e9);

  test.each<[string, WorkingEngine[], string]>([
    ['the fastest GPU', [cpu, engine('onnx-webgpu', 'gpu', 5e12), engine('tensorflow', 'gpu', 9e12)], 'tensorflow'],
    [
      'no engine for checks',
      [cpu, engine('onnx-webgpu', 'gpu', 5e12), engine('onnx-cuda', 'gpu', 9e12)],
      'onnx-webgpu',
    ],
    ['no GPU slower than the CPU', [cpu, engine('onnx-webgpu', 'gpu', 100e9)], 'onnx-cpu'],
    ['no GPU in software, however fast', [cpu, engine('onnx-webgpu', 'cpu', 5e12)], 'onnx-cpu'],
    ['the CPU where nothing else works', [cpu], 'onnx-cpu'],
    ['the default where nothing could be measured', [], 'onnx-cpu'],
  ])('of auto is %s', (_, available, name) => expect(fastest(available).name).toBe(name));

  test('of the default needs no probe', async () => {
    sabotage();
    expect(await chooseEngine('onnx-cpu', 1)).toMatchObject({ name: 'onnx-cpu', kind: 'cpu' });
    expect((await chooseEngine('auto', 1)).name).toBe('onnx-cpu');
  });
});
