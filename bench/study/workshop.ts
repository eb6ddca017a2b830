/** Makes each variant of the fixture once and scores it with `mobe eval`. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CLI, TINY_MODEL } from '../../fixtures/paths.js';
import type { Rank } from '../../src/methods/svd/baselines.js';
import type { Evaluation, ModelScore } from '../../streams/operations/evaluate.js';
import { mean } from '../levels.js';
import { readGroups } from './checkpoint.js';
import { squaredDistance, squaredNorm } from './noise.js';
import type { Variant } from './variants.js';

/** Scores of a variant. */
export interface Score {
  /** ‖W − Ŵ‖²/‖W‖² of the written weights, mean of the groups. */
  readonly error: number;
  /** Negative log-likelihood, nats a byte. */
  readonly nll: number;
  /** KL divergence of the predictions from the source's, nats. */
  readonly divergence: number;
  /** Share of predictions with the same most likely token. */
  readonly agreement: number;
}

interface Made {
  readonly folder: string;
  readonly size: Rank | undefined;
}

/** Makes and scores variants in a folder, and remembers the results. */
export class Workshop {
  private readonly made = new Map<string, Promise<Made>>();
  private readonly scores = new Map<string, Promise<Score>>();

  constructor(
    private readonly root: string,
    private readonly text: string,
  ) {}

  make(variant: Variant): Promise<Made> {
    return remember(this.made, variant.key, () => this.write(variant));
  }

  score(variant: Variant, expertsPerToken?: number): Promise<Score> {
    return remember(this.scores, `${variant.key} ${expertsPerToken}`, () => this.evaluate(variant, expertsPerToken));
  }

  private async write(variant: Variant): Promise<Made> {
    const folder = join(this.root, variant.key);
    return { folder, size: await variant.make(folder, async (other) => (await this.make(other)).folder) };
  }

  /** Scores a variant in a process of its own, on one thread, because the model is too small for more. */
  private async evaluate(variant: Variant, expertsPerToken: number | undefined): Promise<Score> {
    const { folder } = await this.make(variant);
    const experts = expertsPerToken === undefined ? [] : ['--experts-per-token', String(expertsPerToken)];
    const flags = ['--against', TINY_MODEL, '--text', this.text, '--threads', '1', '--json', ...experts];
    const { stdout } = await promisify(execFile)(process.execPath, [CLI, 'eval', folder, ...flags]);
    const { nllPerByte, comparison } = (JSON.parse(stdout) as Evaluation).models[1] as ModelScore;
    const { divergence, agreement } = comparison as NonNullable<typeof comparison>;
    return { error: await relativeError(folder), nll: nllPerByte, divergence, agreement };
  }
}

function remember<T>(known: Map<string, Promise<T>>, key: string, make: () => Promise<T>): Promise<T> {
  const value = known.get(key) ?? make();
  known.set(key, value);
  return value;
}

async function relativeError(folder: string): Promise<number> {
  const changed = await readGroups(folder);
  const errors = (await readGroups()).map(({ experts }, g) => {
    const error = experts.map((values, i) => squaredDistance(values, changed[g]?.experts[i] as Float32Array));
    return mean(error) / mean(experts.map(squaredNorm));
  });
  return mean(errors);
}
