/**
 * Runs a model once and prints figures of this process as JSON: `Figures`, or {"smallest"} if the budget is too small, with the
 * smallest one that works. Arguments: generate|score MODEL BUDGET THREADS TEXT TOKENS. TOKENS are new ones, or those of a window.
 */
import { peakRssBytes } from '../src/conversion/run-report.js';
import { BudgetTooSmallError } from '../src/errors.js';
import { parseBytes } from '../src/format.js';
import { evaluate } from '../streams/operations/evaluate.js';
import { generate } from '../streams/operations/generate.js';

/** Figures of a process that ran a model once. */
export interface Figures {
  readonly processorSeconds: number;
  readonly peakRssBytes: number;
  /** New tokens, or tokens that were scored. */
  readonly tokens: number;
  /** Of generated text only. */
  readonly bytesRead?: number;
  readonly readOnceBytes?: number;
}

const [way = '', model = '', budget = '', threads = '', text = '', tokens = ''] = process.argv.slice(2);
const options = { maxMemory: parseBytes(budget), threads: Number(threads) };

async function run(): Promise<Pick<Figures, 'tokens' | 'bytesRead' | 'readOnceBytes'>> {
  if (way === 'score') {
    const { models, window } = await evaluate([model], text, { ...options, window: Number(tokens) });
    return { tokens: (models[0]?.windows ?? 0) * window };
  }
  const pieces = generate(model, text, { ...options, maxNewTokens: Number(tokens) });
  let step = await pieces.next();
  while (!step.done) step = await pieces.next();
  const { newTokens, bytesRead, readOnceBytes } = step.value;
  return { tokens: newTokens, bytesRead, readOnceBytes };
}

try {
  const figures = await run();
  const { user, system } = process.cpuUsage();
  console.log(
    JSON.stringify({
      ...figures,
      processorSeconds: (user + system) / 1e6,
      peakRssBytes: peakRssBytes(),
    } satisfies Figures),
  );
} catch (error) {
  if (!(error instanceof BudgetTooSmallError)) throw error;
  console.log(JSON.stringify({ smallest: error.smallest }));
}
