/** All settings of a run. They are checked once, here, and are complete afterwards. */
import { availableParallelism, totalmem } from 'node:os';
import { z } from 'zod';
import type { RecordFacts } from '../calibration/record.js';
import type { FloatDtype } from '../checkpoint/dtype.js';
import {
  dtypeNamed,
  FLOAT_NAMES,
  isQuantisedName,
  QUANTISED_NAMES,
  type QuantisedName,
} from '../checkpoint/factor-dtype.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE, type EngineName } from '../engine/create-engine.js';
import { PRECISIONS, type Precision } from '../engine/engine.js';
import { OptionError } from '../errors.js';
import type { StoredDtypes } from '../methods/factor-storage.js';
import { type Method, type MethodOptions, QUALITY_NAMES } from '../methods/method.js';
import { ACTIVATIONS } from '../methods/mobe/problem.js';
import { RIDGES, ridgeFor } from '../methods/mobe/ridge-for.js';
import { DEFAULT_METHOD, METHODS, methodNamed, methodRecord } from '../methods/registry.js';
import { DEFAULT_PROJECTIONS, PROJECTIONS } from '../models/family.js';
import {
  ALLOCATE_CHOICES,
  allocationSchema,
  METRIC_CHOICES,
  REPAIR_CHOICES,
  SENSITIVITY_CHOICES,
} from './allocation.js';
import { checkAllocation, chosenAllocation, limitsBytes } from './allocation-options.js';
import { calibrationRecord, type MetricPlan, type RecordSize } from './metric-record.js';

/** Formats of an output checkpoint: `mobe` has factors, `hf` has standard weights. */
export const FORMATS = ['mobe', 'hf'] as const;
/** Native factors (`mobe`) or standard weights (`hf`). */
export type Format = (typeof FORMATS)[number];
/** A checkpoint format, or `factors`: one file for each group, which `mobe fit` writes and `mobe export` reads. */
export type OutputFormat = Format | 'factors';

/** Whether the output holds rebuilt weights. */
export const holdsWeights = ({ format }: { readonly format: OutputFormat }): boolean => format === 'hf';

/** Whether the output is a native checkpoint, with factors instead of weights. */
export const isNative = ({ format }: { readonly format: OutputFormat }): boolean => format === 'mobe';

/** The dtypes that factors can have. */
export const DTYPE_NAMES = ['float32', 'float16', 'bfloat16', ...QUANTISED_NAMES] as const;
/** The name of a dtype. */
export type DtypeName = (typeof DTYPE_NAMES)[number];

/** The columns of a row that can share a scale. */
export const SCALE_GROUPS = [64, 128] as const;
const DEFAULT_SCALE_GROUP = 64;

/** The dtype of shared factors, by that of the experts' own. With these neither dominates the error, and int8 is as large as fp8. */
const SHARED_DTYPES: Readonly<Record<QuantisedName, QuantisedName>> = {
  int8: 'int8',
  fp8: 'int8',
  int6: 'int6',
  int5: 'int6',
  int4: 'int5',
};

/** The default of transformers: 5 GB, decimal. */
const DEFAULT_SHARD_BYTES = 5e9;
const positive = z.number().int().positive();

