import { expect, test } from 'vitest';
import { modelCard } from './model-card.js';
import type { OutputFormat } from './settings.js';

const card = (format: OutputFormat): string =>
  modelCard({
    ...{ source: 'm', format, parametersBefore: 4, parametersAfter: 3, bytesBefore: 8, bytesAfter: 6 },
    ...{ settings: { steps: 5 }, groups: [] },
  });

test('the card of a native checkpoint says which programs load it, which refuse it, and how these get standard weights', () => {
  const [, loading = ''] = /## Loading\n(.*?)## Settings/s.exec(card('mobe')) ?? [];
  for (const words of [
    'transformers 5.24: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`',
    'pip install "$(npx mobe serving --path)"',
    'vLLM without the plugin, SGLang and llama.cpp refuse it',
    '`npx mobe expand folder out`',
  ])
    expect(loading).toContain(words);
});

test('the card of standard weights has none of that: they load like their source', () => {
  expect(card('hf')).toContain('This is standard weights');
  expect(card('hf')).not.toMatch(/Loading|plugin|trust_remote_code/);
});
