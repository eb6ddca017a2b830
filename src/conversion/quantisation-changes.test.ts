/** A result in bf16 has no entry on quantisation. A partly quantised one lists its plain modules as its loaders read them. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { dtypeContradictions } from '../checkpoint/dtype-claims.js';
import { type Checkpoint, openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { parsePythonJson } from '../checkpoint/python-json.js';
import { editConfig } from '../models/native.js';
import { type CompressionPlan, planCompression } from './compression-plan.js';
import { quantConfigFileChanges, quantisationChanges } from './quantisation-changes.js';

const root = temporaryFolder();
const FP8 = { quant_method: 'fp8', weight_block_size: [12, 16] };
let source: Checkpoint;
let decoded: CompressionPlan;
let kept: CompressionPlan;

/** A plan over a GPTQ checkpoint of three layers; `kept` decodes layer 1 and leaves the others quantised. */
beforeAll(async () => {
  await generateFamily(join(root, 'gptq'), 'qwen3_moe', { quantised: 'gptq' });
  source = await openCheckpoint(join(root, 'gptq'));
  const options = { bases: 3, format: 'hf', engine: 'onnx-cpu' } as const;
  decoded = await planCompression(source, options);
  kept = await planCompression(source, { ...options, layers: [1], keepQuantized: true });
});

const changed = (plan: CompressionPlan, config: object): unknown => {
  const text = JSON.stringify(config, null, 2);
  return parsePythonJson(
    editConfig(text, quantisationChanges({ ...plan, source: { ...source, config: { ...config } } }, plan.model)),
  );
};

const EXPERTS = 'model.layers.1.mlp.experts';

describe('nothing is quantised any more:', () => {
  test.each<[string, object, object]>([
    ['at the top', { a: 1, quantization_config: FP8 }, { a: 1 }],
    [
      'nested twice',
      { thinker_config: { text_config: { b: 2, quantization_config: FP8 } } },
      { thinker_config: { text_config: { b: 2 } } },
    ],
    [
      'at every level, under both names',
      {
        quantization_config: FP8,
        compression_config: FP8,
        text_config: { quantization_config: FP8 },
        talker_config: { text_config: { quantization_config: FP8 } },
      },
      { text_config: {}, talker_config: { text_config: {} } },
    ],
    [
      'a null stays',
      { quantization_config: null, x: [{ quantization_config: 1 }] },
      { quantization_config: null, x: [{ quantization_config: 1 }] },
    ],
    ['a key with a dot is no path', { 'a.b': { quantization_config: FP8 } }, { 'a.b': { quantization_config: FP8 } }],
  ])('%s', (_, config, expected) => expect(changed(decoded, config)).toEqual(expected));

  test("ModelOpt's file is left out", () =>
    expect(quantConfigFileChanges(decoded, decoded.model, { quantization: { quant_algo: 'FP8' } })).toBe('leave out'));
});