const settingsSchema = z
  .strictObject({
    /**
     * `mobe` writes factors under the native names. `hf` writes standard weights, rebuilt from the factors. Default: `mobe`, and `hf`
     * for a method that has no factors.
     */
    format: z.enum(FORMATS).optional(),
    /** The factorisation method. */
    method: z
      .string()
      .refine((name) => METHODS.has(name), {
        error: ({ input }) => `there is no method ${input}; those that there are: ${[...METHODS.keys()].join(', ')}`,
        abort: true,
      })
      .default(DEFAULT_METHOD.name),
    /** The number of bases m. Give this or `keep`. */
    bases: positive.optional(),
    /** The share of the converted layers' routed-expert parameters (gate, up and down) to keep. It decides m. */
    keep: z.number().gt(0).lt(1).optional(),
    /** The rank r; by default the method chooses it. */
    rank: positive.optional(),
    activation: z.enum(ACTIVATIONS).optional(),
    /** Default: all with a calibration record or a size in bytes, else gate and up. */
    projections: z.array(z.enum(PROJECTIONS)).min(1).optional(),
    /** The folder of a calibration record (`mobe calibrate`). */
    calibration: z.string().optional(),
    /** How bases are spread over layers and projections; default: calibrated with a calibration record, else uniform. */
    allocate: z.enum(ALLOCATE_CHOICES).optional(),
    /** How `allocate: calibrated` measures what a projection's error does. */
    sensitivity: z.enum(SENSITIVITY_CHOICES).optional(),
    /** Instead of `keep`: the predicted KL that the result may have. */
    maxLoss: z.number().positive().optional(),
    /** Instead of `keep`: the bits of what is stored for the converted layers' routed experts, for each of their weights. */
    averageBits: z.number().positive().max(64).optional(),
    /** Instead of `keep`: the share of the bytes to keep that these experts have in the source. */
    keepBytes: z.number().gt(0).lt(1).optional(),
    /** The metric of a fit, from the calibration record; by default the best that memory allows. */
    metric: z.enum(METRIC_CHOICES).optional(),
    /** What is fitted anew to the record after rounding. */
    repair: z.enum(REPAIR_CHOICES).optional(),
    /** The sizes of all groups, as an allocation decided them. */
    allocation: allocationSchema.optional(),
    /** The number of parts into which a layer's experts are cut, in order. Each part has its share of the bases. */
    groups: positive.optional(),
    /** Layers to convert; by default all that have routed experts. */
    layers: z.array(z.number().int().nonnegative()).optional(),
    /** The dtype of factors and rebuilt weights; by default that of the experts. Rebuilt weights cannot be quantised by it. */
    dtype: z.enum(DTYPE_NAMES).optional(),
    /** The dtype of shared factors; default: that of `dtype`, with fp8 int8, and with 5 and 4 bits one bit more. */
    basesDtype: z.enum(DTYPE_NAMES).optional(),
    /** The columns of a row of a quantised factor that share a scale; default: 64. */
    scaleGroup: z.union([z.literal(64), z.literal(128)], { error: 'give 64 or 128' }).optional(),
    /** The bits of a weight, for the method that quantises; default: 4. */
    width: z.union([z.literal(4), z.literal(8)], { error: 'give 4 or 8' }).optional(),
    /**
     * Whether quantised tensors that are not factorised stay quantised, and rebuilt experts are quantised as their source is where that
     * can be written. By default all are decoded.
     */
    keepQuantized: z.boolean().default(false),
    solver: z.string().optional(),
    /** How much time a fit may take. */
    quality: z.enum(QUALITY_NAMES).optional(),
    /** The most steps of a fit; by default decided by `quality`. varpro stops earlier when the loss no longer falls. */
    steps: positive.optional(),
    learningRate: z.number().positive().optional(),
    /** Groups with a larger relative error stay uncompressed. */
    maxError: z.number().positive().optional(),
    /** Experts that are computed together; by default as many as keep a step's working set near 128 MiB. */
    batchExperts: positive.optional(),
    /** `auto` chooses the fastest engine that works here. */
    engine: z.enum(ENGINE_CHOICES).default(DEFAULT_ENGINE),
    /** The precision of the products of a fit's steps; default: tf32 on engines that have it. */
    precision: z.enum(PRECISIONS).optional(),
    threads: positive.max(1024).default(() => availableParallelism()),
    seed: z.number().int().nonnegative().default(0),
    /** Peak resident memory in bytes; by default 80 % of the machine's. */
    maxMemory: positive.default(() => Math.floor(0.8 * totalmem())),
    /** The most tensor bytes in one output shard. */
    shardSize: positive.default(DEFAULT_SHARD_BYTES),
  })
  .refine(({ bases, keep }) => bases === undefined || keep === undefined, {
    path: ['bases'],
    message: 'give either the number of bases or the share to keep, not both',
  })
  .superRefine(({ calibration, metric, repair, solver, precision }, { addIssue }) => {
    if (solver === 'adam' && precision === 'tf32')
      addIssue({ code: 'custom', path: ['precision'], message: 'the solver adam has f32 alone. Use varpro, or f32' });
    for (const [key, value] of Object.entries({ metric, repair }))
      if (calibration === undefined && value !== undefined && value !== 'none')
        addIssue({ code: 'custom', path: [key], message: `${value} needs a calibration record: give --calibration` });
    if (solver === 'adam' && metric !== undefined && metric !== 'none')
      addIssue({ code: 'custom', path: ['metric'], message: 'the solver adam has no metric. Use varpro, or none' });
  })
  .superRefine(checkAllocation)
  .superRefine(checkDtypes)
  .transform((settings) => ({
    ...settings,
    ...quantisation(settings),
    ...chosenMethod(settings).complete(settings),
    format: formatOf(settings),
    projections: PROJECTIONS.filter((projection) =>
      (settings.projections ?? defaultProjections(settings)).includes(projection),
    ),
    repair: settings.repair ?? (settings.calibration === undefined || !hasFactors(settings) ? 'none' : 'factors'),
    ...chosenAllocation(settings),
  }));

