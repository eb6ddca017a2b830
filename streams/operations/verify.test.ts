import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import type { FamilyName } from '../../fixtures/families.js';
import { forgetManifest } from '../../fixtures/forget-manifest.js';
import { type FamilyOptions, generateFamily } from '../../fixtures/generate-family.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { compress } from './compress.js';
import { verify } from './verify.js';

const root = temporaryFolder();

/** Changes the exponent of one number of a tensor, at `share` of its bytes. */
async function flip(folder: string, name: string, share: number): Promise<void> {
  const tensor = (await openCheckpoint(folder)).tensors.get(name);
  if (!tensor) throw new RangeError(`no tensor ${name}`);
  const bytes = readFileSync(tensor.file);
  // The second byte of a bf16 number has the exponent.
  const position = tensor.start + (Math.floor((tensor.end - tensor.start) * share) | 1);
  bytes[position] = (bytes[position] as number) ^ 0x40;
  writeFileSync(tensor.file, bytes);
}

type Case = [what: string, tensor: string, share: number, says: string];

describe.each<[layout: string, FamilyName, FamilyOptions, CompressOptions, Case[]]>([
  [
    'a fused layout',
    'qwen3_moe',
    { fused: true },
    { format: 'hf', projections: ['up_proj'], dtype: 'float16' },
    [
      [
        'a slice that was kept',
        'model.layers.0.mlp.experts.gate_up_proj',
        0,
        '"model.layers.0.mlp.experts.gate_up_proj"',
      ],
      ['a slice that was rebuilt', 'model.layers.0.mlp.experts.gate_up_proj', 0.99, 'layer 0 up_proj'],
      ['a tensor that was kept', 'model.layers.1.mlp.experts.down_proj', 0.5, '"model.layers.1.mlp.experts.down_proj"'],
    ],
  ],
  [
    'groups, from FP8',
    'deepseek_v3',
    { quantised: 'fp8' },
    { bases: 4, groups: 2, projections: ['gate_proj', 'down_proj'] },
    [
      ['the bases of the second group', 'model.layers.1.mlp.B_down_1', 0.5, 'layer 1 down_proj group 1'],
      ['coefficients', 'model.layers.1.mlp.W_gate_0', 0.5, 'layer 1 gate_proj group 0'],
      ['an expert of the second group', 'model.layers.1.mlp.experts.7.gate_proj.weight', 0.5, 'gate_proj group 1'],
      [
        'a decoded matrix',
        'model.layers.0.self_attn.q_b_proj.weight',
        0.5,
        '"model.layers.0.self_attn.q_b_proj.weight"',
      ],
      ['a decoded expert', 'model.layers.1.mlp.experts.2.up_proj.weight', 0.9, 'experts.2.up_proj.weight"'],
    ],
  ],
  [
    'kept INT4',
    'kimi_k2',
    { quantised: 'int4', sizes: { layers: 3 } },
    { format: 'hf', layers: [1], keepQuantized: true },
    [
      ['packed data', 'model.layers.2.mlp.experts.3.up_proj.weight_packed', 0.5, 'weight_packed"'],
      ['a scale', 'model.layers.2.mlp.experts.3.up_proj.weight_scale', 0.5, 'weight_scale"'],
      ['a stored shape', 'model.layers.2.mlp.experts.3.up_proj.weight_shape', 0, 'weight_shape"'],
      ['what was not converted', 'model.layers.1.mlp.experts.3.down_proj.weight_packed', 0, 'down_proj.weight_packed"'],
      ['the shape of what was converted', 'model.layers.1.mlp.experts.3.up_proj.weight_shape', 0, 'weight_shape"'],
    ],
  ],
])(
  'a flipped bit is found by comparing with the source, and nothing else, in %s:',
  (layout, family, options, settings, cases) => {
    const at = (...path: string[]) => join(root, layout, ...path);
    beforeAll(async () => {
      await generateFamily(at('model'), family, { sizes: { layers: 2 }, ...options });
      await compress(at('model'), at('out'), { bases: 3, steps: 3, threads: 1, ...settings }, LARGER);
    });

    test.each(cases)('%s', async (what, tensor, share, says) => {
      cpSync(at('out'), at(what), { recursive: true });
      forgetManifest(at(what));
      await flip(at(what), tensor, share);
      const { problems } = await verify(at('model'), at(what), { threads: 1 });
      expect(problems).toHaveLength(1);
      expect(problems[0]).toContain(says);
    });
  },
);
