import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { isFitted, isKept } from '../../src/conversion/run-report.js';
import { DroppedGroupError } from '../../src/errors.js';
import type { OwnStage } from '../flow/own-stage.js';
import type { NormalisedGroup } from '../records.js';
import { compress } from './compress.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (name: string): string => join(root, name);
const model = at('model');
const QUICK = { bases: 3, steps: 2, threads: 1 } as const;

beforeAll(() => generateFamily(model, 'qwen3_moe', { sizes: { layers: 2 } }));

const withoutUp: OwnStage<NormalisedGroup> = async function* (groups) {
  for await (const it of groups) if (it.group.layer !== 1 || it.group.projection !== 'up_proj') yield it;
};

describe('a stage that drops a group:', () => {
  test('standard weights keep the dropped ones, and the record says why', async () => {
    const { groups, warnings } = await compress(model, at('hf'), { ...QUICK, format: 'hf' }, { ownStage: withoutUp });
    expect(groups.filter(isFitted)).toHaveLength(3);
    expect(groups.filter(isKept)).toMatchObject([{ layer: 1, projection: 'up_proj', dropped: true }]);
    expect(warnings?.join('\n')).toContain(
      "layer 1 up_proj was kept uncompressed: a stage of the program's own dropped it.",
    );
    expect((await verify(model, at('hf'), { threads: 1 })).problems).toEqual([]);
  });

  test('one that stops reading drops the rest', async () => {
    const first: OwnStage<NormalisedGroup> = async function* (groups) {
      for await (const it of groups) {
        yield it;
        return;
      }
    };
    const { groups } = await compress(model, at('first'), { ...QUICK, format: 'hf' }, { ownStage: first });
    expect([groups.filter(isFitted).length, groups.filter(isKept).length]).toEqual([1, 3]);
    expect((await verify(model, at('first'), { threads: 1 })).problems).toEqual([]);
  });

  test.each([
    ['a native checkpoint', compress, 'native'],
    ['factor files', fitFactors, 'factors'],
  ])('%s has no place for weights: an error, after which the run goes on without the stage', async (_, run, name) => {
    const refused = await run(model, at(name), QUICK, { ownStage: withoutUp }).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(DroppedGroupError);
    expect(refused).toMatchObject({ group: 'layer 1 up_proj', kept: at(name) });
    const fitted: unknown[] = [];
    await run(model, at(name), QUICK, { onProgress: (it) => it.kind === 'group' && fitted.push(it.report) });
    expect(fitted).toMatchObject([{ layer: 1, projection: 'up_proj' }]);
    await run(model, at(`${name} at once`), QUICK);
    expect(differingFiles(at(name), at(`${name} at once`))).toEqual([]);
  });

  test('export takes the factors that the interrupted fit has left', async () => {
    await expect(fitFactors(model, at('three'), QUICK, { ownStage: withoutUp })).rejects.toThrow(DroppedGroupError);
    const { groups } = await exportFactors(model, at('three'), at('exported'), { format: 'hf', threads: 1 });
    expect(groups.filter(isFitted)).toHaveLength(3);
    expect(differingFiles(at('exported'), at('hf'))).toEqual([]);
  });
});
