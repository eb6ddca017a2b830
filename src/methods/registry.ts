/** The factorisation methods: one line each. */
import type { Method } from './method.js';
import { mobe } from './mobe/mobe.js';

/** By the name that `--method` and records have for them. */
export const METHODS: Readonly<Record<string, Method>> = { mobe };
