/** Every choice a run can be given, checked once at the edge and complete from there on. */
import { availableParallelism, totalmem } from 'node:os';
import { z } from 'zod';
import type { FloatDtype } from '../checkpoint/dtype.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE, type EngineName } from '../engine/create-engine.js';
import { OptionError } from '../errors.js';
import { type Method, type MethodOptions, QUALITY_NAMES } from '../methods/method.js';
import { ACTIVATIONS } from '../methods/mobe/problem.js';
import { DEFAULT_METHOD, METHODS, methodRecord } from '../methods/registry.js';
import { DEFAULT_PROJECTIONS, PROJECTIONS } from '../models/family.js';

export const FORMATS = ['mobe', 'hf'] as const;
export type Format = (typeof FORMATS)[number];
/** `factors`: a file of factors for each group, between `mobe fit` and `mobe export`. */
export type OutputFormat = Format | 'factors';

/** The output holds factors, not weights. */
export const isNative = ({ format }: { readonly format: OutputFormat }): boolean => format === 'mobe';

export const METHOD_NAMES = Object.keys(METHODS) as [string, ...string[]];
/** Of the methods that leave a choice. */
export const SOLVER_NAMES = Object.values(METHODS).flatMap(({ solvers }) => (solvers.length > 1 ? solvers : [])) as [
  string,
  ...string[],
];

export const DTYPE_NAMES = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;

/** transformers' default, decimal as there. */
const DEFAULT_SHARD_BYTES = 5e9;
/** The options that not every method takes. */
const METHOD_OPTIONS = [...new Set(Object.values(METHODS).flatMap(({ options }) => options))];

const positive = z.number().int().positive();

const settingsSchema = z
  .strictObject({
    /** `mobe`: factors under the native names. `hf`: standard weights, rebuilt from the factors. */
    format: z.enum(FORMATS).default('mobe'),
    /** How experts are factorised. */
    method: z.enum(METHOD_NAMES).default(DEFAULT_METHOD.name),
    /** m. Give it or `keep`. */
    bases: positive.optional(),
    /** The share of the converted layers' routed-expert parameters (gate, up and down) to keep; picks m. */
    keep: z.number().gt(0).lt(1).optional(),
    /** r; undefined: the method's choice. */
    rank: positive.optional(),
    activation: z.enum(ACTIVATIONS).optional(),
    projections: z
      .array(z.enum(PROJECTIONS))
      .min(1)
      .default([...DEFAULT_PROJECTIONS]),
    /** Parts into which a layer's experts are cut, in order, each with its share of the bases. */
    groups: positive.optional(),
    /** Layers to convert; undefined: all that have routed experts. */
    layers: z.array(z.number().int().nonnegative()).optional(),
    /** Of the factors (and of rebuilt weights); undefined: the experts' own. */
    dtype: z.enum(['float32', 'float16', 'bfloat16']).optional(),
    /** Quantised tensors pass through as they are, but for the experts of converted layers; else all are decoded. */
    keepQuantized: z.boolean().default(false),
    solver: z.enum(SOLVER_NAMES).optional(),
    /** The time a fit may take. */
    quality: z.enum(QUALITY_NAMES).optional(),
    /** Most steps a group; undefined: what the quality stands for. varpro ends earlier where nothing is left to gain. */
    steps: positive.optional(),
    learningRate: z.number().positive().optional(),
    /** Groups with a larger relative error are kept uncompressed. */
    maxError: z.number().positive().optional(),
    /** Undefined: as many as keep a step's working set near 128 MiB. */
    batchExperts: positive.optional(),
    /** `auto`: the fastest that works here. */
    engine: z.enum(ENGINE_CHOICES).default(DEFAULT_ENGINE),
    threads: positive.max(1024).default(() => availableParallelism()),
    seed: z.number().int().nonnegative().default(0),
    /** Peak resident memory, bytes. */
    maxMemory: positive.default(() => Math.floor(0.8 * totalmem())),
    /** Most tensor bytes in one output shard. */
    shardSize: positive.default(DEFAULT_SHARD_BYTES),
  })
  .refine(({ bases, keep }) => bases === undefined || keep === undefined, {
    path: ['bases'],
    message: 'give either the number of bases or the share to keep, not both',
  })
  .transform((settings) => ({
    ...settings,
    ...chosenMethod(settings).complete(settings),
    projections: PROJECTIONS.filter((projection) => settings.projections.includes(projection)),
  }));

/** Throws `OptionError` for options that the method does not take. */
function chosenMethod({
  method: name,
  solver,
  ...given
}: MethodOptions & { method: string; solver?: string | undefined }): Method {
  const method = METHODS[name] as Method;
  for (const option of METHOD_OPTIONS) {
    if (given[option] === undefined || method.options.includes(option)) continue;
    const taken = method.options.map(flagName).join(', ');
    throw new OptionError(flagName(option), `--method ${name} has no use for it; what it takes is ${taken}`);
  }
  if (solver !== undefined && !method.solvers.includes(solver))
    throw new OptionError(
      '--solver',
      `--method ${name} is not solved by ${solver}, but by ${method.solvers.join(', ')}`,
    );
  return method;
}

/** Of weights that are decoded without being factorised: quantised checkpoints were made from bf16. */
export const decodedDtype = ({ dtype }: { dtype?: unknown }): FloatDtype =>
  DTYPE_NAMES[dtype as keyof typeof DTYPE_NAMES] ?? 'BF16';

/** What a caller may give; everything has a default. */
export type CompressOptions = z.input<typeof settingsSchema>;

/** Checked and complete. */
export type Settings = z.output<typeof settingsSchema>;

/** With the engine that was settled on. */
export type RunSettings = Settings & { readonly engine: EngineName };

/** Throws `OptionError` naming the option that is wrong. */
export const resolveSettings = (options: CompressOptions = {}): Settings => parseOptions(settingsSchema, options);

/** Throws `OptionError` naming the option that is wrong. */
export function parseOptions<Output>(schema: z.ZodType<Output>, options: unknown): Output {
  const result = schema.safeParse(options);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new OptionError(flagName(String(issue?.path[0] ?? 'options')), issue?.message ?? 'invalid');
}

/** maxMemory → --max-memory */
const flagName = (key: string): string => `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/**
 * What decides the bytes of the result: two runs on the same source that agree in these write the same files.
 * Where the memory goes and how the shards are cut is left out only where it cannot show.
 */
export function resultSettings(settings: RunSettings): Record<string, unknown> {
  const { format, method, bases, keep, groups, rank, activation, projections, layers, dtype, keepQuantized } = settings;
  const { solver, steps, learningRate, maxError, batchExperts, engine, seed, shardSize } = settings;
  const what = {
    format,
    ...methodRecord(METHODS[method] as Method),
    bases,
    keep,
    groups,
    rank,
    activation,
    projections,
    layers,
    dtype,
    keepQuantized,
  };
  return JSON.parse(
    JSON.stringify({ ...what, solver, steps, learningRate, maxError, batchExperts, engine, seed, shardSize }),
  );
}
