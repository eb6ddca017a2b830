import type { Command } from 'commander';

/** A command of `mobe`. */
export interface CommandEntry {
  readonly name: string;
  /** The arguments as the help shows them: <required>, [optional]. */
  readonly args: string;
  /** One line for the list of commands and for the command's own help. */
  readonly summary: string;
  /** The file that adds arguments, flags and action. */
  load(): Promise<{ define(command: Command): void }>;
}

/**
 * All commands. The file of a command is loaded only when the command is used, because loading all would make the help slow.
 */
export const COMMANDS: readonly CommandEntry[] = [
  {
    name: 'inspect',
    args: '<model>',
    summary: 'show what is in a checkpoint: layers, experts, sizes, dtypes; reads headers only',
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
    summary: 'compress a checkpoint into another folder; it is streamed, so it may be larger than memory',
    load: () => import('./compress.js'),
  },
  {
    name: 'calibrate',
    args: '<model> <record>',
    summary: 'record what the experts see on a text, for "--calibration"; run again, it resumes',
    load: () => import('./calibrate.js'),
  },
  {
    name: 'fit',
    args: '<model> <factors>',
    summary: 'fit the experts and write factor files, for "mobe export"; run again, it keeps finished files',
    load: () => import('./fit.js'),
  },
  {
    name: 'farm',
    args: '[command]',
    summary: 'compress with any number of machines that take groups from a queue in Redis: submit, work, status',
    load: () => import('./farm.js'),
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
      'convert factor files of the reference implementation, for "mobe export"; nothing in the files is executed',
    load: () => import('./import.js'),
  },
  {
    name: 'repair',
    args: '<model> <result> <out>',
    summary: 'fit finished factors anew to a calibration record: a smaller loss at the same size, in seconds a layer',
    load: () => import('./repair.js'),
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
      'check a result: "verify <model> <out>" compares it with its source, "verify <out>" checks that no byte has changed since it was written',
    load: () => import('./verify.js'),
  },
  {
    name: 'report',
    args: '<out>',
    summary: 'write an HTML page about a result: sizes, errors, loss curves, time, memory and, with --text, its score',
    load: () => import('./report.js'),
  },
  {
    name: 'generate',
    args: '<model>',
    summary: 'continue a text with a model: a dense, a converted or a native checkpoint',
    load: () => import('./generate.js'),
  },
  {
    name: 'eval',
    args: '<model...>',
    summary:
      'score models on a text: negative log-likelihood, perplexity and, with --against, the loss by a conversion',
    load: () => import('./eval.js'),
  },
  {
    name: 'serving',
    args: '',
    summary: 'say how vLLM serves a native checkpoint; --path prints where the plugin for it is',
    load: () => import('./serving.js'),
  },
  {
    name: 'engines',
    args: '',
    summary: 'list the engines that can compute on this machine, and their speed; tries each for a few seconds',
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
    summary: 'serve a checkpoint to other machines: inspect, plan, compress and verify take its ws:// URL as <model>',
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
    summary: 'receive the result of one conversion from another machine or a pipe, and write it to <out>',
    load: () => import('./receive.js'),
  },
  {
    name: 'stream',
    args: '<model> [to]',
    summary: 'send a checkpoint unchanged to standard output, for "mobe receive <out> -" at the other end of a pipe',
    load: () => import('./stream.js'),
  },
];
