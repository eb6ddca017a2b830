/**
 * Measures peak memory and speed of running native conversions, in bf16 and in int8, compared with the same model expanded. Each runs
 * within three budgets: more than it can use, the least with which no weight is read twice, and the least that a run accepts. Each
 * run is a process of its own, and speed is tokens by processor time, so that other work on the machine disturbs little. The runs
 * alternate, and the least time and peak of several rounds count. Writes bench/results/inference.json.
 *
 *   npm run bench:inference -- [LAYERS [ROUNDS]]       layers of the model, default: 6; rounds, default: 2
 */
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { generateCheckpoint } from '../fixtures/generate.js';
import { TINY_MODEL } from '../fixtures/paths.js';
import type { TensorSpec } from '../src/checkpoint/header.js';
import { formatBytes, parseBytes } from '../src/format.js';
import type { Figures } from './inference-child.js';
import { machine } from './machine.js';

/** The proportions of Qwen3-30B-A3B's experts (768 × 2048). */
const SHAPE = { experts: 64, rows: 288, cols: 768 };
const ATTENTION = { num_attention_heads: 12, num_key_value_heads: 2, head_dim: 64 };
/** Vocabulary of the trained fixture, whose tokenizer is used. */
const VOCABULARY = 264;
const FIT = ['--bases', '8', '--steps', '2', '--activation', 'tanh'];
const MODELS = ['expanded', 'native', 'native int8'] as const;
const BUDGETS = ['ample', 'no weight read twice', 'least'] as const;
const AMPLE = '8GB';
const ROUNDS = Number(process.argv[3] ?? 2);
const PROMPT =
  'def main(argv=None):\n    "A prompt of some length, so that a layer sees more than one token at once."\n';
const NEW_TOKENS = 24;
const WINDOW = 256;
const THREADS = 1;

const root = fileURLToPath(new URL('../..', import.meta.url));
const child = fileURLToPath(new URL('inference-child.js', import.meta.url));
const cli = join(root, 'dist/src/cli/main.js');
const TEXT = readFileSync(join(root, 'fixtures/evaluation.txt'), 'utf8');

/** Figures of a model within a budget. */
interface Row {
  readonly model: (typeof MODELS)[number];
  readonly modelBytes: number;
  readonly budget: (typeof BUDGETS)[number];
  /** Bytes of `--max-memory`: of a generated text, and of a scored one, which holds the states of more tokens. */
  readonly budgetBytes: number;
  readonly scoringBudgetBytes: number;
  readonly peakRssBytes: number;
  readonly scoringPeakRssBytes: number;
  /** New tokens by processor time, without the prompt. */
  readonly tokensPerSecond: number;
  /** Tokens of a scored text by the processor time of the whole process. */
  readonly scoredTokensPerSecond: number;
  readonly bytesRead: number;
}

type Way = 'generate' | 'score';

/** Runs inference-child.ts. The files are in the page cache, because they were just written. */
function run<T = Figures>(way: Way, model: string, budget: string, tokens: number): T {
  const input = way === 'score' ? TEXT : PROMPT;
  const args = [child, way, at(model), budget, String(THREADS), input, String(tokens)];
  return JSON.parse(execFileSync(process.execPath, args).toString()) as T;
}

const weightBytes = (folder: string): number =>
  readdirSync(folder)
    .filter((name) => name.endsWith('.safetensors'))
    .reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);

/** Gives attention and vocabulary realistic sizes. Generated families have tiny ones. */
function resize(tensor: TensorSpec): TensorSpec {
  const { num_attention_heads: heads, num_key_value_heads: keys, head_dim: size } = ATTENTION;
  const shapes: Array<[RegExp, number[]]> = [
    [/q_proj/, [heads * size, SHAPE.cols]],
    [/[kv]_proj/, [keys * size, SHAPE.cols]],
    [/o_proj/, [SHAPE.cols, heads * size]],
    [/[qk]_norm/, [size]],
    [/embed_tokens|lm_head/, [VOCABULARY, SHAPE.cols]],
  ];
  const shape = shapes.find(([name]) => name.test(tensor.name))?.[1] ?? tensor.shape;
  return { ...tensor, shape, bytes: 2 * shape.reduce((product, it) => product * it, 1) };
}

