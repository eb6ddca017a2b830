/**
 * Weights that the method encodes itself (`Method.writes`), stored as compressed-tensors has them: "pack-quantized". Each matrix has
 * three tensors: its packed codes, their scales, and its shape.
 */
import type { StoredEncoding } from '../checkpoint/encoding.js';
import { storedBytes } from '../checkpoint/encoding.js';
import { wordsOf } from '../checkpoint/encodings/bit-fields.js';
import type { TensorSpec } from '../checkpoint/header.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { OptionError } from '../errors.js';
import type { MoeModel } from '../models/family.js';
import type { GroupPlan } from './group-plan.js';
import type { Settings } from './settings.js';

/** The tensors of one matrix. */
export interface PackedTensors {
  readonly data: TensorSpec;
  readonly scales: TensorSpec;
  readonly shape: TensorSpec;
  /** The content of `shape`: rows and columns. */
  readonly shapeBytes: Uint8Array<ArrayBuffer>;
}

type Packed = Extract<StoredEncoding, { kind: 'packed' }>;

const isPacked = (encoding: StoredEncoding): encoding is Packed => encoding.kind === 'packed';

/** The tensors of a matrix in this encoding. Throws a `TypeError` if it is not written so. */
export function packedTensors(
  { name, rows, cols }: Pick<StoredMatrix, 'name' | 'rows' | 'cols'>,
  encoding: StoredEncoding,
): PackedTensors {
  if (!isPacked(encoding) || encoding.scaleDtype === 'F8_E8M0' || encoding.scaleDtype === 'F8_E4M3')
    throw new TypeError(`weights are not written in ${JSON.stringify(encoding)}`);
  const { bits, scaleDtype, groupSize } = encoding;
  const { data, scales } = storedBytes(encoding, rows, cols);
  const words = [rows, wordsOf(cols, bits)];
  const groups = [rows, Math.ceil(cols / groupSize)];
  const shapeBytes = new Uint8Array(new BigInt64Array([BigInt(rows), BigInt(cols)]).buffer);
  return {
    data: { name: `${name}_packed`, dtype: 'I32', shape: words, bytes: data },
    scales: { name: `${name}_scale`, dtype: scaleDtype, shape: groups, bytes: scales },
    shape: { name: `${name}_shape`, dtype: 'I64', shape: [2], bytes: shapeBytes.length },
    shapeBytes,
  };
}

/**
 * Throws `OptionError` if the groups of such a method cannot be written.
 * @param writes factor files have no place for weights
 */
export function checkPackedWeights(
  groups: readonly GroupPlan[],
  { method, keepQuantized, maxError }: Pick<Settings, 'method' | 'keepQuantized' | 'maxError'>,
  writes: 'checkpoint' | 'factor files' | 'float factors',
): void {
  if (writes !== 'checkpoint')
    throw new OptionError('--method', `${method} makes no factors that could be kept. Use "mobe compress"`);
  if (keepQuantized)
    throw new OptionError(
      '--keep-quantized',
      `a config describes one quantisation, and --method ${method} writes its own. Leave it out: all that is no routed expert becomes plain`,
    );
  if (maxError !== undefined)
    throw new OptionError(
      '--max-error',
      'the config says which experts are quantised, and all of a layer must be alike. Leave it out, and leave out layers with --layers',
    );
  const fused = groups.flatMap(({ experts }) => experts).find(({ name, place }) => place.tensor !== name);
  if (fused)
    throw new OptionError(
      '--method',
      `${method} writes a tensor for each projection of each expert, as programs load them, and "${fused.place.tensor}" holds several. Use --method mobe`,
    );
}

/** Everything outside of a module `experts`. Shared experts are in modules of other names. */
const OUTSIDE_EXPERTS = String.raw`re:^(?!.*\.experts(\.|$)).*`;

/**
 * The entry on quantisation for config.json; undefined if no group is written so. Only the experts of converted layers are quantised.
 * Names in a loaded model may begin otherwise than those of tensors, so patterns do not name the beginning.
 */
export function packedConfig(
  groups: readonly GroupPlan[],
  { layers }: Pick<MoeModel, 'layers'>,
): Readonly<Record<string, unknown>> | undefined {
  const encoding = groups[0]?.coded;
  if (!encoding || !isPacked(encoding)) return undefined;
  const converted = new Set(groups.map(({ prefix }) => prefix));
  const others = layers
    .filter(({ prefix }) => !converted.has(prefix))
    .map(({ prefix }) => `re:.*${ending(prefix)}experts.*`);
  const weights = {
    ...{ num_bits: encoding.bits, type: 'int', symmetric: true, strategy: 'group', group_size: encoding.groupSize },
    ...{ dynamic: false, actorder: null, block_structure: null, observer: 'minmax', observer_kwargs: {} },
  };
  return {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    quantization_status: 'compressed',
    config_groups: { group_0: { targets: ['Linear'], weights, input_activations: null, output_activations: null } },
    ignore: ['lm_head', OUTSIDE_EXPERTS, ...others],
    kv_cache_scheme: null,
    global_compression_ratio: null,
  };
}

/** The prefix of a layer as a pattern, from the list of layers on: "\\blayers\\.3\\.mlp\\." */
const ending = (prefix: string): string =>
  String.raw`\b` + prefix.replace(/^.*(?=(?:layers|blocks)\.\d+\.)/, '').replaceAll('.', String.raw`\.`);
