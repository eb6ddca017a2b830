/** The last norm and the projection to the vocabulary. Its matrix is a model's largest, so it is processed in blocks of rows. */
import { trace } from '../engine/graph.js';
import { div, square, sum, type Value } from '../engine/ops.js';
import type { Blueprint } from './architecture.js';
import { linear } from './attention.js';
import { rmsNorm } from './rms-norm.js';
import type { Runner } from './runner.js';
import type { WeightReader } from './weight.js';
import type { Unit, WeightCache } from './weight-cache.js';

/** Size of a block as f32, bytes: large enough for full speed, small compared with any budget. */
const BLOCK_BYTES = 32 * 2 ** 20;

/** Added to the length of a column, as in Ling's code, to avoid division by 0. */
const LEAST_LENGTH = 1e-7;

const finalNorm = ({ tokens, width, epsilon }: { tokens: number; width: number; epsilon: number }) =>
  trace({ hidden: [tokens, width], norm: [width], lengths: [width] }, ({ hidden, norm, lengths }) => ({
    x: div(rmsNorm(hidden, norm, epsilon), lengths),
  }));

const project = ({ tokens, width, rows }: { tokens: number; width: number; rows: number }) =>
  trace({ x: [tokens, width], W: [rows, width] }, ({ x, W }: Record<'x' | 'W', Value>) => ({ logits: linear(x, W) }));

const columnSquares = ({ rows, width }: { rows: number; width: number }) =>
  trace({ W: [rows, width] }, ({ W }) => ({ squares: sum(square(W), [0]) }));

/** The model's last step. */
export interface Head {
  readonly units: readonly Unit[];
  /** hidden (t, d) of the last layer → logits (t, v) */
  logits(hidden: Float32Array): Promise<Float32Array>;
}

/** The head of a model. */
export function createHead(
  { head, norm, headNormalised, epsilon }: Blueprint,
  { reader, runner, cache }: { reader: WeightReader; runner: Runner; cache: () => WeightCache },
): Head {
  const [vocabulary, width] = head.shape as [number, number];
  const most = Math.max(1, Math.floor(BLOCK_BYTES / (4 * width)));
  const blocks = Array.from({ length: Math.ceil(vocabulary / most) }, (_, i) => {
    const first = i * most;
    const count = Math.min(most, vocabulary - first);
    const unit: Unit<'W'> = {
      key: `head ${first}`,
      shapes: { W: [count, width] },
      kind: 'always',
      fill: ({ W }) => reader.fill(W, head.matrix, { first, count }),
    };
    return { first, count, unit };
  });
  const last: Unit<'norm'> = {
    key: 'final norm',
    shapes: { norm: [width] },
    kind: 'always',
    fill: (it) => reader.fill(it.norm, norm.matrix),
  };

  /** Lengths of the head's columns. Features are divided by them, so that no scaled copy of the matrix is needed. */
  let lengths: Float32Array | undefined;
  const columnLengths = async (): Promise<Float32Array> => {
    const squares = new Float64Array(width);
    for (const { count: rows, unit } of headNormalised ? blocks : []) {
      const part = await cache().with(unit, ({ W }) => runner.run(columnSquares, { rows, width }, { W }, ['squares']));
      for (const [i, value] of part.squares.entries()) squares[i] = (squares[i] as number) + value;
    }
    return Float32Array.from(squares, (it) => (headNormalised ? Math.sqrt(it) + LEAST_LENGTH : 1));
  };

  return {
    units: [last, ...blocks.map(({ unit }) => unit)],
    async logits(hidden) {
      lengths ??= await columnLengths();
      const divisors = lengths;
      const tokens = hidden.length / width;
      const { x } = await cache().with(last, (it) =>
        runner.run(finalNorm, { tokens, width, epsilon }, { hidden, norm: it.norm, lengths: divisors }, ['x']),
      );
      const logits = new Float32Array(tokens * vocabulary);
      for (const { first, count: rows, unit } of blocks) {
        const part = await cache().with(unit, ({ W }) =>
          runner.run(project, { tokens, width, rows }, { x, W }, ['logits']),
        );
        for (let t = 0; t < tokens; t++)
          logits.set(part.logits.subarray(t * rows, (t + 1) * rows), t * vocabulary + first);
      }
      return logits;
    },
  };
}
