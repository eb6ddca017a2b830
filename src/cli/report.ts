import { Command } from 'commander';
import { writeReport } from '../../streams/operations/report.js';
import { json } from './options.js';
import { addScoringOptions, readText, type ScoringFlags, scoring } from './scoring.js';

interface Flags extends ScoringFlags {
  readonly html?: string;
  readonly text?: string;
  readonly json?: boolean;
}

export function reportCommand(): Command {
  const command = new Command('report')
    .description(
      'write a page about a result: sizes, errors, how the loss fell, time and memory; and its score on a text, if one is given',
    )
    .argument('<out>', 'folder that compress, fit, export or expand wrote')
    .option('--html <file>', 'page to write (default: mobe.report.html in the folder)')
    .option('--text <file>', 'UTF-8 text to score the result on; what follows is for that');
  return addScoringOptions(command)
    .addOption(json())
    .action(async (out: string, { html, text: file, json: asJson, ...flags }: Flags) => {
      const text = file === undefined ? undefined : await readText(file);
      const { page, record, evaluation } = await scoring(flags, (options, hooks) =>
        writeReport(out, { html, text, scoring: options }, hooks),
      );
      const told = asJson ? JSON.stringify({ page, record, evaluation }, null, 2) : `${page} is written.`;
      process.stdout.write(`${told}\n`);
    });
}
