import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { CLI, ROOT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { PAGE_FILE } from '../checkpoint/side-files.js';
import { COMMANDS } from './commands.js';

const root = temporaryFolder();

interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

const mobe = (...args: string[]): Promise<Outcome> =>
  new Promise((resolve) => {
    execFile(process.execPath, [CLI, ...args], { cwd: root, maxBuffer: 2 ** 26 }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    );
  });

describe('help', () => {
  test('of the program names every command and the exit codes', async () => {
    const { code, stdout } = await mobe('--help');
    expect(code).toBe(0);
    for (const { name, args } of COMMANDS) expect(stdout).toContain(`  ${name} [options] ${args}`.trimEnd());
    expect(stdout).toContain('Exit codes');
  });
  test.each(COMMANDS)('of $name says what it does and offers --json', async ({ name, args, summary }) => {
    const { code, stdout } = await mobe(name, '--help');
    expect(code).toBe(0);
    expect(stdout).toContain(`Usage: mobe ${name} [options] ${args}`.trimEnd());
    expect(stdout.replace(/\s+/g, ' ')).toContain(summary);
    expect(stdout).toContain('--json');
  });
  test('of a command is the same after "help" as before "--help"', async () => {
    expect(await mobe('help', 'verify')).toEqual(await mobe('verify', '--help'));
  });
  test('the version is the package version', async () => {
    const { version } = JSON.parse(readFileSync(join(CLI, '../../../../package.json'), 'utf8'));
    expect((await mobe('--version')).stdout.trim()).toBe(version);
  });
});

describe('wrong use exits with 2, says why on stderr and nothing on stdout:', () => {
  test.each<[string[], string]>([
    [[], 'Usage'],
    [['squeeze'], 'unknown command'],
    [['compress', TINY_MODEL], 'out'],
    [['compress', TINY_MODEL, 'x', '--stepz', '3'], 'unknown option'],
    [['compress', TINY_MODEL, 'x', '--steps', '0'], 'above 0'],
    [['compress', TINY_MODEL, 'x', '--bases', '4', '--keep', '0.7'], 'cannot be used with'],
    [['compress', TINY_MODEL, 'x', '--keep', '76'], 'between 0 and 1'],
    [['compress', TINY_MODEL, 'x', '--layers', '3-1'], 'range'],
    [['compress', TINY_MODEL, 'x', '--layers', '9'], '0-3'],
    [['compress', TINY_MODEL, 'x', '--projections', 'gate_proj,middle_proj'], 'down_proj'],
    [['compress', TINY_MODEL, 'x', '--max-memory', 'plenty'], 'size'],
    [['compress', TINY_MODEL, 'x', '--max-memory', '100MB'], 'smallest that works'],
    [['compress', TINY_MODEL, 'x', '--activation', 'swish'], 'silu, tanh, gelu, relu, sigmoid, none'],
    [['compress', TINY_MODEL, 'x', '--method', 'quantise', '--width', '3'], 'Expected 4 or 8'],
    [['compress', TINY_MODEL, 'x', '--method', 'quantise', '--format', 'mobe'], 'Use --format hf'],
    [['fit', TINY_MODEL, 'x', '--shard', '8/8'], '0/8 to 7/8'],
    [['compress', 'nowhere', 'x'], 'no such folder'],
    [['compress', TINY_MODEL, 'x', '--engine', 'abacus'], 'auto, onnx-cpu'],
    [['inspect', 'nowhere'], 'no such folder'],
    [['bench', 'nowhere'], 'no such folder'],
    [['verify', TINY_MODEL, TINY_MODEL], 'mobe.json'],
    [['report', TINY_MODEL], 'mobe.json'],
    [['compress', TINY_MODEL, '-', '--report'], 'must be a local folder'],
    [['export', TINY_MODEL, 'nowhere', 'x'], 'no such folder'],
    [['expand', TINY_MODEL, 'x'], 'not a native'],
    [['generate', TINY_MODEL], '--prompt'],
    [['generate', TINY_MODEL, '--prompt', ''], 'it is empty'],
    [['generate', TINY_MODEL, '--prompt', 'x', '--max-memory', '150MB'], 'smallest that works'],
    [['generate', TINY_MODEL, '--prompt', 'x', '--top-p', 'most'], 'Expected a number'],
    [['calibrate', TINY_MODEL, 'x'], 'at least one file, or --from-model'],
    [['calibrate', TINY_MODEL, 'x', '--text', 'nowhere.txt'], 'cannot be read'],
    [['calibrate', TINY_MODEL, 'x', '--text', CLI, '--max-memory', '150MB'], 'smallest that works'],
    [['eval', TINY_MODEL], '--text'],
    [['eval', TINY_MODEL, '--text', 'nowhere.txt'], 'cannot be read'],
    [['eval', TINY_MODEL, '--text', join(TINY_MODEL, 'model-00001-of-00003.safetensors')], 'not UTF-8'],
    [['compress', TINY_MODEL, 'x', '--ca', 'nowhere.pem'], '--ca: nowhere.pem cannot be read'],
    [['serve', TINY_MODEL, '--listen', '127.0.0.1:0', '--tls-cert', 'nowhere.pem'], '--tls-cert: nowhere.pem cannot'],
    [['serve', TINY_MODEL, '--listen', '127.0.0.1:0', '--tls-cert', CLI], 'go together'],
    [['compress', TINY_MODEL, 'x', '--precision', 'tf32'], 'onnx-cpu on'],
    [['worker', '--listen', '127.0.0.1:0', '--precision', 'tf32'], 'multiplies in f32 alone'],
    [['engines', '--link-tensorflow', TINY_MODEL], 'has no libtensorflow_cc.so.2'],
  ])('%j', async (args, words) => {
    const { code, stdout, stderr } = await mobe(...args);
    expect(stderr).toContain(words);
    expect(stdout).toBe('');
    expect(code).toBe(2);
    expect(existsSync(join(root, 'x'))).toBe(false);
  });
});

test('inspect prints a table, or JSON', async () => {
  const { code, stdout } = await mobe('inspect', TINY_MODEL);
  expect(code).toBe(0);
  for (const words of ['Qwen3-MoE', '32 of 64 × 192', 'routed experts: gate_proj', 'BF16', '5.24 M'])
    expect(stdout).toContain(words);
  expect(JSON.parse((await mobe('inspect', TINY_MODEL, '--json')).stdout)).toMatchObject({
    family: 'Qwen3-MoE',
    expertsPerLayer: 32,
  });
});

test('plan prints sizes, memory, disk and time, or JSON', async () => {
  const { stdout } = await mobe('plan', TINY_MODEL, '--bases', '8');
  for (const words of ['5.24 M → 3.93 M', 'memory', 'disk', 'time', '8 groups']) expect(stdout).toContain(words);
  const json = JSON.parse((await mobe('plan', TINY_MODEL, '--bases', '8', '--json')).stdout);
  expect(json).toMatchObject({ parametersBefore: 5_239_744, parametersAfter: 3_931_072, settings: { bases: 8 } });
  expect(json.estimatedSeconds).toBeGreaterThan(0);
});

describe('serving', () => {
  test('says how to install and use the plugin; --path prints its folder alone, a Python package', async () => {
    const { code, stdout } = await mobe('serving');
    expect(code).toBe(0);
    for (const words of ['pip install "$(npx mobe serving --path)"', 'vllm serve', 'curl'])
      expect(stdout).toContain(words);
    const path = (await mobe('serving', '--path')).stdout.trimEnd();
    expect(stdout).toContain(path);
    expect(JSON.parse((await mobe('serving', '--json')).stdout)).toEqual({ path });
    expect(readFileSync(join(path, 'pyproject.toml'), 'utf8')).toContain('vllm.general_plugins');
  });

  test('the npm package has all files of the plugin, and no others', THOROUGH, () => {
    const args = ['pack', '--dry-run', '--ignore-scripts', '--json'];
    const [packed] = JSON.parse(execFileSync('npm', args, { cwd: ROOT, encoding: 'utf8' }));
    const folder = 'src/serving/vllm/';
    const files: string[] = packed.files.map(({ path }: { path: string }) => path);
    const modules = readdirSync(join(ROOT, folder, 'mobe_vllm')).filter((file) => file.endsWith('.py'));
    expect(files.filter((path) => path.startsWith(folder)).sort()).toEqual(
      [...modules.map((file) => `${folder}mobe_vllm/${file}`), `${folder}pyproject.toml`].sort(),
    );
  });
});

test('engines lists what works and what does not, with a remedy, or JSON', THOROUGH, async () => {
  const { code, stdout } = await mobe('engines', '--threads', '1');
  expect(code).toBe(0);
  for (const words of [
    /onnx-cpu +CPU .* GFLOP\/s/,
    'onnx-webgpu',
    'onnx-cuda',
    'tensorflow',
    '--engine auto would take ',
  ])
    expect(stdout).toMatch(words);
  const { engines, auto } = JSON.parse((await mobe('engines', '--threads', '1', '--json')).stdout);
  expect(engines.map(({ name }: { name: string }) => name)).toContain(auto);
  expect(engines[0]).toMatchObject({ name: 'onnx-cpu', works: true, kind: 'cpu', device: expect.stringMatching(/\w/) });
  expect(engines[0].gemmRate).toBeGreaterThan(1e8);
  for (const { works, name, reason } of engines) {
    if (works) continue;
    expect(stdout).toContain(reason);
    const refused = await mobe('compress', TINY_MODEL, 'x', '--engine', name);
    expect(refused).toMatchObject({
      code: 2,
      stdout: '',
      stderr: expect.stringContaining(`Engine ${name} cannot be used`),
    });
  }
});

test(
  'a result comes with its page where one is asked for; it can be written, and scored, later too',
  THOROUGH,
  async () => {
    const flags = ['--bases', '8', '--steps', '2', '--layers', '0', '--report', '--json'];
    const { code, stdout, stderr } = await mobe('compress', TINY_MODEL, 'paged', ...flags);
    expect(code).toBe(0);
    expect(stderr).toContain(`${PAGE_FILE} is written.`);
    expect(JSON.parse(stdout).groups).toHaveLength(2);
    expect(readFileSync(join(root, 'paged', PAGE_FILE), 'utf8')).not.toContain('Scores');

    writeFileSync(join(root, 'text'), 'A few words to be scored.\n'.repeat(4));
    const scored = await mobe('report', 'paged', '--text', 'text', '--against', TINY_MODEL);
    expect(scored).toMatchObject({ code: 0, stdout: `${join(root, 'paged', PAGE_FILE)} is written.\n` });
    expect(readFileSync(join(root, 'paged', PAGE_FILE), 'utf8')).toContain('Scores');

    expect((await mobe('report', 'nothing')).code).toBe(2);
    expect((await mobe('report', 'paged', '--text', 'no such text')).stderr).toContain('--text');
    const remote = await mobe('compress', TINY_MODEL, 'ws://localhost:1/', '--report');
    expect(remote).toMatchObject({ code: 2, stderr: expect.stringContaining('--report') });
  },
);

test('compress, verify and export: JSON on stdout, progress on stderr, exit code 0', async () => {
  const flags = ['--bases', '8', '--steps', '5', '--layers', '0-1,3'];
  const { code, stdout, stderr } = await mobe('compress', TINY_MODEL, 'out', ...flags, '--report', '--json');
  expect(code).toBe(0);
  const report = JSON.parse(stdout);
  expect(report.groups).toHaveLength(6);
  expect(Object.keys(report)).toEqual(
    expect.arrayContaining([
      'parametersBefore',
      'parametersAfter',
      'bytesBefore',
      'bytesAfter',
      'peakRssBytes',
      'seconds',
    ]),
  );
  expect(Object.keys(report.groups[0])).toEqual(
    expect.arrayContaining(['layer', 'projection', 'group', 'relativeError', 'mse', 'steps', 'seconds']),
  );
  for (const words of ['solver', 'converting', 'layer 3 up_proj']) expect(stderr).toContain(words);

  const again = await mobe('compress', TINY_MODEL, 'out', ...flags);
  expect(again.code).toBe(0);
  expect(again.stdout).toContain('nothing was done');
  expect((await mobe('compress', TINY_MODEL, 'out', '--bases', '8', '--steps', '16')).code).toBe(2);

  const page = join(root, 'out', 'mobe.report.html');
  expect(readFileSync(page, 'utf8')).toContain('layer 3 up_proj');
  const told = JSON.parse((await mobe('report', 'out', '--json')).stdout);
  expect(told).toEqual({ page, record: JSON.parse(readFileSync(join(root, 'out', 'mobe.json'), 'utf8')) });

  const verified = await mobe('verify', TINY_MODEL, 'out');
  expect(verified.code).toBe(0);
  expect(verified.stdout).toContain('out is right');

  const fit = JSON.parse((await mobe('fit', TINY_MODEL, 'factors', ...flags, '--json')).stdout);
  const errors = (groups: Array<{ relativeError: number }>) => groups.map(({ relativeError }) => relativeError);
  expect(errors(fit.groups)).toEqual(errors(report.groups));
  expect(fit.parametersAfter).toBe(report.parametersAfter);
});

test('a result that is not right makes verify exit with 1 and name it', async () => {
  await mobe('compress', TINY_MODEL, 'bad', '--steps', '5', '--layers', '0');
  writeFileSync(join(root, 'bad', 'tokenizer.json'), '{}');
  const { code, stderr } = await mobe('verify', TINY_MODEL, 'bad');
  expect(code).toBe(1);
  expect(stderr).toContain('tokenizer.json');
});

test('a reader that ends before all is printed is no failure', async () => {
  const child = spawn(process.execPath, [CLI, 'inspect', TINY_MODEL, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] });
  child.stdout.destroy();
  let stderr = '';
  child.stderr.on('data', (text: Buffer) => {
    stderr += text;
  });
  expect(await once(child, 'close')).toEqual([0, null]);
  expect(stderr).toBe('');
});

