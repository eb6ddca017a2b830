/**
 * Fits pairs of a rank and a number of bases that have about the same number of parameters, to check the rule by which sizes are
 * chosen where the default share is not possible at full rank (src/methods/mobe/default-sizes.ts). The groups are cut from the trained
 * fixture's experts, to have other ratios p/d, and random. Writes bench/results/sizes.json.
 *
 *   npm run bench:sizes -- [--steps 150] [--shares 0.5,0.64,0.8] [--out bench/results/sizes.json]
 */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { usualBatch } from '../src/conversion/memory-plan.js';
import { createEngine } from '../src/engine/create-engine.js';
import { addMoments, deviation, measureMoments, NO_MOMENTS } from '../src/linalg/moments.js';
import { createRandom } from '../src/linalg/random.js';
import { leastErrorSizes } from '../src/methods/mobe/default-sizes.js';
import { mobe } from '../src/methods/mobe/mobe.js';
import type { Problem } from '../src/methods/mobe/problem.js';
import { solveVarpro } from '../src/methods/mobe/varpro.js';
import { VERSION } from '../src/version.js';
import { machine } from './machine.js';
import { subjects } from './subjects.js';

const { values: flags } = parseArgs({
  options: {
    steps: { type: 'string', default: '150' },
    shares: { type: 'string', default: '0.5,0.64,0.8' },
    out: { type: 'string', default: 'bench/results/sizes.json' },
  },
});
const steps = Number(flags.steps);

/** Experts of one shape. */
interface Group {
  readonly name: string;
  readonly rows: number;
  readonly cols: number;
  readonly experts: readonly Float32Array[];
}

/** The fixture's width d. */
const COLS = 192;

/** The first columns of each expert. */
const columns = (experts: readonly Float32Array[], kept: number): Float32Array[] =>
  experts.map((W) => W.filter((_, i) => i % COLS < kept));

/** Consecutive experts, one above the other, as one. */
const stacked = (experts: readonly Float32Array[], count: number): Float32Array[] =>
  Array.from({ length: Math.floor(experts.length / count) }, (_, i) =>
    Float32Array.from(experts.slice(i * count, (i + 1) * count).flatMap((W) => [...W])),
  );

async function trained(name: string): Promise<Group[]> {
  const subject = subjects().find((it) => it.name === name);
  const experts = (await subject?.experts()) ?? [];
  const cut = [96, 88, 64, 40].map((cols) => ({
    name: `${name}, its first ${cols} columns`,
    rows: 64,
    cols,
    experts: columns(experts, cols),
  }));
  const joined = [2, 3, 5].map((count) => ({
    name: `${name}, ${count} experts as one`,
    rows: 64 * count,
    cols: COLS,
    experts: stacked(experts, count),
  }));
  const few = { name: `${name}, 8 experts, 64 columns`, rows: 64, cols: 64, experts: columns(experts.slice(0, 8), 64) };
  return [{ name, rows: 64, cols: COLS, experts }, ...cut, ...joined, few];
}

function random(count: number, cols: number): Group {
  const numbers = createRandom(2024, count, cols);
  const experts = Array.from({ length: count }, () => Float32Array.from({ length: 64 * cols }, () => numbers.normal()));
  return { name: 'iid', rows: 64, cols, experts };
}

const groups = [
  ...(await trained('layer 2 gate_proj')),
  ...(await trained('layer 0 up_proj')),
  random(32, 96),
  random(32, 64),
  random(32, 40),
  random(8, 40),
];
const engine = await createEngine('onnx-cpu', { threads: 1 });

/** The relative squared error of a fit. */
async function fittedError({ name, rows, cols, experts }: Group, rank: number, bases: number): Promise<number> {
  const n = experts.length;
  const sigma = deviation(experts.map(measureMoments).reduce(addMoments, NO_MOMENTS));
  const problem: Problem = { experts: n, rows, cols, bases, rank, activation: 'silu' };
  const targets = {
    read(expert: number, target: Float32Array) {
      const W = experts[expert] as Float32Array;
      for (let i = 0; i < target.length; i++) target[i] = (W[i] as number) / sigma;
    },
  };
  const batchExperts = Math.min(n, usualBatch({ method: mobe, problem }, 'cpu'));
  const { loss } = await solveVarpro(engine, problem, targets, {
    steps,
    seed: 0,
    batchExperts,
    holdTargets: true,
    label: name,
  });
  return Number(loss.toPrecision(4));
}

const results = [];
const regrets: number[] = [];
for (const share of flags.shares.split(',').map(Number)) {
  for (const group of groups) {
    const { name, rows: p, cols: d, experts } = group;
    const n = experts.length;
    const chosen = leastErrorSizes({ experts: n, rows: p, cols: d }, share * n * p * d);
    if (!chosen) continue;
    const most = Math.min(p, d);
    const step = most > 96 ? 8 : 4;
    const pairs: Array<[rank: number, bases: number, error: number]> = [];
    for (let rank = step; rank <= most; rank += step) {
      const bases = Math.floor((share * n * p * d - n * p * rank) / (rank * d + n));
      if (bases < 1 || bases > 0.65 * n) continue;
      pairs.push([rank, bases, await fittedError(group, rank, bases)]);
    }
    const rule = [chosen.rank, chosen.bases, await fittedError(group, chosen.rank, chosen.bases)] as const;
    const [best] = [...pairs].sort((a, b) => a[2] - b[2]);
    if (!best) continue;
    const excess = rule[2] / best[2] - 1;
    regrets.push(excess);
    results.push({ share, name, n, p, d, rule, best, pairs });
    console.log(`${share} ${name} ${n} of ${p}×${d}: rule ${rule}, best of ${pairs.length} others ${best}, ${excess}`);
  }
}
const mean = regrets.reduce((sum, it) => sum + it, 0) / regrets.length;
console.log(`the rule's error over the best other's: mean ${mean}, worst ${Math.max(...regrets)}`);
const lines = results.map((it) => JSON.stringify(it)).join(',\n  ');
const head = JSON.stringify({ mobe: VERSION, machine, steps, activation: 'silu' }).slice(0, -1);
writeFileSync(
  flags.out,
  `${head},\n "pairs": "rank, bases, relative squared error",\n "results": [\n  ${lines}\n ]}\n`,
);
