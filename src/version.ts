import { createRequire } from 'node:module';

/** The version of this package. The path to package.json is relative to the compiled file in dist/src/. */
export const VERSION: string = createRequire(import.meta.url)('../../package.json').version;
