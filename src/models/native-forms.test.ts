import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import type { NativeForm } from './family.js';
import { MODELLING_NAMES, modellingFiles } from './modelling-files.js';
import { modelTypeOf, nativeForm } from './native-forms.js';

const FORMS = [
  { model_type: 'qwen3_moe', architectures: ['Qwen3MoeForCausalLM'] },
  { model_type: 'kimi_k2', architectures: ['DeepseekV3ForCausalLM'] },
  { model_type: 'bailing_moe_v2', architectures: ['BailingMoeV2ForCausalLM'] },
  { model_type: 'qwen3_vl_moe', architectures: ['Qwen3VLMoeForConditionalGeneration'] },
  { model_type: 'mixtral' },
].map((config) => nativeForm(config));

test('a native checkpoint has an architecture that no other program takes for a dense one', () => {
  expect(FORMS.map((form) => [form?.architecture, form?.modelType])).toEqual(
    [
      'Qwen3MoBEForCausalLM',
      'DeepseekV3MoBEForCausalLM',
      'BailingV2MoBEForCausalLM',
      'Qwen3VLMoBEForConditionalGeneration',
      'MoBEForCausalLM',
    ].map((architecture) => [architecture, 'mobe']),
  );
});

test('AutoModel does not load it: vLLM would take that for a dense model', () => {
  const classes = FORMS.map((form) => form?.autoClasses);
  expect(classes.flat()).not.toContain('AutoModel');
  expect(classes[0]).toEqual(['AutoModelForCausalLM']);
  expect(classes[3]).toContain('AutoModelForImageTextToText');
});

test('it carries its modelling files, Ling also its own model', () => {
  const files = FORMS.map((form) => form && modellingFiles(form).map(({ target }) => target));
  expect(files[0]).toEqual(['modeling_mobe.py', 'mobe_factors.py', 'mobe_fused.py']);
  expect(files[2]).toEqual(['modeling_bailing_mobe.py', 'modeling_mobe.py', 'mobe_factors.py', 'mobe_fused.py']);
});

test('the files are there, and all that they import from beside them', () => {
  for (const form of FORMS) {
    const files = modellingFiles(form as NativeForm);
    const names = files.map(({ target }) => target);
    for (const { source } of files) {
      const imports = readFileSync(source, 'utf8').matchAll(/^from \.(\w+) import/gm);
      for (const [, module] of imports) expect(names).toContain(`${module}.py`);
    }
    // An expansion leaves them out.
    expect(MODELLING_NAMES).toEqual(expect.arrayContaining(names));
  }
});

test('a model that was not tested has no native form', () => {
  expect(nativeForm({ model_type: 'acme_moe', architectures: ['AcmeForCausalLM'] })).toBeUndefined();
});

test('the type of a native model is that of its source', () => {
  expect(modelTypeOf({ model_type: 'mobe', mobe: { source_model_type: 'mixtral' } })).toBe('mixtral');
  expect(modelTypeOf({ model_type: 'mixtral' })).toBe('mixtral');
  expect(modelTypeOf({})).toBe('unknown');
});
