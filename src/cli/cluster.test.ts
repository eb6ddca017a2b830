/** Runs the commands of the examples in docs/cluster.md as a cluster would. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { CLI, ROOT } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { isFactorFile } from '../conversion/factor-files.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const page = readFileSync(`${ROOT}docs/cluster.md`, 'utf8');
const block = (language: string): string => new RegExp(`\`\`\`${language}\n(.*?)\`\`\``, 's').exec(page)?.[1] ?? '';

beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 3, experts: 4, rows: 16, cols: 64, shardBytes: 6000 });
  writeFileSync(at('mobe'), `#!/bin/sh\nexec "${process.execPath}" "${CLI}" "$@"\n`, { mode: 0o755 });
  await promisify(execFile)(at('mobe'), ['fit', at('model'), at('whole'), '--threads', '2']);
});

const run = (command: readonly string[], variables: Record<string, string>) =>
  promisify(execFile)(command[0] as string, command.slice(1), {
    env: { ...process.env, ...variables, MODEL: at('model'), PATH: `${root}${delimiter}${process.env.PATH}` },
  });

const factors = (folder: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(folder)
      .filter(isFactorFile)
      .map((name) => [name, readFileSync(join(folder, name), 'latin1')]),
  );

const indexes = [0, 1, 2, 3];

describe('the example', () => {
  test('for Slurm: tasks of the array fill the folder, and an export assembles it', async () => {
    const script = block('bash');
    expect(script).toContain('#SBATCH --array=0-3');
    const cpus = /--cpus-per-task=(\d+)/.exec(script)?.[1] ?? '';
    writeFileSync(at('fit.sbatch'), script);
    const task = (index: number) =>
      run(['bash', at('fit.sbatch')], {
        ...{ FACTORS: at('slurm'), SLURM_CPUS_PER_TASK: cpus },
        ...{ SLURM_ARRAY_TASK_ID: String(index), SLURM_ARRAY_TASK_COUNT: '4' },
      });
    await task(2);
    const [, command = ''] = /: `(mobe export [^`]*)`/.exec(page) ?? [];
    const assemble = () => run(['sh', '-c', command], { FACTORS: at('slurm'), OUT: at('out') });
    await expect(assemble()).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('slice 0/4') });
    await Promise.all([0, 1, 3].map(task));
    expect(factors(at('slurm'))).toEqual(factors(at('whole')));
    await assemble();
    expect(readdirSync(at('out'))).toContain('config.json');
  });

  test('for Kubernetes: the indexes of the Job fill the folder', async () => {
    const manifest = block('yaml');
    const command: string[] = JSON.parse(/command: (\[.*\])/.exec(manifest)?.[1] ?? '');
    expect(manifest).toMatch(/completions: 4\n/);
    await Promise.all(
      indexes.map((index) => run(command, { FACTORS: at('kubernetes'), JOB_COMPLETION_INDEX: String(index) })),
    );
    expect(factors(at('kubernetes'))).toEqual(factors(at('whole')));
  });
});
