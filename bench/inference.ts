/**
 * Measures peak memory and speed of running a model: a generated checkpoint three times as large as its budget, and native
 * conversions, in bf16 and in int8, compared with the expansion. These run within three budgets: more than they can use, the least
 * with which no weight is read twice, and a small one. Each run is a process of its own. Writes bench/results/inference.json.
 *
 *   npm run bench:inference -- [GB]        size of the large checkpoint; default: 1.8
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { generateCheckpoint } from '../fixtures/generate.js';
import { TINY_MODEL } from '../fixtures/paths.js';
import type { TensorSpec } from '../src/checkpoint/header.js';
import { formatBytes } from '../src/format.js';
import type { Generation } from '../streams/operations/generate.js';
import { machine } from './machine.js';

const SHAPE = { experts: 64, rows: 512, cols: 1024 };
const ATTENTION = { num_attention_heads: 16, num_key_value_heads: 4, head_dim: 64 };
/** Vocabulary of the trained fixture, whose tokenizer is used. */
const VOCABULARY = 264;
const BYTES_PER_LAYER = 2 * 3 * SHAPE.experts * SHAPE.rows * SHAPE.cols;
const PROMPT =
  'def main(argv=None):\n    "A prompt of some length, so that a layer sees more than one token at once."\n';

const NEW_TOKENS = 32;
/** One thread, so that other work on the machine disturbs little. */
const THREADS = 1;

const root = fileURLToPath(new URL('../..', import.meta.url));
const child = fileURLToPath(new URL('inference-child.js', import.meta.url));
const cli = join(root, 'dist/src/cli/main.js');

interface Row extends Generation {
  readonly model: string;
  readonly modelBytes: number;
  readonly budget: string;
}

const rows: Row[] = [];

/** Measures one run. The files are in the page cache, because they were just written. */
function measure(model: string, folder: string, budget: string): Row {
  const args = [child, folder, PROMPT, budget, String(NEW_TOKENS), String(THREADS)];
  const result = JSON.parse(execFileSync(process.execPath, args).toString()) as Generation;
  const row: Row = { model, modelBytes: weightBytes(folder), budget, ...result };
  rows.push(row);
  console.log(
    `${model}, ${formatBytes(row.modelBytes)}, within ${budget}: peak ${formatBytes(row.peakRssBytes)}, ${row.tokensPerSecond?.toPrecision(3)} tokens/s, prompt ${row.promptSeconds.toFixed(2)} s, ${formatBytes(row.bytesRead)} read`,
  );
  return row;
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

async function generateModel(folder: string, layers: number): Promise<void> {
  const config = { ...ATTENTION, vocab_size: VOCABULARY, num_experts_per_tok: 8, max_position_embeddings: 4096 };
  await generateCheckpoint(folder, { ...SHAPE, layers, config, alter: (tensors) => tensors.map(resize) });
  for (const file of ['tokenizer.json', 'tokenizer_config.json'])
    copyFileSync(join(TINY_MODEL, file), join(folder, file));
}

const gigabytes = Number(process.argv[2] ?? 1.8);
const work = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-inference-'));
const at = (name: string): string => join(work, name);
try {
  await generateModel(at('large'), Math.ceil((gigabytes * 1e9) / BYTES_PER_LAYER));
  measure('large', at('large'), `${Math.floor(weightBytes(at('large')) / 3e6)}MB`);
  rmSync(at('large'), { recursive: true });

  await generateModel(at('source'), 2);
  const fit = ['--bases', '8', '--steps', '2', '--activation', 'tanh'];
  execFileSync(process.execPath, [cli, 'compress', at('source'), at('native'), ...fit], { stdio: 'ignore' });
  const quantised = [...fit, '--dtype', 'int8'];
  execFileSync(process.execPath, [cli, 'compress', at('source'), at('native int8'), ...quantised], { stdio: 'ignore' });
  execFileSync(process.execPath, [cli, 'expand', at('native'), at('expanded')], { stdio: 'ignore' });
  const models = ['expanded', 'native', 'native int8'];
  const most = models.map((model) => measure(model, at(model), '4GB'));
  for (const [i, model] of models.entries())
    measure(model, at(model), `${Math.ceil((most[i] as Row).readOnceBytes / 2 ** 20)}MiB`);
  for (const model of models) measure(model, at(model), '600MB');
} finally {
  rmSync(work, { recursive: true, force: true });
}
mkdirSync(join(root, 'bench/results'), { recursive: true });
writeFileSync(
  join(root, 'bench/results/inference.json'),
  `${JSON.stringify({ machine, threads: THREADS, shape: { ...SHAPE, ...ATTENTION }, rows }, null, 2)}\n`,
);
