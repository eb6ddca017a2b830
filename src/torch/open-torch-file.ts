/**
 * Finds the tensors in a state dict that `torch.save` wrote (torch ≥ 1.6: a zip archive with a pickle and the storages).
 * It reads the directory and the pickle, but no tensor data, and runs no code from the file: see `pickle.ts`.
 */
import { byteLength, elementCount } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { TorchFileError, TorchTensorError } from '../errors.js';
import { type ByteSource, decodeText, withFile } from './byte-source.js';
import { MAX_PICKLE_BYTES, readPickle } from './pickle.js';
import { describe, isKind, type TensorRecord } from './values.js';
import { readZipDirectory, type ZipEntry } from './zip-directory.js';

/** The entry holds "little" or "big". A longer one is neither. */
const MAX_BYTEORDER_BYTES = 8;

/**
 * Every tensor of the state dict, in its order. Offsets are absolute in `path`. Dtypes have their safetensors names (F64, F32,
 * F16, BF16, I64, I32, I16, I8, U8, BOOL). Data is row-major and little-endian. Ranges of tensors that share a storage may
 * overlap.
 * @throws TorchFileError, TorchTensorError, PickleNotAllowedError, ReadError
 */
export const openTorchFile = (path: string): Promise<TensorInfo[]> => withFile(path, readTensors);

/** Like `openTorchFile`, for any source of bytes. */
export async function readTensors(source: ByteSource): Promise<TensorInfo[]> {
  const { file } = source;
  await checkKind(source);
  const entries = await readZipDirectory(source);
  const [pickle, ...others] = [...entries.values()].filter(({ name }) => /^[^/]+\/data\.pkl$/.test(name));
  if (!pickle || others.length > 0)
    throw new TorchFileError(file, pickle ? 'it has more than one data.pkl' : 'it has no data.pkl', NOT_TORCH);
  const prefix = pickle.name.slice(0, -'data.pkl'.length);
  await checkByteOrder(source, entries.get(`${prefix}byteorder`));
  if (pickle.size > MAX_PICKLE_BYTES)
    throw new TorchFileError(
      file,
      `its pickle has ${pickle.size} bytes, the limit is ${MAX_PICKLE_BYTES}`,
      'Save fewer tensors in one file.',
    );
  const state = readPickle(await source.read(pickle.dataStart, pickle.size), file);
  if (!isKind(state, 'dict'))
    throw new TorchFileError(file, `it holds ${describe(state)}, not a state dict`, SAVE_STATE_DICT);
  return [...state.entries].map(([name, value]) => {
    if (!isKind(value, 'tensor'))
      throw new TorchFileError(file, `its value "${name}" is ${describe(value)}, not a tensor`, SAVE_STATE_DICT);
    return { name, file, ...locate(value, entries.get(`${prefix}data/${value.storage.key}`), name, file) };
  });
}

const SAVE_STATE_DICT = 'Save the state dict alone: torch.save(model.state_dict(), …).';
const NOT_TORCH = 'Give a file that torch.save wrote.';
const SAVE_AGAIN = 'Load it with torch ≥ 1.6 and save it again.';

/** First bytes of files from torch before 1.6: protocol 2, then the integer 0x1950a86a20f9469cfc6c (`MAGIC_NUMBER`). */
const LEGACY_MAGIC = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/** First bytes of a zip archive: the signature of a local header. */
const ZIP_MAGIC = [0x50, 0x4b, 0x03, 0x04];

const TAR_MAGIC = { position: 257, bytes: [0x75, 0x73, 0x74, 0x61, 0x72] }; // "ustar"

async function checkKind({ file, bytes, read }: ByteSource): Promise<void> {
  const head = await read(0, Math.min(bytes, 512));
  const holds = (magic: readonly number[], position = 0) => magic.every((byte, i) => head[position + i] === byte);
  if (holds(ZIP_MAGIC)) return;
  if (holds(LEGACY_MAGIC))
    throw new TorchFileError(file, 'it is in the format that torch.save wrote before torch 1.6', SAVE_AGAIN);
  if (holds(TAR_MAGIC.bytes, TAR_MAGIC.position))
    throw new TorchFileError(file, 'it is a TAR archive, as torch.save wrote before torch 0.2', SAVE_AGAIN);
  throw new TorchFileError(file, 'it is not a file of torch.save', NOT_TORCH);
}

/** Files without the entry are from torch before 2.1, which wrote the machine's byte order. They are taken as little-endian. */
async function checkByteOrder({ file, read }: ByteSource, entry: ZipEntry | undefined): Promise<void> {
  if (entry === undefined) return;
  const order = decodeText(await read(entry.dataStart, Math.min(entry.size, MAX_BYTEORDER_BYTES)));
  if (order !== 'little')
    throw new TorchFileError(
      file,
      `its byte order is ${JSON.stringify(order)}`,
      'Load and save it on an x86 or ARM machine.',
    );
}

/** The byte range of a tensor, checked against its storage. */
function locate(
  { storage, offset, shape, strides }: TensorRecord,
  entry: ZipEntry | undefined,
  name: string,
  file: string,
): Pick<TensorInfo, 'dtype' | 'shape' | 'start' | 'end'> {
  const { dtype, key, numel } = storage;
  if (!shape.every((size) => size >= 0) || offset < 0)
    throw new TorchTensorError(file, name, `has the shape [${shape}] at offset ${offset}`);
  if (strides.length !== shape.length)
    throw new TorchTensorError(file, name, `has ${shape.length} dimensions and ${strides.length} strides`);
  if (!entry) throw new TorchTensorError(file, name, `is in the storage data/${key}, which is not in the file`);
  if (entry.size !== byteLength(dtype, [numel]))
    throw new TorchTensorError(
      file,
      name,
      `is in the storage data/${key} of ${numel} ${dtype} elements, for which the file has ${entry.size} bytes`,
    );
  const count = elementCount(shape);
  // An empty view may begin anywhere, even after the end of its storage.
  if (count === 0) return { dtype, shape, start: entry.dataStart, end: entry.dataStart };
  if (!isRowMajor(shape, strides))
    throw new TorchTensorError(
      file,
      name,
      `has the shape [${shape}] and the strides [${strides}]: it is not contiguous`,
      'Save tensor.contiguous() instead.',
    );
  if (offset + count > numel)
    throw new TorchTensorError(file, name, `needs elements ${offset} to ${offset + count} of a storage of ${numel}`);
  const element = entry.size / numel;
  const start = entry.dataStart + offset * element;
  return { dtype, shape, start, end: start + count * element };
}

/** The stride of a dimension with one element is never used, so torch may write any number there (`is_contiguous`). */
function isRowMajor(shape: readonly number[], strides: readonly number[]): boolean {
  let expected = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== expected) return false;
    expected *= shape[i] as number;
  }
  return true;
}
