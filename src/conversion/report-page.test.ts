import { expect, test } from 'vitest';
import { pageFaults } from '../../fixtures/page.js';
import { conversionPage } from './report-page.js';
import type { FittedGroupReport, KeptGroupReport, StoredReport } from './run-report.js';
import { parseReport } from './stored-report.js';

const group = (layer: number, projection: 'gate_proj' | 'up_proj'): FittedGroupReport => ({
  layer,
  projection,
  group: 0,
  groups: 1,
  relativeError: 0.1 + layer / 100,
  mse: 3.1e-4,
  sigma: 0.0123,
  steps: 600,
  seconds: 61,
  losses: Array.from({ length: 32 }, (_, i) => [i + 1, 0.5 / (i + 1 + layer)] as const),
});

const record = (layers: number): StoredReport => ({
  version: 1,
  kind: 'compress',
  sourceFingerprint: 'f'.repeat(64),
  engine: { name: 'onnx-cpu', device: 'a processor', kind: 'cpu' },
  settings: { bases: 8, engine: 'onnx-cpu' },
  parametersBefore: 30e9,
  parametersAfter: 22.8e9,
  bytesBefore: 60 * 2 ** 30,
  bytesAfter: 45 * 2 ** 30,
  peakRssBytes: 7 * 2 ** 30,
  seconds: 3600,
  files: ['mobe.json'],
  groups: Array.from({ length: layers }, (_, layer) => [group(layer, 'gate_proj'), group(layer, 'up_proj')]).flat(),
});

test('tells sizes, errors, time and memory, and how the loss of each group fell', () => {
  const page = conversionPage('model', record(3));
  expect(pageFaults(page)).toEqual([]);
  const expected = [
    '76.0 %',
    '30.0 B → 22.8 B',
    '60.0 GiB → 45.0 GiB',
    '0.1100',
    '0.1000 to 0.1200',
    '1 h 00 min',
    '7.0 GiB',
  ];
  for (const text of expected) expect(page).toContain(text);
  for (const layer of [0, 1, 2]) expect(page).toContain(`>layer ${layer} up_proj</text>`);
  expect(page).toContain('onnx-cpu on a processor');
  expect(page).not.toContain('Scores');
  expect(page).not.toContain('To be known');
});

test('of many groups it shows how they spread, and stays small', () => {
  const page = conversionPage('model', record(61));
  expect(pageFaults(page)).toEqual([]);
  for (const label of ['gate_proj, highest', 'gate_proj, median', 'up_proj, lowest'])
    expect(page).toContain(`>${label}</text>`);
  expect(page).not.toContain('>layer 0 gate_proj</text>');
  expect(page).toContain('<td>layer 60 up_proj</td>');
  expect(page.length).toBeLessThan(100_000);
});

test('scores come with what they are compared with', () => {
  const score = { model: 'source', nll: 2, nllPerByte: 0.8, perplexity: 7.389 };
  const comparison = { divergence: 0.0123, agreement: 0.954 };
  const page = conversionPage('model', record(1), [score, { ...score, model: 'result', nll: 2.0531, comparison }]);
  expect(pageFaults(page)).toEqual([]);
  for (const text of ['2.0531', '2.0000 of the source', '0.01230', '95.4 %']) expect(page).toContain(text);
  expect(conversionPage('model', record(1), [score])).toContain('perplexity 7.389');
});

test('what fits badly or was kept is told first', () => {
  const { losses: _, ...bad } = { ...group(0, 'gate_proj'), relativeError: 0.8 };
  const kept: KeptGroupReport = { layer: 1, projection: 'up_proj', group: 0, groups: 1, seconds: 2, keptError: 0.6 };
  const page = conversionPage('model', { ...record(0), groups: [bad, kept] });
  expect(pageFaults(page)).toEqual([]);
  expect(page.indexOf('layer 0 gate_proj fits badly')).toBeGreaterThan(page.indexOf('To be known'));
  expect(page).toContain('layer 1 up_proj was kept uncompressed');
});

test('a kept error that was not a number is null in a record, and told', () => {
  const kept = { layer: 1, projection: 'up_proj', group: 0, groups: 1, seconds: 2, keptError: Number.NaN };
  const read = parseReport(JSON.parse(JSON.stringify({ ...record(1), groups: [kept] })));
  expect(conversionPage('model', read)).toContain('relative error is not a number');
});

test('of factors that were exported no times are known, and none are shown', () => {
  const groups = record(2).groups.map((it) => ({ ...it, seconds: 0 }));
  const page = conversionPage('model', { ...record(2), kind: 'export', groups });
  expect(pageFaults(page)).toEqual([]);
  expect(page).not.toContain('Time by layer');
  expect(page.match(/<td>not known<\/td>/g)).toHaveLength(4);
});

test('a record of an earlier version, or of an expansion, has no losses or no errors', () => {
  const groups = record(2).groups.map((it) => ({ ...it, losses: undefined }));
  const page = conversionPage('model', { ...record(2), groups });
  expect(pageFaults(page)).toEqual([]);
  expect(page).not.toContain('How the loss fell');
  expect(page).toContain('by layer');
  expect(pageFaults(conversionPage('model', { ...record(0), kind: 'expand' }))).toEqual([]);
});

test('names and settings are text, whatever they hold', () => {
  const hostile = '</title><script>alert(1)</script>"\'&';
  const page = conversionPage(hostile, { ...record(1), settings: { [hostile]: hostile } }, [
    { model: hostile, nll: 1, nllPerByte: 1, perplexity: Math.E },
  ]);
  expect(pageFaults(page)).toEqual([]);
});

test('an allocation is shown with its sensitivities, and its prediction beside what was measured', () => {
  const projections = [0, 1].flatMap((layer) => [
    {
      layer,
      projection: 'gate_proj',
      bases: 4 + layer,
      sensitivity: 1e-4 * (1 + layer),
      probeBases: 8,
      predicted: 1e-4,
    },
    { layer, projection: 'down_proj', bases: 'dense', sensitivity: 3e-3, probeBases: 8, predicted: 0 },
  ]);
  const curve = [
    [0.5, 0.01],
    [0.7, 0.001],
  ];
  const settings = { bases: 8, allocation: { measure: 'kl', projections, predicted: 2e-4, curve } };
  const comparison = { divergence: 2.5e-4, agreement: 0.99 };
  const score = { model: 'result', nll: 2, nllPerByte: 0.8, perplexity: 7.389, comparison };
  const page = conversionPage('model', { ...record(2), settings }, [score]);
  expect(pageFaults(page)).toEqual([]);
  for (const text of ['dense', '50.0 %', 'predicted to lose 0.000200', '0.000250', 'Predicted loss against size'])
    expect(page).toContain(text);
  expect(page).not.toContain('<td>allocation</td>');
  expect(conversionPage('model', { ...record(2), settings: { allocation: { measure: 'x' } } })).not.toContain(
    'Bases by layer',
  );
});
