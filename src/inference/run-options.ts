/** Options for running a model, checked once. Settings are options with their defaults. */
import { availableParallelism, totalmem } from 'node:os';
import { z } from 'zod';
import { parseOptions } from '../conversion/settings.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import type { Source } from '../sources/open-source.js';

const positive = z.number().int().positive();

const running = {
  engine: z.enum(ENGINE_CHOICES).default(DEFAULT_ENGINE),
  /** Default: all cores, or one if the model is too small to keep more busy. */
  threads: positive.max(1024).optional(),
  /** Peak resident memory, bytes. */
  maxMemory: positive.default(() => Math.floor(0.8 * totalmem())),
  /** Replaces the config's number. The paper's MoBE† runs fewer. */
  expertsPerToken: positive.optional(),
};

const generating = z.strictObject({
  ...running,
  maxNewTokens: positive.default(256),
  /** 0 means always the most likely token. */
  temperature: z.number().nonnegative().default(0),
  topP: z.number().gt(0).max(1).default(1),
  seed: z.number().int().nonnegative().default(0),
});

const { expertsPerToken: _, ...computing } = running;
const calibrating = z.strictObject({
  ...computing,
  /** Files of text. */
  text: z.array(z.string()).default([]),
  /** The model itself writes the text, by its own probabilities. */
  fromModel: z.boolean().default(false),
  /** Default: as many as give each expert 5·d of them on average, or all that the texts have. */
  tokens: positive.optional(),
  /** Tokens of a sequence. Default: the model's context, but at most `USUAL_WINDOW`. */
  sequenceLength: z.number().int().min(2, 'a sequence has at least 2 tokens').optional(),
  seed: z.number().int().nonnegative().default(0),
});

const isSource = (it: unknown): boolean =>
  typeof it === 'string' || (typeof it === 'object' && it !== null && 'folder' in it && 'files' in it);

const evaluating = z.strictObject({
  ...running,
  /** Tokens of a window. Default: the model's context, but at most `USUAL_WINDOW`. */
  window: z.number().int().min(2).optional(),
  /** The model that the others are compared with: a location, or an object. */
  against: z.custom<Source>(isSource, 'expected a location, or a folder with its files').optional(),
});

/** Options of `generate`. */
export type GenerateOptions = z.input<typeof generating>;
/** Options of `calibrate`. */
export type CalibrateOptions = z.input<typeof calibrating>;
/** Options of `evaluate`. */
export type EvaluateOptions = z.input<typeof evaluating>;
/** `GenerateOptions` with their defaults. */
export type GenerateSettings = z.output<typeof generating>;
/** `CalibrateOptions` with their defaults. */
export type CalibrateSettings = z.output<typeof calibrating>;
/** `EvaluateOptions` with their defaults. */
export type EvaluateSettings = z.output<typeof evaluating>;

/** Adds defaults. Throws an `OptionError`. */
export const generateSettings = (options: GenerateOptions): GenerateSettings => parseOptions(generating, options);
/** Adds defaults. Throws an `OptionError`. */
export const evaluateSettings = (options: EvaluateOptions): EvaluateSettings => parseOptions(evaluating, options);

/** Adds defaults. Throws an `OptionError`. */
export const calibrateSettings = (options: CalibrateOptions): CalibrateSettings => parseOptions(calibrating, options);

/** A product for one token with fewer multiply-adds than this keeps only one core busy. */
const SMALL_PRODUCT = 2 ** 20;

/** Number of threads for a model. In small models threads would wait for each other longer than they work. */
export const usefulThreads = (threads: number | undefined, width: number): number =>
  threads ?? (width * width < SMALL_PRODUCT ? 1 : availableParallelism());
