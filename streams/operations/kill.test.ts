/** `npm run test:kill` does this at length. */
import { expect, test } from 'vitest';
import { killRuns } from '../../fixtures/kill-runs.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';

const root = temporaryFolder();

test.skipIf(process.platform === 'win32')(
  'killed at random moments and run again, every conversion ends with the bytes of one in peace',
  { ...THOROUGH, timeout: 120_000 },
  async () => {
    const { kills, problems } = await killRuns(root, 8, 7);
    expect(problems).toEqual([]);
    expect(kills).toBeGreaterThan(5);
  },
);
