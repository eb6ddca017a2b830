import type { Command } from 'commander';

export interface CommandEntry {
  readonly name: string;
  /** Its arguments, as its help shows them: <needed>, [optional]. */
  readonly args: string;
  /** One line, for the list of commands and the command's own help. */
  readonly summary: string;
  /** The file that adds arguments, flags and action. */
  load(): Promise<{ define(command: Command): void }>;
}

/** Every command. A command's file is loaded only when the command is used: loading them all takes longer than most people wait for help. */
export const COMMANDS: readonly CommandEntry[] = [
  {
    name: 'inspect',
    args: '<model>',
    summary: 'show what is in a checkpoint; reads headers only',
    load: () => import('./inspect.js'),
  },
  {
    name: 'plan',
    args: '<model>',
    summary: 'show what a compression with the same flags would do: sizes, memory, disk, time; reads headers only',
    load: () => import('./plan.js'),
  },
  {
    name: 'compress',
    args: '<model> <out>',
    summary: 'compress a checkpoint into another folder, in one streaming pass',
    load: () => import('./compress.js'),
  },
  {
    name: 'fit',
    args: '<model> <factors>',
    summary: 'fit the experts and write factor files, for "mobe export"; finished files are kept when run again',
    load: () => import('./fit.js'),
  },
  {
    name: 'export',
    args: '<model> <factors> <out>',
    summary: 'write a checkpoint from a model and the factor files of "mobe fit"',
    load: () => import('./export.js'),
  },
  {
    name: 'import',
    args: '<model> <wab> <factors>',
    summary:
      'turn the reference implementation\'s factor files into ours, for "mobe export"; nothing in them is executed',
    load: () => import('./import.js'),
  },
  {
    name: 'expand',
    args: '<native> <out>',
    summary: 'turn a native MoBE checkpoint back into standard weights',
    load: () => import('./expand.js'),
  },
  {
    name: 'verify',
    args: '<model> [out]',
    summary:
      'check a result: with its source, compare the two; alone, whether every byte is as it was written (by its manifest)',
    load: () => import('./verify.js'),
  },
  {
    name: 'report',
    args: '<out>',
    summary:
      'write a page about a result: sizes, errors, how the loss fell, time and memory; and its score on a text, if one is given',
    load: () => import('./report.js'),
  },
  {
    name: 'generate',
    args: '<model>',
    summary: 'continue a text with a model: a source, a converted or a native checkpoint',
    load: () => import('./generate.js'),
  },
  {
    name: 'eval',
    args: '<model...>',
    summary: 'score models on a text: negative log-likelihood and perplexity, and what a conversion lost',
    load: () => import('./eval.js'),
  },
  {
    name: 'engines',
    args: '',
    summary: 'list what can run the arithmetic on this machine, and how fast; tries each for a few seconds',
    load: () => import('./engines.js'),
  },
  {
    name: 'bench',
    args: '<model> [folder]',
    summary: 'measure how fast this machine streams a checkpoint, and what limits it',
    load: () => import('./bench.js'),
  },
  {
    name: 'serve',
    args: '<model>',
    summary: 'offer a checkpoint to other machines: inspect, plan, compress and verify take its ws:// URL as <model>',
    load: () => import('./serve.js'),
  },
  {
    name: 'worker',
    args: '',
    summary: 'fit groups for conversions that run on other machines with --workers',
    load: () => import('./worker.js'),
  },
  {
    name: 'receive',
    args: '<out> [pipe]',
    summary: 'keep the result of one conversion that runs on another machine, or comes through a pipe',
    load: () => import('./receive.js'),
  },
  {
    name: 'stream',
    args: '<model> [to]',
    summary: 'write a checkpoint as it is to standard output, for "mobe receive <out> -" at the other end of a pipe',
    load: () => import('./stream.js'),
  },
];
