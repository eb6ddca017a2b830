/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). For each token, one latent vector is cached, from which the keys
 * and values of all heads can be computed, and one rotated key that all heads share. This code multiplies the matrices that
 * make keys and values into the queries and the outputs instead. So the cached vector is itself the one key of all heads.
 */
import { trace } from '../engine/graph.js';
import { add, concat, matmul, reshape, slice, transpose, type Value } from '../engine/ops.js';
import { type Attention, attend, linear } from './attention.js';
import { rmsNorm } from './rms-norm.js';
import { type Rotary, type RotaryLayout, rotate } from './rotary.js';
import { shapesOf, type Weight } from './weight.js';

/** ε of the latents' norms. The config's ε is for the other norms only. */
const LATENT_EPSILON = 1e-6;

interface HeadSizes {
  readonly heads: number;
  /** Size of a head's query and key without the rotated part. */
  readonly plainSize: number;
  /** Size of the rotated part. */
  readonly rotarySize: number;
  readonly valueSize: number;
  /** Size of the latent vector. */
  readonly rank: number;
  readonly scale: number;
  readonly epsilon: number;
  readonly layout: RotaryLayout;
}

/** Weights and sizes of one layer. */
export interface LatentAttention extends HeadSizes {
  /**
   * `norm` (d), applied before the attention; `query` (heads · (plain + rotary), d), or its low-rank form `queryA`, `queryNorm`,
   * `queryB`; `latent` (rank + rotary, d) and `latentNorm` (rank); `expand` (heads · (plain + value), rank); `output`
   * (d, heads · value). Optional biases: `queryABias`, `latentBias`, `outputBias`.
   */
  readonly weights: Readonly<Record<string, Weight>>;
  readonly rotary: Rotary;
}

type Shapes = Readonly<Record<string, readonly number[]>>;
type Given = Readonly<Record<string, Value>>;

interface Sizes extends HeadSizes {
  readonly shapes: Shapes;
  readonly tokens: number;
  readonly width: number;
}

/** The matrices that make keys (heads, plain, rank) and values (heads, value, rank) from latents. */
function expansion(expand: Value, { heads, plainSize, valueSize, rank }: HeadSizes): { keys: Value; values: Value } {
  const all = reshape(expand, [heads, plainSize + valueSize, rank]);
  return { keys: slice(all, 1, 0, plainSize), values: slice(all, 1, plainSize, plainSize + valueSize) };
}

const project = ({ shapes, tokens, width, ...sizes }: Sizes) => {
  const { heads, plainSize, rotarySize, rank, epsilon, layout } = sizes;
  const angles = [tokens, rotarySize / 2];
  return trace<string, string>({ ...shapes, hidden: [tokens, width], cos: angles, sin: angles }, (it: Given) => {
    const { hidden, norm, cos, sin, latent, latentNorm, expand, queryB } = it as Required<
      Record<'hidden' | 'norm' | 'cos' | 'sin' | 'latent' | 'latentNorm' | 'expand', Value>
    > &
      Given;
    const x = rmsNorm(hidden, norm, epsilon);
    const narrow = (): Value =>
      rmsNorm(linear(x, it.queryA as Value, it.queryABias), it.queryNorm as Value, LATENT_EPSILON);
    const flat = queryB ? linear(narrow(), queryB) : linear(x, it.query as Value);
    const query = transpose(reshape(flat, [tokens, heads, plainSize + rotarySize]), [1, 0, 2]);
    const plain = matmul(slice(query, -1, 0, plainSize), expansion(expand, sizes).keys);
    const turned = rotate(slice(query, -1, plainSize, plainSize + rotarySize), cos, sin, layout);
    const kept = linear(x, latent, it.latentBias);
    const key = [
      rmsNorm(slice(kept, -1, 0, rank), latentNorm, LATENT_EPSILON),
      rotate(slice(kept, -1, rank, rank + rotarySize), cos, sin, layout),
    ];
    return {
      query: concat([plain, turned], -1),
      key: reshape(concat(key, -1), [1, tokens, rank + rotarySize]),
    };
  });
};

const attendAndProject = ({ shapes, tokens, width, room, ...sizes }: Sizes & { readonly room: number }) => {
  const { heads, rotarySize, valueSize, rank, scale } = sizes;
  const size = rank + rotarySize;
  return trace<string, string>(
    {
      ...shapes,
      hidden: [tokens, width],
      query: [heads, tokens, size],
      keys: [1, room, size],
      mask: [tokens, room],
    },
    (it: Given) => {
      const { hidden, query, keys, mask, expand, output } = it as Required<
        Record<'hidden' | 'query' | 'keys' | 'mask' | 'expand' | 'output', Value>
      > &
        Given;
      const mixed = attend(query, keys, slice(keys, -1, 0, rank), mask, scale);
      const values = matmul(mixed, expansion(expand, sizes).values, { transposeB: true });
      const flat = reshape(transpose(values, [1, 0, 2]), [tokens, heads * valueSize]);
      return { hidden: add(hidden, linear(flat, output, it.outputBias)) };
    },
  );
};

/** Weights of the second program. The first needs all except the output's. */
const AFTER = ['expand', 'output', 'outputBias'];

/** The attention of one layer. */
export function latentAttention({ weights, rotary, ...sizes }: LatentAttention): Attention {
  const width = weights.norm?.shape[0] as number;
  const before = shapesOf(weights, (name) => !name.startsWith('output'));
  const after = shapesOf(weights, (name) => AFTER.includes(name));
  const none = new Float32Array(0);
  return {
    weights,
    rotary,
    heads: sizes.heads,
    cached: { heads: 1, keySize: sizes.rank + sizes.rotarySize, valueSize: 0 },
    async project(runner, tensors, hidden, { cos, sin }) {
      const tokens = hidden.length / width;
      const feeds = { ...tensors, hidden, cos, sin };
      const results = await runner.run(project, { ...sizes, shapes: before, tokens, width }, feeds, ['query', 'key']);
      return { ...results, value: none };
    },
    async attend(runner, tensors, hidden, query, { key: keys, room }, mask) {
      const tokens = hidden.length / width;
      const feeds = { ...tensors, hidden, query, keys, mask };
      const all = { ...sizes, shapes: after, tokens, width, room };
      return (await runner.run(attendAndProject, all, feeds, ['hidden'])).hidden;
    },
  };
}
