/** On the native library where the package loads; fixtures/interop/run.sh sees to it that it does somewhere. */
import { describe, expect, test } from 'vitest';
import { testEngine } from '../../fixtures/engine-suite.js';
import { EngineUnavailableError } from '../errors.js';
import { createEngine } from './create-engine.js';
import type { Engine } from './engine.js';

const started: Engine | Error = await createEngine('tensorflow', { threads: 1 }).catch((error: Error) => error);

if (started instanceof Error) {
  describe("on TensorFlow's native library", () => {
    console.warn(`TensorFlow's native library is not tested here: ${started.message}`);
    test.skip('every operation, and 20 steps of varpro', () => {});
  });
  test('what cannot be used is told with its remedy', () => {
    expect(process.env.MOBE_TEST_TENSORFLOW, started.message).toBeUndefined();
    expect(started).toBeInstanceOf(EngineUnavailableError);
    expect(started.message).toMatch(/npm install .*tfjs-node-gpu|mobe engines --link-tensorflow/);
  });
} else {
  describe(`on ${started.device}`, () => {
    testEngine(started);
    test('the device is named, with the version of TensorFlow', () => {
      expect(started.device).toMatch(/^\S.* \(TensorFlow \d+\.\d+/);
      expect(['cpu', 'gpu']).toContain(started.kind);
    });
  });
}