/** Whether a method of this name has factors, and not only weights that it encodes itself. */
const hasFactors = ({ method = DEFAULT_METHOD.name }: { readonly method?: string | undefined }): boolean =>
  METHODS.get(method)?.writes === undefined;

/** The format of the output: the one that is given, or the usual one of the method. */
export const formatOf = (options: {
  readonly format?: Format | undefined;
  readonly method?: string | undefined;
}): Format => options.format ?? (hasFactors(options) ? 'mobe' : 'hf');

/** Options that limit bytes also allocate dtypes. `dtype` then limits the choice. */
type DtypeOptions = {
  readonly averageBits?: number | undefined;
  readonly keepBytes?: number | undefined;
  readonly dtype?: DtypeName | undefined;
  readonly basesDtype?: DtypeName | undefined;
  readonly scaleGroup?: 64 | 128 | undefined;
};

/** Reports dtypes that contradict each other. */
function checkDtypes(
  { dtype, basesDtype, scaleGroup, method, ...size }: DtypeOptions & { readonly method?: string | undefined },
  context: z.core.$RefinementCtx,
): void {
  const issue = (path: string, message: string): void => context.addIssue({ code: 'custom', path: [path], message });
  const chooses = limitsBytes(size) && dtype === undefined;
  const quantises = isQuantisedName(dtype) || isQuantisedName(basesDtype) || chooses;
  if (!hasFactors({ method })) {
    if (isQuantisedName(dtype) || isQuantisedName(basesDtype))
      issue(isQuantisedName(dtype) ? 'dtype' : 'basesDtype', `it is for factors. Give --width to --method ${method}`);
    return;
  }
  if (basesDtype !== undefined && !quantises && basesDtype !== dtype)
    issue('basesDtype', 'factors of float dtypes have one dtype, which --dtype gives. Leave --bases-dtype out');
  if (scaleGroup !== undefined && !quantises)
    issue('scaleGroup', `only quantised factors have scales. Give --dtype ${QUANTISED_NAMES.join(' or ')} with it`);
}

/** The options of quantised factors, complete; none if no factor is quantised. */
function quantisation({ dtype, basesDtype, scaleGroup, ...size }: DtypeOptions): DtypeOptions {
  const shared = basesDtype ?? (isQuantisedName(dtype) ? SHARED_DTYPES[dtype] : undefined);
  const chooses = limitsBytes(size) && dtype === undefined;
  if (!isQuantisedName(dtype) && !isQuantisedName(shared) && !chooses) return { basesDtype: undefined };
  return { basesDtype: shared, scaleGroup: scaleGroup ?? DEFAULT_SCALE_GROUP };
}

/**
 * The dtypes in which a group's factors are stored.
 * @param dtype the group's float dtype
 */
export function storedDtypes(
  { dtype: own, basesDtype: shared, scaleGroup = DEFAULT_SCALE_GROUP }: DtypeOptions,
  dtype: FloatDtype,
): StoredDtypes {
  return { own: dtypeNamed(own, scaleGroup) ?? dtype, shared: dtypeNamed(shared, scaleGroup) ?? dtype };
}

/**
 * The dtypes of A and of B that an allocation of bytes chooses from. B adds a third of the noise that A does in the same dtype, and with
 * many bases it has most of the bytes. fp8 is as large as int8 and less exact.
 */
const ALLOCATED_DTYPES: ReadonlyArray<readonly [own: QuantisedName, shared: QuantisedName]> = [
  ['int8', 'int8'],
  ['int6', 'int6'],
  ['int6', 'int5'],
  ['int5', 'int6'],
  ['int5', 'int5'],
  ['int4', 'int5'],
  ['int4', 'int4'],
];

/**
 * The dtypes from which an allocation of bytes chooses those of a group's factors: the given ones, or all.
 * @param float the group's float dtype
 */
export function dtypesToAllocate({ dtype, basesDtype, scaleGroup }: DtypeOptions, float: FloatDtype): StoredDtypes[] {
  const preset = { dtype, ...quantisation({ dtype, basesDtype, scaleGroup }) };
  if (dtype !== undefined) return [storedDtypes(preset, float)];
  const pairs = ALLOCATED_DTYPES.map(([own, shared]) => ({ dtype: own, basesDtype: basesDtype ?? shared }));
  const distinct = pairs.filter(({ dtype: own }, i) => basesDtype === undefined || own !== pairs[i - 1]?.dtype);
  return [...distinct, { basesDtype }].map((names) => storedDtypes({ ...names, scaleGroup }, float));
}

