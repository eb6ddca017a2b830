import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { BROWSER, photograph } from '../../fixtures/browser.js';
import { pageFaults } from '../../fixtures/page.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { PAGE_FILE } from '../../src/checkpoint/side-files.js';
import { NotACheckpointError, WriteError } from '../../src/errors.js';
import { compress } from './compress.js';
import { evaluate } from './evaluate.js';
import { expand } from './expand.js';
import { fitFactors } from './fit.js';
import { writeReport } from './report.js';
import { verifyIntegrity } from './verify-manifest.js';

const folder = temporaryFolder();
const at = (...path: string[]): string => join(folder, ...path);
const out = at('out');
const options = { bases: 8, steps: 20, layers: [0, 1] };
const TEXT = readFileSync(EVALUATION_TEXT, 'utf8').slice(0, 600);

beforeAll(async () => {
  await compress(TINY_MODEL, out, options);
  await writeReport(out);
});

const page = (): string => readFileSync(at('out', PAGE_FILE), 'utf8');

test('the page has the losses that the record has, which fall', async () => {
  const { record } = await writeReport(out);
  expect(record.groups).toHaveLength(4);
  for (const group of record.groups) {
    const { losses = [] } = group as { losses?: Array<[number, number]> };
    expect(losses.map(([step]) => step)).toEqual([...new Set(losses.map(([step]) => step))].sort((a, b) => a - b));
    expect(losses.at(0)?.[0]).toBe(1);
    expect(losses.at(-1)?.[0]).toBe(20);
    expect(losses.at(-1)?.[1]).toBeLessThan(0.5 * (losses[0]?.[1] as number));
  }
  expect(pageFaults(page())).toEqual([]);
  expect(page()).toContain('>layer 1 up_proj</text>');
});

test('a result with its page is whole, is found again, expands without it, and can be replaced', THOROUGH, async () => {
  expect(await verifyIntegrity(out)).toMatchObject({ problems: [], unlisted: [] });
  expect(await compress(TINY_MODEL, out, options)).toMatchObject({ already: true });
  await expand(out, at('expanded'));
  expect(readdirSync(at('expanded'))).not.toContain(PAGE_FILE);
  await compress(TINY_MODEL, at('again'), options);
  await writeReport(at('again'));
  writeFileSync(at('again', `${PAGE_FILE}.new`), '<'); // a killed process left it
  await compress(TINY_MODEL, at('again'), { ...options, steps: 3 }, { force: true });
  expect(readdirSync(at('again')).filter((name) => name.startsWith(PAGE_FILE))).toEqual([]);
});

test('factors have a page too, and go on with it', async () => {
  await fitFactors(TINY_MODEL, at('factors'), options);
  const { record } = await writeReport(at('factors'));
  expect(record.kind).toBe('fit');
  expect(await fitFactors(TINY_MODEL, at('factors'), options)).toMatchObject({ already: true });
});

test('a text is scored, on the result and on what it was made from', async () => {
  const html = at('scored.html');
  const { evaluation } = await writeReport(out, { html, text: TEXT, scoring: { against: TINY_MODEL } });
  const { models } = await evaluate([out], TEXT, { against: TINY_MODEL });
  expect(evaluation?.models.map(({ nll }) => nll)).toEqual(models.map(({ nll }) => nll));
  const scored = readFileSync(html, 'utf8');
  expect(pageFaults(scored)).toEqual([]);
  for (const { nll } of models) expect(scored).toContain(nll.toFixed(5));
});

describe('refused:', () => {
  test('a folder that is no result', async () => {
    mkdirSync(at('empty'));
    await expect(writeReport(at('empty'))).rejects.toThrow(NotACheckpointError);
    expect(readdirSync(at('empty'))).toEqual([]);
  });

  test.each([
    ['sizes', { parametersBefore: '5' }],
    ['groups', { groups: [{ layer: 0, projection: 'up_proj', group: 0, groups: 1, seconds: 1, relativeError: 0.1 }] }],
    ['losses', { groups: [{ layer: 0, projection: 'up_proj', group: 0, groups: 1, seconds: 1, losses: [['1', 2]] }] }],
    ['an engine', { engine: 'a' }],
  ])('a record whose %s are not what mobe writes', async (what, change) => {
    mkdirSync(at(what));
    const record = JSON.parse(readFileSync(at('out', 'mobe.json'), 'utf8'));
    writeFileSync(at(what, 'mobe.json'), JSON.stringify({ ...record, ...change }));
    await expect(writeReport(at(what))).rejects.toThrow(NotACheckpointError);
  });

  test('a comparison without a text, and a text for factors', async () => {
    const compared = writeReport(out, { scoring: { against: TINY_MODEL } });
    await expect(compared).rejects.toThrow('give --text too');
    await fitFactors(TINY_MODEL, at('no-model'), { ...options, layers: [0], steps: 1 });
    const scored = writeReport(at('no-model'), { text: TEXT });
    await expect(scored).rejects.toThrow('mobe export');
    expect(readdirSync(at('no-model'))).not.toContain(PAGE_FILE);
  });

  test('a place where no page can be written', async () => {
    const html = at('nowhere', 'page.html');
    await expect(writeReport(out, { html })).rejects.toThrow(WriteError);
    await expect(writeReport(out, { html })).rejects.toThrow(html);
  });
});

test.skipIf(!BROWSER)('a browser shows it, light and dark (skipped without Chromium, or MOBE_BROWSER)', async () => {
  for (const dark of [false, true]) {
    const picture = await photograph(at('out', PAGE_FILE), at(`dark-${dark}.png`), at('profile'), dark);
    expect(picture).toMatchObject({ width: 1100, height: 1800 });
    expect(picture.values).toBeGreaterThan(100);
    expect(picture.brightness > 128).toBe(!dark);
  }
});

test.skipIf(!BROWSER)('a blank page would be told from it', async () => {
  writeFileSync(at('blank.html'), '<!DOCTYPE html><title>blank</title>');
  expect((await photograph(at('blank.html'), at('blank.png'), at('profile'))).values).toBeLessThan(20);
});
