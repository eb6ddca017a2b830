import { defineConfig } from 'vitest/config';

// The compiled files are tested: they are what ships, and worker threads need them anyway.
export default defineConfig({
  test: {
    include: ['dist/**/*.test.js'],
    exclude: ['**/node_modules/**'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
