import { createRequire } from 'node:module';

/** Of this package. The compiled file lies in dist/src/. */
export const VERSION: string = createRequire(import.meta.url)('../../package.json').version;
