import { defineConfig } from 'vitest/config';

/** One plain line at the end, for whatever reads a log without knowing the runner. */
const closingLine = {
  onTestRunEnd(modules) {
    const states = modules.flatMap((module) => [...module.children.allTests()].map((test) => test.result().state));
    const count = (state) => states.filter((it) => it === state).length;
    console.log(`${count('passed')} passed, ${count('failed')} failed, ${count('skipped')} skipped`);
  },
};

// The compiled files are tested: they are what ships, and worker threads need them anyway.
export default defineConfig({
  test: {
    include: ['dist/**/*.test.js'],
    exclude: ['**/node_modules/**'],
    reporters: ['default', closingLine],
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