/** The projections that are factorised by default. An allocation of bytes may leave any of them dense. */
export const defaultProjections = ({
  calibration,
  method,
  ...size
}: { readonly calibration?: string | undefined; readonly method?: string | undefined } & Parameters<
  typeof limitsBytes
>[0]) =>
  calibration === undefined && !limitsBytes(size) && hasFactors({ method }) ? DEFAULT_PROJECTIONS : PROJECTIONS;

/** Throws `OptionError` for options that the method does not take. */
function chosenMethod({
  method: name,
  solver,
  ...given
}: MethodOptions & { method: string; solver?: string | undefined }): Method {
  const method = methodNamed(name);
  const options = new Set([...METHODS.values()].flatMap((it) => it.options));
  for (const option of options) {
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

/**
 * The dtype of weights that are decoded but not factorised: `dtype`, or bf16, from which quantised checkpoints are usually
 * made.
 */
export const decodedDtype = ({ dtype }: { dtype?: unknown }): FloatDtype =>
  FLOAT_NAMES[dtype as keyof typeof FLOAT_NAMES] ?? 'BF16';

/** The options of a caller. All have defaults. */
export type CompressOptions = z.input<typeof settingsSchema>;

/** Options that are checked and complete. */
export type Settings = z.output<typeof settingsSchema>;

/** Settings with the engine, the precision and the metric that were chosen. */
export type RunSettings = Settings & {
  readonly engine: EngineName;
  readonly precision: Precision;
  readonly weighing?: Weighing | undefined;
};

/** A calibration record and the metric that is made of it, if any. */
export interface Weighing {
  readonly facts: RecordFacts;
  readonly size: RecordSize;
  readonly metric: MetricPlan | undefined;
}

/** Checks options and fills in defaults. Throws `OptionError`, which names the wrong option. */
export const resolveSettings = (options: CompressOptions = {}): Settings => parseOptions(settingsSchema, options);

/** Checks options against a schema. Throws `OptionError`, which names the wrong option. */
export function parseOptions<Output>(schema: z.ZodType<Output>, options: unknown): Output {
  const result = schema.safeParse(options);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new OptionError(flagName(String(issue?.path[0] ?? 'options')), issue?.message ?? 'invalid');
}

/** maxMemory → --max-memory */
const flagName = (key: string): string => `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/**
 * The settings that decide the bytes of the result. Two runs on the same source that agree in these write the same files.
 * `threads` and `maxMemory` are left out.
 */
export function resultSettings(settings: RunSettings): Record<string, unknown> {
  const { format, method, bases, keep, groups, rank, activation, projections, layers, dtype, keepQuantized } = settings;
  const { solver, steps, learningRate, maxError, batchExperts, engine, seed, shardSize } = settings;
  const { allocate, sensitivity, maxLoss, averageBits, keepBytes, allocation, weighing, repair } = settings;
  const { basesDtype, scaleGroup, width, precision } = settings;
  const inBytes = limitsBytes(settings);
  const what = {
    format,
    ...methodRecord(methodNamed(method)),
    bases,
    keep: inBytes ? undefined : keep,
    ...(inBytes && { averageBits, keepBytes, ridges: RIDGES }),
    groups,
    rank,
    activation,
    projections,
    layers,
    dtype,
    ...(scaleGroup !== undefined && { basesDtype, scaleGroup, ridge: ridgeFor(storedDtypes(settings, 'BF16').own) }),
    ...(width !== undefined && { width }),
    keepQuantized,
    ...(allocate !== 'uniform' && { allocate, sensitivity, maxLoss, allocation }),
    ...(weighing && { ...calibrationRecord(weighing.facts, weighing.metric), repair }),
  };
  return JSON.parse(
    JSON.stringify({
      ...{ ...what, solver, steps, learningRate, maxError, batchExperts, engine, seed, shardSize },
      ...(precision !== 'f32' && { precision }), // runs of before it could be chosen were in f32
    }),
  );
}

/** Whether there is a choice of precision for the steps of a fit. */
export const hasPrecisions = ({ method, solver }: Pick<Settings, 'method' | 'solver'>): boolean =>
  methodNamed(method).options.includes('precision') && solver !== 'adam';

/** The settings that decide the bytes of factor files: those of the format do not. */
export function factorSettings(settings: RunSettings): Record<string, unknown> {
  const { format: _, shardSize: __, keepQuantized: ___, maxError: ____, ...decisive } = resultSettings(settings);
  return decisive;
}

/** Whether down_proj is repaired, which needs the finished factors of its layer. */
export const repairsDown = ({ repair }: Pick<Settings, 'repair'>): boolean => repair === 'factors+down';
