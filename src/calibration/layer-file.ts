/** The file of one layer of a record: its layout, and how it is read. */
import { allFinite, decodeFloats } from '../checkpoint/codec.js';
import { floatTensor, type TensorInfo, type TensorSpec } from '../checkpoint/header.js';
import { openShard } from '../checkpoint/open-checkpoint.js';
import { DamagedRecordError, InputError, ReadError } from '../errors.js';
import { fileIn } from '../location.js';
import { layoutFile, type ShardLayout } from '../output/layout.js';
import { type Files, READ_BYTES } from '../sources/files.js';
import { type LayerRecord, layerFile, TOKENS_FILE } from './record.js';

/** Sizes of a layer's record. */
export interface LayerSizes {
  /** t */
  readonly tokens: number;
  /** d */
  readonly width: number;
  /** k */
  readonly expertsPerToken: number;
}

const intTensor = (name: string, ...shape: [number, number]): TensorSpec => ({
  name,
  dtype: 'I32',
  shape,
  bytes: 4 * shape[0] * shape[1],
});

/** The layout of a layer's file. */
export const layerLayout = (layer: number, { tokens, width, expertsPerToken: k }: LayerSizes): ShardLayout =>
  layoutFile(layerFile(layer), [
    floatTensor('input', 'BF16', tokens, width),
    intTensor('experts', tokens, k),
    floatTensor('weights', 'F32', tokens, k),
    floatTensor('scale', 'F32', tokens),
  ]);

/** The layout of the file with the token numbers. */
export const tokensLayout = (sequences: number, length: number): ShardLayout =>
  layoutFile(TOKENS_FILE, [intTensor('tokens', sequences, length)]);

/** Rows whose distance is smaller are read together: reading the bytes between them takes less time than another call. */
const GAP_BYTES = 64 * 1024;

/** The tensors of a layer's file. */
interface LayerTensors {
  readonly name: string;
  readonly input: TensorInfo;
  readonly experts: TensorInfo;
  readonly weights: TensorInfo;
  readonly scale: TensorInfo;
}

/** Reads the header of a layer's file. Throws `DamagedRecordError` if it does not have the tensors of a record. */
export async function findLayer(folder: string, layer: number, tokens: number, files: Files): Promise<LayerTensors> {
  const name = fileIn(folder, layerFile(layer));
  const held = await readHeader(name, files);
  const input = tensor(held, name, 'input', 'BF16', [tokens, undefined]);
  const experts = tensor(held, name, 'experts', 'I32', [tokens, undefined]);
  return {
    ...{ name, input, experts },
    weights: tensor(held, name, 'weights', 'F32', [tokens, experts.shape[1]]),
    scale: tensor(held, name, 'scale', 'F32', [tokens]),
  };
}

/** Opens a layer's file and reads everything but the inputs. Throws `DamagedRecordError`. */
export async function openLayer(folder: string, layer: number, tokens: number, files: Files): Promise<LayerRecord> {
  const found = await findLayer(folder, layer, tokens, files);
  const { name, input, experts: routing } = found;
  const [width, expertsPerToken] = [input.shape[1] as number, routing.shape[1] as number];
  const experts = new Int32Array(tokens * expertsPerToken);
  const weights = new Float32Array(experts.length);
  const scale = new Float32Array(tokens);
  await fill(routing, experts, files);
  await fill(found.weights, weights, files);
  await fill(found.scale, scale, files);
  checkRouting(name, experts, expertsPerToken);
  if (!weights.every(Number.isFinite)) throw new DamagedRecordError(name, 'a weight is not a finite number');
  if (!scale.every((it) => it > 0 && Number.isFinite(it)))
    throw new DamagedRecordError(name, 'the scale of a token is not a positive number');
  const rowBytes = 2 * width;
  return {
    name,
    ...{ layer, tokens, width, expertsPerToken, experts, weights, scale },
    async readInputs(wanted, target) {
      for (const { first, end } of runs(wanted, rowBytes)) {
        const start = wanted[first] as number;
        const bytes = new Uint8Array(((wanted[end - 1] as number) + 1 - start) * rowBytes);
        await files.read(name, input.start + start * rowBytes, bytes);
        for (let i = first; i < end; i++) {
          const at = ((wanted[i] as number) - start) * rowBytes;
          const row = bytes.subarray(at, at + rowBytes);
          if (!allFinite('BF16', row))
            throw new DamagedRecordError(name, `an input of token ${wanted[i]} is not a finite number`);
          decodeFloats('BF16', row, target.subarray(i * width, (i + 1) * width));
        }
      }
    },
  };
}

/** Reads the token numbers, (sequences, length). Throws `DamagedRecordError`. */
export async function readTokens(
  folder: string,
  { sequences, length }: { readonly sequences: number; readonly length: number },
  files: Files,
): Promise<Int32Array> {
  const name = fileIn(folder, TOKENS_FILE);
  const tokens = new Int32Array(sequences * length);
  await fill(tensor(await readHeader(name, files), name, 'tokens', 'I32', [sequences, length]), tokens, files);
  return tokens;
}

/** Splits rising row numbers into runs that are read by one call each: places `first` up to `end`, exclusive. */
function* runs(rows: ArrayLike<number>, rowBytes: number): Iterable<{ first: number; end: number }> {
  for (let first = 0; first < rows.length; ) {
    let end = first + 1;
    for (; end < rows.length; end++) {
      const row = rows[end] as number;
      const gap = (row - (rows[end - 1] as number) - 1) * rowBytes;
      if (gap > GAP_BYTES || (row + 1 - (rows[first] as number)) * rowBytes > READ_BYTES) break;
    }
    yield { first, end };
    first = end;
  }
}

async function readHeader(name: string, files: Files): Promise<readonly TensorInfo[]> {
  try {
    return (await openShard(name, files)).tensors;
  } catch (error) {
    // The remedies of these errors are those for a model's file.
    if (error instanceof ReadError && error.code === 'ENOENT')
      throw new DamagedRecordError(name, 'the file is missing');
    if (error instanceof InputError) throw new DamagedRecordError(name, `its header is damaged (${error.name})`);
    throw error;
  }
}

function tensor(
  held: readonly TensorInfo[],
  file: string,
  name: string,
  dtype: string,
  shape: ReadonlyArray<number | undefined>,
): TensorInfo {
  const found = held.find((it) => it.name === name);
  if (!found) throw new DamagedRecordError(file, `it has no tensor "${name}"`);
  const fits =
    found.dtype === dtype &&
    found.shape.length === shape.length &&
    found.shape.every((size, i) => size > 0 && size === (shape[i] ?? size));
  if (fits) return found;
  const expected = shape.map((size) => size ?? 'any').join(', ');
  throw new DamagedRecordError(
    file,
    `its tensor "${name}" is ${found.dtype} [${found.shape.join(', ')}], expected is ${dtype} [${expected}]`,
  );
}

/** Reads a whole tensor of 4-byte elements. */
async function fill({ file, start }: TensorInfo, target: Int32Array | Float32Array, files: Files): Promise<void> {
  await files.read(file, start, new Uint8Array(target.buffer, target.byteOffset, target.byteLength));
}

function checkRouting(name: string, experts: Int32Array, k: number): void {
  for (let first = 0; first < experts.length; first += k) {
    for (let i = first; i < first + k; i++) {
      const expert = experts[i] as number;
      if (expert < 0 || experts.indexOf(expert, first) !== i)
        throw new DamagedRecordError(name, `the experts of token ${first / k} are not ${k} different ones`);
    }
  }
}
