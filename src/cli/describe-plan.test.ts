import { expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { planCompression } from '../conversion/compression-plan.js';
import type { CompressOptions } from '../conversion/settings.js';
import { formatBytes } from '../format.js';
import { describePlan } from './describe-plan.js';

const plan = async (options: CompressOptions) => ({
  ...(await planCompression(await openCheckpoint(TINY_MODEL), { bases: 8, threads: 1, ...options })),
  estimatedSeconds: 1,
});

test('says what memory is for, as far as there is any', async () => {
  const planned = await plan({});
  const text = describePlan(planned);
  expect(text).toContain(`${formatBytes(planned.memory.terms.state)}  the solver's state`);
  expect(text).toContain('tensors that are copied');
  expect(text).not.toContain('connections');
});

test('says where weights are read twice', async () => {
  const held = await plan({ groups: 4, batchExperts: 1 });
  expect(describePlan(held)).not.toContain('twice');
  const least = await plan({ groups: 4, batchExperts: 1, maxMemory: held.memory.expectedBytes - 1 });
  expect(least.memory.holdParts).toBe(false);
  expect(describePlan(least)).toContain('read twice');
});
