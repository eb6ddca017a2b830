/** Chooses tokens of a record by a seed. */
import { createRandom } from '../linalg/random.js';

/** `count` of the numbers 0 … total − 1, rising, each as likely as the others. All of them if there are not more. */
export function chooseNumbers(total: number, count: number, seed: number): Int32Array {
  const random = createRandom(seed);
  const chosen = new Int32Array(Math.min(total, count));
  let found = 0;
  for (let number = 0; found < chosen.length; number++)
    if (random.uniform() * (total - number) < chosen.length - found) chosen[found++] = number;
  return chosen;
}
