import { defineConfig } from 'vitest/config';

const THOROUGH = 'thorough';

/** One plain line at the end, for whatever reads a log without knowing the runner. What a tag leaves out is not counted. */
const closingLine = {
  onTestRunEnd(modules) {
    const [filter] = modules[0]?.project.config.tagsFilter ?? [];
    const leftOut = (test) => filter !== undefined && test.tags.includes(THOROUGH) !== (filter === THOROUGH);
    const tests = modules.flatMap((module) => [...module.children.allTests()]).filter((test) => !leftOut(test));
    const count = (state) => tests.filter((test) => test.result().state === state).length;
    console.log(`${count('passed')} passed, ${count('failed')} failed, ${count('skipped')} skipped`);
  },
};

// The compiled files are tested: they are what ships, and worker threads need them anyway.
export default defineConfig({
  test: {
    include: ['dist/**/*.test.js'],
    exclude: ['**/node_modules/**'],
    tags: [{ name: THOROUGH, description: 'Slow because it is thorough: npm run test:full' }],
    maxWorkers: 2,
    server: { deps: { external: [/\/dist\/(?!.*\.test\.js$)/] } },
    reporters: ['default', closingLine],
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
