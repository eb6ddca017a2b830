import type { Command } from 'commander';
import { json } from './options.js';
import { addScoringOptions, readText, type ScoringFlags, scoring } from './scoring.js';

interface Flags extends ScoringFlags {
  readonly html?: string;
  readonly text?: string;
  readonly json?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<out>', 'folder that compress, fit, export or expand wrote')
    .option('--html <file>', 'page to write (default: mobe.report.html in the folder)')
    .option('--text <file>', 'UTF-8 text to score the result on; what follows is for that');
  addScoringOptions(command)
    .addOption(json())
    .action(async (out: string, { html, text: file, json: asJson, ...flags }: Flags) => {
      const { writeReport } = await import('../../streams/operations/report.js');
      const text = file === undefined ? undefined : await readText(file);
      const { page, record, evaluation } = await scoring(flags, (options, hooks) =>
        writeReport(out, { html, text, scoring: options }, hooks),
      );
      const told = asJson ? JSON.stringify({ page, record, evaluation }, null, 2) : `${page} is written.`;
      process.stdout.write(`${told}\n`);
    });
}
