/**
 * A checkpoint that is repacked into the layout of a family and then converted has the tensors of one that is converted and then
 * repacked, to the byte. The repacking here uses no code of src/.
 */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateFamily, TINY } from '../../fixtures/generate-family.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { OptionError } from '../../src/errors.js';
import { PROJECTIONS, type Projection } from '../../src/models/family.js';
import { compress } from './compress.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const SIZES = { ...TINY, layers: 2 };
const QUICK: CompressOptions = { bases: 3, steps: 4, threads: 1, format: 'hf' };

/** Numbers of two bytes, row-major. */
interface Matrix {
  readonly rows: number;
  readonly cols: number;
  readonly values: Uint16Array;
}

const turned = ({ rows, cols, values }: Matrix): Matrix => ({
  rows: cols,
  cols: rows,
  values: values.map((_, i) => values[(i % rows) * cols + Math.floor(i / rows)] as number),
});
const over = (a: Matrix, b: Matrix): Matrix => ({
  rows: a.rows + b.rows,
  cols: a.cols,
  values: Uint16Array.of(...a.values, ...b.values),
});
const alternating = (a: Matrix, b: Matrix): Matrix => {
  const both = over(a, b);
  const from = (i: number): Matrix => (Math.floor(i / a.cols) % 2 === 0 ? a : b);
  const at = (i: number): number => Math.floor(i / (2 * a.cols)) * a.cols + (i % a.cols);
  return { ...both, values: both.values.map((_, i) => from(i).values[at(i)] as number) };
};

/** One expert's part of each fused tensor, or each tensor of one expert if the name has `{e}`. */
type Pack = (own: Readonly<Record<Projection, Matrix>>) => Readonly<Record<string, Matrix>>;

interface Repacking {
  readonly prefix: string;
  readonly pack: Pack;
  /** Experts of one fused tensor follow each other along its first axis, without an axis of their own. */
  readonly flat?: boolean;
}

const LAYOUTS: Readonly<Record<string, Repacking>> = {
  'Granite-MoE': {
    prefix: 'model.layers.{l}.block_sparse_moe.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'input_linear.weight': over(g, u),
      'output_linear.weight': d,
    }),
  },
  Step: {
    prefix: 'model.layers.{l}.moe.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'gate_proj.weight': g,
      'up_proj.weight': u,
      'down_proj.weight': d,
    }),
  },
  Aria: {
    prefix: 'language_model.model.layers.{l}.mlp.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'experts.fc1.weight': turned(over(g, u)),
      'experts.fc2.weight': turned(d),
    }),
  },
  Inkling: {
    prefix: 'model.llm.layers.{l}.mlp.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'experts.w13_weight': alternating(g, u),
      'experts.w2_weight': d,
    }),
  },
  'Gemma 4': {
    prefix: 'model.language_model.layers.{l}.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'experts.gate_up_proj': over(g, u),
      'experts.down_proj': d,
    }),
  },
  DBRX: {
    prefix: 'transformer.blocks.{l}.ffn.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'experts.mlp.w1': g,
      'experts.mlp.v1': u,
      'experts.mlp.w2': turned(d),
    }),
    flat: true,
  },
  'Nemotron-H': {
    prefix: 'backbone.layers.{l}.mixer.',
    pack: ({ up_proj: u, down_proj: d }) => ({ 'experts.{e}.up_proj.weight': u, 'experts.{e}.down_proj.weight': d }),
  },
  'DeepSeek-V4': {
    prefix: 'layers.{l}.ffn.',
    pack: ({ gate_proj: g, up_proj: u, down_proj: d }) => ({
      'experts.{e}.w1.weight': g,
      'experts.{e}.w3.weight': u,
      'experts.{e}.w2.weight': d,
    }),
  },
};

function repack(tensors: readonly StoredTensor[], { prefix, pack, flat = false }: Repacking): StoredTensor[] {
  const packed = tensors.filter(({ name }) => !name.includes('.mlp.'));
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const expert = (layer: number, number: number) =>
    pack(
      Object.fromEntries(
        PROJECTIONS.map((projection) => {
          const name = `model.layers.${layer}.mlp.experts.${number}.${projection}.weight`;
          const { bytes, shape } = byName.get(name) as StoredTensor;
          const [rows, cols] = shape as [number, number];
          return [projection, { rows, cols, values: new Uint16Array(bytes.slice().buffer) }];
        }),
      ) as Record<Projection, Matrix>,
    );
  for (let layer = 0; layer < SIZES.layers; layer++) {
    const all = Array.from({ length: SIZES.experts }, (_, number) => expert(layer, number));
    const at = prefix.replace('{l}', String(layer));
    for (const [name, { rows, cols }] of Object.entries(all[0] as Record<string, Matrix>)) {
      const own = all.map((it) => new Uint8Array((it[name] as Matrix).values.buffer));
      if (name.includes('{e}'))
        own.forEach((bytes, number) => {
          packed.push({ name: at + name.replace('{e}', String(number)), dtype: 'BF16', shape: [rows, cols], bytes });
        });
      else {
        const shape = flat ? [own.length * rows, cols] : [own.length, rows, cols];
        packed.push({ name: at + name, dtype: 'BF16', shape, bytes: Buffer.concat(own) });
      }
    }
    const router = byName.get(`model.layers.${layer}.mlp.gate.weight`) as StoredTensor;
    packed.push({ ...router, name: `${at}router.layer.weight` });
  }
  return packed;
}

const cost = thoroughBut('DBRX', 'Nemotron-H');

describe('converted and repacked is repacked and converted:', () => {
  const at = (...path: string[]) => join(root, ...path);
  let reference: readonly StoredTensor[];

  beforeAll(async () => {
    await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES });
    await compress(at('model'), at('hf'), QUICK);
    reference = [...readFolder(at('hf')).values()];
  });

  for (const [name, layout] of Object.entries(LAYOUTS))
    test(name, cost(name), async () => {
      const model = at(name);
      const config = { model_type: 'acme' };
      await generateFamily(model, 'qwen3_moe', { sizes: SIZES, config, alter: (tensors) => repack(tensors, layout) });
      await compress(model, `${model}-hf`, QUICK);
      const written = readFolder(`${model}-hf`);
      const wanted = repack(reference, layout);
      expect([...written.keys()].sort()).toEqual(wanted.map((it) => it.name).sort());
      for (const { name: tensor, shape, bytes } of wanted) {
        expect(written.get(tensor)?.shape, tensor).toEqual(shape);
        expect(Buffer.compare(written.get(tensor)?.bytes ?? Buffer.of(), bytes), tensor).toBe(0);
      }
      expect((await verify(model, `${model}-hf`, { threads: 1 })).problems).toEqual([]);
      if (name !== 'Nemotron-H') return;
      const run = compress(model, `${model}-gate`, { ...QUICK, projections: ['gate_proj'] });
      await expect(run).rejects.toThrow(OptionError);
      await expect(run).rejects.toThrow('the experts of this model have no gate_proj; they have up_proj, down_proj');
    });
});