describe('a part stays quantised:', () => {
  test.each<[string, object, object]>([
    ["DeepSeek's FP8", FP8, { modules_to_not_convert: [EXPERTS] }],
    [
      'FP8 with a list',
      { ...FP8, modules_to_not_convert: ['lm_head'] },
      { modules_to_not_convert: ['lm_head', EXPERTS] },
    ],
    ["vLLM's list", { ...FP8, ignored_layers: ['lm_head'] }, { ignored_layers: ['lm_head', EXPERTS] }],
    [
      'compressed-tensors',
      { quant_method: 'compressed-tensors', config_groups: {} },
      { ignore: ['re:model\\.layers\\.1\\.mlp\\.experts\\..*'] },
    ],
    [
      'ModelOpt',
      { quant_method: 'modelopt', quant_algo: 'FP8', ignore: ['lm_head'] },
      { ignore: ['lm_head', `${EXPERTS}*`] },
    ],
    [
      'ModelOpt, older',
      { quant_method: 'modelopt', exclude_modules: ['lm_head'] },
      { exclude_modules: ['lm_head', `${EXPERTS}*`] },
    ],
    [
      'GPTQModel',
      { quant_method: 'gptq', bits: 4, dynamic: { a: {} } },
      { dynamic: { a: {}, '-:model\\.layers\\.1\\.mlp\\.experts\\..*': {} } },
    ],
  ])('%s', (_, entry, expected) => {
    expect(changed(kept, { quantization_config: entry })).toEqual({ quantization_config: { ...entry, ...expected } });
    const nested = { quantization_config: entry, llm_config: { quantization_config: entry } };
    expect(changed(kept, nested)).toEqual({
      quantization_config: { ...entry, ...expected },
      llm_config: { quantization_config: { ...entry, ...expected } },
    });
  });

  test('nothing changes if the converted experts are quantised again', async () => {
    const folder = join(root, 'fp8');
    await generateFamily(folder, 'qwen3_moe', { quantised: 'fp8', block: [12, 16] });
    const plan = await planCompression(await openCheckpoint(folder), {
      ...{ bases: 3, format: 'hf', engine: 'onnx-cpu', layers: [1], keepQuantized: true },
    });
    expect(plan.quantised.after).toBe(plan.quantised.before);
    expect(plan.bytesAfter).toBe(plan.bytesBefore);
    expect(changed(plan, { quantization_config: FP8 })).toEqual({ quantization_config: FP8 });
    expect(quantConfigFileChanges(plan, plan.model, { quantization: { quant_algo: 'FP8' } })).toEqual({});
  });

  test("ModelOpt's file excludes the modules too", () => {
    const file = { producer: { name: 'modelopt' }, quantization: { quant_algo: 'FP8', exclude_modules: ['lm_head'] } };
    expect(quantConfigFileChanges(kept, kept.model, file)).toEqual({
      'quantization.exclude_modules': ['lm_head', `${EXPERTS}*`],
    });
    expect(quantConfigFileChanges(kept, kept.model, { quantization: { quant_algo: 'FP8' } })).toEqual({
      'quantization.exclude_modules': [`${EXPERTS}*`],
    });
  });
});

describe('config files and tensors contradict each other:', () => {
  const plain = { name: 'a', dtype: 'BF16', shape: [2, 2] };
  const contradictions = (config: object, tensors: object[], quantConfig?: object) =>
    dtypeContradictions(
      {
        config: { ...config },
        tensors: new Map(tensors.map((it, i) => [String(i), it])) as unknown as Checkpoint['tensors'],
      },
      quantConfig && { ...quantConfig },
    );

  test('a nested entry over plain weights', () =>
    expect(contradictions({ thinker_config: { text_config: { quantization_config: FP8 } } }, [plain])).toEqual([
      'config.json: "thinker_config.text_config.quantization_config" says FP8, but no tensor is quantised',
    ]));
  test("ModelOpt's file over plain weights", () => expect(contradictions({}, [plain], {})).toHaveLength(1));
  test('FP8 of which nothing is said', () =>
    expect(contradictions({}, [{ ...plain, dtype: 'F8_E4M3' }])).toHaveLength(1));
  test('another torch_dtype than any tensor has', () => {
    expect(contradictions({ torch_dtype: 'float16' }, [plain])).toEqual([
      'config.json: "torch_dtype" is "float16", but no tensor is F16',
    ]);
    expect(contradictions({ dtype: 'bfloat16' }, [plain, { ...plain, dtype: 'F32' }])).toEqual([]);
  });
  test('a real quantised checkpoint has none, nor one with integer buffers', async () => {
    expect(dtypeContradictions(source)).toEqual([]);
    expect(contradictions({}, [plain, { name: 'ids', dtype: 'I64', shape: [2, 2] }])).toEqual([]);
  });
});

test('the changes are of the text alone: what is not changed is as it was', () => {
  const folder = join(root, 'gptq');
  const text = readFileSync(join(folder, 'config.json'), 'utf8').replace(
    '{',
    '{\n  "time_step_limit": [0.0, Infinity],',
  );
  writeFileSync(join(folder, 'config.json'), text);
  const edited = editConfig(text, quantisationChanges(decoded, decoded.model));
  expect(edited).toContain('"time_step_limit": [0.0, Infinity],');
  expect(edited).not.toContain('quantization_config');
});
