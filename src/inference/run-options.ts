/** What running a model can be told, checked once at the edge and complete from there on. */
import { availableParallelism, totalmem } from 'node:os';
import { z } from 'zod';
import { parseOptions } from '../conversion/settings.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import type { Source } from '../sources/open-source.js';

const positive = z.number().int().positive();

const running = {
  engine: z.enum(ENGINE_CHOICES).default(DEFAULT_ENGINE),
  /** Undefined: all, or one where the model is too small to fill more. */
  threads: positive.max(1024).optional(),
  /** Peak resident memory, bytes. */
  maxMemory: positive.default(() => Math.floor(0.8 * totalmem())),
  /** Instead of the config's: the paper's MoBE† runs fewer. */
  expertsPerToken: positive.optional(),
};

const generating = z.strictObject({
  ...running,
  maxNewTokens: positive.default(256),
  /** 0: always the most likely token. */
  temperature: z.number().nonnegative().default(0),
  topP: z.number().gt(0).max(1).default(1),
  seed: z.number().int().nonnegative().default(0),
});

const isSource = (it: unknown): boolean =>
  typeof it === 'string' || (typeof it === 'object' && it !== null && 'folder' in it && 'files' in it);

const evaluating = z.strictObject({
  ...running,
  /** Tokens of a window; undefined: the model's context, but no more than `USUAL_WINDOW`. */
  window: z.number().int().min(2).optional(),
  /** The model that the others are compared with: a location, or an object. */
  against: z.custom<Source>(isSource, 'expected a location, or a folder with its files').optional(),
});

export type GenerateOptions = z.input<typeof generating>;
export type EvaluateOptions = z.input<typeof evaluating>;
export type GenerateSettings = z.output<typeof generating>;
export type EvaluateSettings = z.output<typeof evaluating>;

export const generateSettings = (options: GenerateOptions): GenerateSettings => parseOptions(generating, options);
export const evaluateSettings = (options: EvaluateOptions): EvaluateSettings => parseOptions(evaluating, options);

/** Below this many multiply-adds a product of one token does not fill more than one core. */
const SMALL_PRODUCT = 2 ** 20;

/** Threads for a model: waiting for each other would take small ones longer than the work. */
export const usefulThreads = (threads: number | undefined, width: number): number =>
  threads ?? (width * width < SMALL_PRODUCT ? 1 : availableParallelism());
