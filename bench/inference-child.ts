/** Generates text and prints the figures. Arguments: MODEL PROMPT BUDGET TOKENS THREADS. */
import { parseBytes } from '../src/format.js';
import { generate } from '../streams/operations/generate.js';

const [model = '', prompt = '', budget = '', tokens = '', threads = ''] = process.argv.slice(2);
const run = generate(model, prompt, {
  maxMemory: parseBytes(budget),
  maxNewTokens: Number(tokens),
  threads: Number(threads),
});
let step = await run.next();
while (!step.done) step = await run.next();
console.log(JSON.stringify(step.value));