async function generateModel(folder: string): Promise<void> {
  const config = { ...ATTENTION, vocab_size: VOCABULARY, num_experts_per_tok: 8, max_position_embeddings: 4096 };
  await generateCheckpoint(folder, { ...SHAPE, layers, config, alter: (tensors) => tensors.map(resize) });
  for (const file of ['tokenizer.json', 'tokenizer_config.json'])
    copyFileSync(join(TINY_MODEL, file), join(folder, file));
}

/** The `--max-memory` of a way of using a model. */
function budgetOf(way: Way, model: string, budget: Row['budget']): string {
  if (budget === 'ample') return AMPLE;
  const { smallest } = run<{ smallest: string }>(way, model, '1MB', way === 'score' ? WINDOW : NEW_TOKENS);
  if (budget === 'least') return smallest;
  const { readOnceBytes = 0 } = run('generate', model, AMPLE, NEW_TOKENS);
  return `${Math.ceil(readOnceBytes / 2 ** 20)}MiB`;
}

/** Measures a model within a budget several times, each time after the other models. */
function measure(budget: Row['budget']): Row[] {
  const cells = MODELS.map((model) => ({
    model,
    own: budgetOf('generate', model, budget),
    scoring: budgetOf('score', model, budget),
  }));
  const runs = Array.from({ length: ROUNDS }, () =>
    cells.map(({ model, own, scoring }) => ({
      first: run('generate', model, own, 1),
      whole: run('generate', model, own, NEW_TOKENS),
      score: run('score', model, scoring, WINDOW),
    })),
  );
  return cells.map(({ model, own, scoring }, i) => {
    const rounds = runs.map((round) => round[i] as NonNullable<(typeof round)[number]>);
    const least = (figure: (it: (typeof rounds)[number]) => number): number => Math.min(...rounds.map(figure));
    const { whole, score } = rounds[0] as (typeof rounds)[number];
    const seconds = least((it) => it.whole.processorSeconds) - least((it) => it.first.processorSeconds);
    const row: Row = {
      model,
      modelBytes: weightBytes(at(model)),
      budget,
      budgetBytes: parseBytes(own) as number,
      scoringBudgetBytes: parseBytes(scoring) as number,
      peakRssBytes: least((it) => it.whole.peakRssBytes),
      scoringPeakRssBytes: least((it) => it.score.peakRssBytes),
      tokensPerSecond: (whole.tokens - 1) / seconds,
      scoredTokensPerSecond: score.tokens / least((it) => it.score.processorSeconds),
      bytesRead: whole.bytesRead as number,
    };
    console.log(
      `${model}, ${formatBytes(row.modelBytes)}, ${budget} (${formatBytes(row.budgetBytes)}, ${formatBytes(row.scoringBudgetBytes)}): peak ${formatBytes(row.peakRssBytes)}, scoring ${formatBytes(row.scoringPeakRssBytes)}; ${row.tokensPerSecond.toPrecision(3)} tokens/s, scoring ${row.scoredTokensPerSecond.toPrecision(3)}; ${formatBytes(row.bytesRead)} read`,
    );
    return row;
  });
}

const layers = Number(process.argv[2] ?? 6);
const work = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-inference-'));
const at = (name: string): string => join(work, name);
const mobe = (...args: string[]): void => void execFileSync(process.execPath, [cli, ...args], { stdio: 'ignore' });
const load = loadavg();
let rows: Row[] = [];
try {
  await generateModel(at('source'));
  mobe('compress', at('source'), at('native'), ...FIT);
  mobe('compress', at('source'), at('native int8'), ...FIT, '--dtype', 'int8');
  mobe('expand', at('native'), at('expanded'));
  rows = BUDGETS.flatMap(measure);
} finally {
  rmSync(work, { recursive: true, force: true });
}
mkdirSync(join(root, 'bench/results'), { recursive: true });
writeFileSync(
  join(root, 'bench/results/inference.json'),
  `${JSON.stringify({ machine: { ...machine, load }, threads: THREADS, shape: { layers, ...SHAPE, ...ATTENTION }, rows }, null, 2)}\n`,
);
