import type { Command } from 'commander';
import type { Evaluation, ModelScore } from '../../streams/operations/evaluate.js';
import { scoreCells } from '../conversion/report-page.js';
import { formatBytes } from '../format.js';
import { json, MODEL } from './options.js';
import { addScoringOptions, readText, type ScoringFlags, scoring } from './scoring.js';
import { formatTable, left, right } from './table.js';

interface Flags extends ScoringFlags {
  readonly text: string;
  readonly json?: boolean;
}

export function define(command: Command): void {
  command.argument('<model...>', MODEL[1]).requiredOption('--text <file>', 'UTF-8 text to score');
  addScoringOptions(command)
    .addOption(json())
    .action(async (models: string[], { text: file, json: asJson, ...flags }: Flags) => {
      const { evaluate } = await import('../../streams/operations/evaluate.js');
      const text = await readText(file);
      const result = await scoring(flags, (options, hooks) => evaluate(models, text, options, hooks));
      process.stdout.write(`${asJson ? JSON.stringify(result, null, 2) : describe(result)}\n`);
    });
}

function describe({ models, window, textBytes, engine: { name, device }, peakRssBytes }: Evaluation): string {
  const compared = models.some(({ comparison }) => comparison);
  const reduced = models.some((it) => it.expertsPerToken !== undefined);
  const table = formatTable(
    [
      left('model'),
      ...(reduced ? [right('experts')] : []),
      right('nll/token'),
      right('nll/byte'),
      right('perplexity'),
      ...(compared ? [right('KL'), right('same top-1'), right('nll/token more')] : []),
      right('tokens/s'),
    ],
    models.map((it) => [
      it.model,
      ...(reduced ? [String(it.expertsPerToken ?? '')] : []),
      ...scoreCells(it, compared),
      ...(compared ? [difference(it)] : []),
      it.tokensPerSecond.toPrecision(3),
    ]),
  );
  const [{ windows, predictions }] = models as [ModelScore];
  const facts = `${formatBytes(textBytes)} of text in ${windows} windows of ${window} tokens, ${predictions} predictions; nats${compared ? '; ± one standard error' : ''}; ${name} on ${device}; peak memory ${formatBytes(peakRssBytes)}`;
  return [table, compared ? layerTable(models) : '', facts].filter(Boolean).join('\n\n');
}

/** How much more the nll is than that of the model of `--against`, with its standard error. */
function difference({ comparison }: ModelScore): string {
  if (!comparison) return '';
  const { nllDifference: more, standardError } = comparison;
  const spread = standardError === undefined ? '' : ` ± ${standardError.toFixed(5)}`;
  return `${more < 0 ? '' : '+'}${more.toFixed(5)}${spread}`;
}

/** Relative errors of the hidden states, with a column for each model. */
function layerTable(models: readonly ModelScore[]): string {
  const errors = models.flatMap(({ comparison }) => (comparison ? [comparison.layerErrors] : []));
  const names = models.filter(({ comparison }) => comparison).map(({ model }) => right(model));
  return formatTable(
    [right('error after layer'), ...names],
    (errors[0] ?? []).map((_, layer) => [String(layer), ...errors.map((own) => (own[layer] as number).toFixed(4))]),
  );
}
