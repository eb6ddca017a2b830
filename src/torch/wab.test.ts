import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { TORCH_FILES } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { type PickledTensor, pickleOf, torchFileOf } from '../../fixtures/torch-zip.js';
import { TorchFileError, UnsupportedDtypeError } from '../errors.js';
import { listWabFiles, openWabFile, parseWabFileName } from './wab.js';

const NAME = 'model_layers_1_mlp_gate_proj_WAB.pth';

test('the factors of a file of the reference are found by name and shape', async () => {
  const { A, B, logits } = await openWabFile(join(TORCH_FILES, NAME));
  expect([A.name, A.dtype, A.shape]).toEqual(['A_params', 'F32', [2, 3, 2]]);
  expect([B.name, B.dtype, B.shape]).toEqual(['B_params', 'F32', [2, 2, 4]]);
  expect([logits.name, logits.dtype, logits.shape]).toEqual(['w_params', 'F32', [2, 2]]);
});

test('factors in half precision are found', async () => {
  expect((await openWabFile(join(TORCH_FILES, 'half-factors.pth'))).A.dtype).toBe('BF16');
});

describe('a file name says what is in it:', () => {
  test.each([
    [NAME, { layer: 1, projection: 'gate_proj', group: undefined }],
    ['model_layers_60_mlp_up_proj_group1_WAB.pth', { layer: 60, projection: 'up_proj', group: 1 }],
    ['model_layers_0_mlp_gate_proj_group0_WAB.pth', { layer: 0, projection: 'gate_proj', group: 0 }],
    ['model_layers_1_mlp_down_proj_WAB.pth', undefined],
    ['model_layers_1_mlp_gate_proj_group_WAB.pth', undefined],
    ['model_layers_1_mlp_gate_proj_WAB.pth.tmp', undefined],
    ['old_model_layers_1_mlp_gate_proj_WAB.pth', undefined],
  ])('%s', (name, parsed) => expect(parseWabFileName(name)).toEqual(parsed));
});

test('the files of a folder come by layer, projection and group', async () => {
  const folder = temporaryFolder();
  const names = [
    'model_layers_2_mlp_gate_proj_group0_WAB.pth',
    'model_layers_2_mlp_gate_proj_group2_WAB.pth',
    'model_layers_2_mlp_gate_proj_group10_WAB.pth',
    'model_layers_2_mlp_up_proj_group0_WAB.pth',
    'model_layers_10_mlp_gate_proj_WAB.pth',
  ];
  for (const name of ['train.log', ...names]) writeFileSync(join(folder, name), '');
  expect((await listWabFiles(folder)).map(({ path }) => path)).toEqual(names.map((name) => join(folder, name)));
});

test('a folder that is not there is an error', async () => {
  await expect(listWabFiles('/no/such/folder')).rejects.toThrow(TorchFileError);
});

describe('factors that do not fit together are refused:', () => {
  const folder = temporaryFolder();
  /** A state dict of zeros, each tensor in a storage of its own. */
  const write = (shapes: Record<string, number[]>, dtypes: Record<string, [storage: string, bytes: number]> = {}) => {
    const storages: Uint8Array[] = [];
    const tensors = Object.entries(shapes).map(([name, shape], i): PickledTensor => {
      const numel = shape.reduce((count, size) => count * size, 1);
      const [storage, bytes] = dtypes[name] ?? ['FloatStorage', 4];
      storages.push(new Uint8Array(numel * bytes));
      const strides = shape.map((_, k) => shape.slice(k + 1).reduce((stride, size) => stride * size, 1));
      return { name, key: String(i), storage, numel, shape, strides };
    });
    writeFileSync(join(folder, NAME), torchFileOf(pickleOf(tensors), ...storages));
  };
  const shapes = { A_params: [4, 3, 2], B_params: [5, 2, 6], w_params: [4, 5] };
  const half: [string, number] = ['HalfStorage', 2];
  const double: [string, number] = ['DoubleStorage', 8];
  const cases: Array<[name: string, error: new (...args: never[]) => Error, message: RegExp, make: () => void]> = [
    ['no A', TorchFileError, /no tensor "A_params"/, () => write({ B_params: [5, 2, 6], w_params: [4, 5] })],
    ['another tensor', TorchFileError, /also has a tensor "scale"/, () => write({ ...shapes, scale: [1] })],
    ['A of two dimensions', TorchFileError, /A_params \[4,6\]/, () => write({ ...shapes, A_params: [4, 6] })],
    ['B of two dimensions', TorchFileError, /do not fit/, () => write({ ...shapes, B_params: [5, 2] })],
    ['ranks that differ', TorchFileError, /do not fit/, () => write({ ...shapes, B_params: [5, 3, 6] })],
    ['experts that differ', TorchFileError, /do not fit/, () => write({ ...shapes, w_params: [3, 5] })],
    ['bases that differ', TorchFileError, /do not fit/, () => write({ ...shapes, w_params: [4, 6] })],
    ['logits of one dimension', TorchFileError, /do not fit/, () => write({ ...shapes, w_params: [20] })],
    ['nothing in it', TorchFileError, /do not fit/, () => write({ ...shapes, A_params: [4, 0, 2] })],
    ['bases of another dtype', TorchFileError, /F32, F16 and F32/, () => write(shapes, { B_params: half })],
    ['logits of another dtype', TorchFileError, /F32, F32 and F16/, () => write(shapes, { w_params: half })],
    [
      'doubles',
      UnsupportedDtypeError,
      /F64/,
      () => write(shapes, { A_params: double, B_params: double, w_params: double }),
    ],
    [
      'a file that torch wrote of something else',
      TorchFileError,
      /no tensor "A_params"/,
      () => copyFileSync(join(TORCH_FILES, 'views.pth'), join(folder, NAME)),
    ],
  ];
  test('(those that fit are not)', async () => {
    write(shapes);
    expect((await openWabFile(join(folder, NAME))).B.shape).toEqual([5, 2, 6]);
  });
  test.each(cases)('%s', async (_, error, message, make) => {
    make();
    const failure = openWabFile(join(folder, NAME));
    await expect(failure).rejects.toThrow(error);
    await expect(failure).rejects.toThrow(message);
  });
});
