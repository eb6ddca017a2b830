import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { temporaryFolder } from '../../../fixtures/temporary-folder.js';
import {
  CompilationError,
  CompilerMissingError,
  LinkedTensorflowError,
  NotATensorflowWheelError,
  UnsupportedPlatformError,
} from '../../errors.js';
import { linkTensorflow } from './link-tensorflow.js';

const root = temporaryFolder();
const wheel = join(root, 'site-packages, all', 'tensorflow'); // neither blanks nor commas are special
const tfjs = join(root, 'tfjs-node-gpu');
const addon = join(tfjs, 'lib/napi-v8/tfjs_binding.node');
const calls = join(root, 'calls');
for (const file of ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2', 'include/tensorflow/c/c_api.h']) {
  mkdirSync(dirname(join(wheel, file)), { recursive: true });
  writeFileSync(join(wheel, file), '');
}

/** A fake compiler. It writes its arguments to a file, one a line, then runs the given script. */
function compiler(name: string, script: string): string {
  const file = join(root, name);
  writeFileSync(
    file,
    `#!/bin/sh\ncase "$*" in *--version) exit 0 ;; esac\nprintf '%s\\n' "$@" >'${calls}'\n${script}\n`,
  );
  chmodSync(file, 0o755);
  return file;
}
/** Writes a file that is not a library to the output path, which is the last argument. */
const succeeding = compiler('succeeding', `for out; do :; done\necho 'no library' >"$out"`);
const failing = compiler('failing', `echo 'c_api.h:1: error: nonsense' >&2\nexit 1`);

const link = () => linkTensorflow(wheel, () => {}, tfjs);

afterEach(() => vi.unstubAllEnvs());

const { platform } = process;
beforeEach(() => Object.defineProperty(process, 'platform', { value: 'linux' }));
afterAll(() => Object.defineProperty(process, 'platform', { value: platform }));

describe.skipIf(platform === 'win32')('linking', () => {
  test.each([
    ['an empty folder', root, 'libtensorflow_cc.so.2'],
    ['no folder', join(root, 'nowhere'), 'libtensorflow_cc.so.2'],
  ])('refuses %s', async (_, folder, missing) => {
    const attempt = linkTensorflow(folder, () => {}, tfjs);
    await expect(attempt).rejects.toThrow(NotATensorflowWheelError);
    await expect(attempt).rejects.toThrow(missing);
  });

  test('says how to get a compiler where there is none', async () => {
    vi.stubEnv('CXX', 'no-such-compiler');
    await expect(link()).rejects.toThrow(CompilerMissingError);
    await expect(link()).rejects.toThrow('apt install g++');
  });

  test('shows what the compiler complains about, and leaves the addon that was there', async () => {
    mkdirSync(dirname(addon), { recursive: true });
    writeFileSync(addon, 'earlier');
    vi.stubEnv('CXX', failing);
    await expect(link()).rejects.toThrow(CompilationError);
    await expect(link()).rejects.toThrow('c_api.h:1: error: nonsense');
    expect(readFileSync(addon, 'utf8')).toBe('earlier');
    expect(existsSync(`${addon}.partial`)).toBe(false);
  });

  test('compiles against the libraries where they are; CXX may hold arguments', async () => {
    vi.stubEnv('CXX', `${succeeding} -m64`);
    // The file that this compiler makes does not load. Neither does the package's own addon if it is missing.
    await link().catch((error) => expect(error).toBeInstanceOf(LinkedTensorflowError));
    expect(readFileSync(addon, 'utf8')).toBe('no library\n');
    const args = readFileSync(calls, 'utf8').trim().split('\n');
    expect(args[0]).toBe('-m64');
    expect(args).toEqual(
      expect.arrayContaining([
        `-I${join(wheel, 'include')}`,
        join(tfjs, 'binding/tfjs_backend.cc'),
        join(wheel, 'libtensorflow_cc.so.2'),
        wheel,
      ]),
    );
    expect(args.slice(args.indexOf(wheel) - 3, args.indexOf(wheel))).toEqual(['-Xlinker', '-rpath', '-Xlinker']);
    const headers = args.find((arg) => arg.endsWith('node-api-headers/include'));
    expect(existsSync(join(headers?.slice(2) ?? '', 'node_api.h'))).toBe(true);
  });

  test('is for Linux', async () => {
    Object.defineProperty(process, 'platform', { value: 'darwin' });
    await expect(link()).rejects.toThrow(UnsupportedPlatformError);
  });
});