describe.skipIf(process.platform === 'win32')('interrupted', () => {
  interface Ended {
    code: number | null;
    signal: NodeJS.Signals | null;
    stderr: string;
    seconds: number;
  }
  /** Starts a compression, waits until it fits, sends the signals, and waits for its end. */
  async function interrupt(
    args: string[],
    signals: readonly NodeJS.Signals[],
    meanwhile = async (): Promise<void> => {},
  ): Promise<Ended> {
    const child = spawn(process.execPath, [CLI, 'compress', ...args], {
      cwd: root,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let stderr = '';
    await new Promise<void>((resolve, reject) => {
      child.once('exit', (code) => reject(new Error(`it ended with ${code}: ${stderr}`)));
      child.stderr.on('data', (text: Buffer) => {
        stderr += text;
        if (String(text).includes('converting')) setTimeout(resolve, 1500);
      });
    });
    await meanwhile();
    const began = performance.now();
    const ended = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
    for (const signal of signals) {
      child.kill(signal);
      await delay(100);
    }
    const [code, signal] = await ended;
    return { code, signal, stderr, seconds: (performance.now() - began) / 1000 };
  }
  const LONG = ['--steps', '100000'];

  const bySignal = thoroughBut('SIGINT');
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    test(
      `by ${signal} it stops within 2 s, exits with 130, leaves nothing that looks whole and says how to go on`,
      bySignal(signal),
      async () => {
        const { code, stderr, seconds } = await interrupt([TINY_MODEL, signal, ...LONG], [signal]);
        expect(code).toBe(130);
        expect(seconds).toBeLessThan(2);
        expect(stderr).toContain(`kept in ${signal}`);
        expect(stderr).toContain('run the same command again');
        expect(readdirSync(join(root, signal))).toEqual(['.mobe-partial']);
        expect((await mobe('inspect', signal)).code).toBe(2);
        const other = await mobe('compress', TINY_MODEL, signal, '--steps', '2');
        expect(other).toMatchObject({ code: 2, stderr: expect.stringContaining('steps 100000, now 2') });
        expect((await mobe('compress', TINY_MODEL, signal, '--steps', '2', '--force')).code).toBe(0);
      },
    );

  describe('in a step that takes longer than that', () => {
    beforeAll(() => generateCheckpoint(join(root, 'large'), { layers: 1, experts: 8, rows: 1024, cols: 2048 }));
    const args = (out: string): string[] => [
      'large',
      out,
      '--threads',
      '1',
      '--batch-experts',
      '8',
      '--bases',
      '2',
      '--projections',
      'gate_proj',
    ];

    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      test(`by ${signal} it ends within 2 s all the same, and can go on`, THOROUGH, async () => {
        const out = `large-${signal}`;
        const ended = await interrupt(args(out), [signal]);
        expect(ended.seconds).toBeLessThan(2);
        expect([ended.code, ended.signal]).toEqual([null, signal]); // proves that the process was inside a step
        expect(ended.stderr).toContain('Run the same command again');
        const { seconds, stderr } = await interrupt(args(out), [signal]);
        expect(stderr).toContain('checking what is finished');
        expect(seconds).toBeLessThan(2);
      });

    test('asked twice, it ends at once', THOROUGH, async () => {
      const { code, signal, seconds } = await interrupt(args('large-twice'), ['SIGINT', 'SIGINT']);
      expect([code, signal]).toEqual([null, 'SIGINT']);
      expect(seconds).toBeLessThan(1);
    });
  });

  test(
    'killed outright it leaves nothing that looks whole; another run says so, and starts over by force',
    THOROUGH,
    async () => {
      const { signal } = await interrupt([TINY_MODEL, 'killed', ...LONG], ['SIGKILL']);
      expect(signal).toBe('SIGKILL');
      expect((await mobe('inspect', 'killed')).code).toBe(2);
      expect((await mobe('compress', TINY_MODEL, 'killed', '--steps', '2')).code).toBe(2);
      expect((await mobe('compress', TINY_MODEL, 'killed', '--steps', '2', '--force')).code).toBe(0);
      expect((await mobe('verify', TINY_MODEL, 'killed')).code).toBe(0);
    },
  );

  test('two at once: the second says who has the folder, and the first goes on', THOROUGH, async () => {
    const { code: first } = await interrupt([TINY_MODEL, 'shared', ...LONG], ['SIGINT'], async () => {
      for (const command of ['compress', 'fit']) {
        const { code, stderr } = await mobe(command, TINY_MODEL, 'shared', '--steps', '2', '--force');
        expect(stderr).toContain('is being written by process');
        expect(code).toBe(2);
      }
    });
    expect(first).toBe(130);
  });
});
