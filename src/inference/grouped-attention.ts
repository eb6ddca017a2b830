/** Grouped-query attention (arXiv 2305.13245). Qwen3 normalises queries and keys; Ling stores one fused matrix. */
import { trace } from '../engine/graph.js';
import { add, reshape, slice, transpose, type Value } from '../engine/ops.js';
import { type Attention, attend, linear } from './attention.js';
import { rmsNorm } from './rms-norm.js';
import { type Rotary, rotate } from './rotary.js';
import { shapesOf, type Weight } from './weight.js';

interface HeadSizes {
  readonly heads: number;
  readonly keyHeads: number;
  readonly headSize: number;
  readonly epsilon: number;
}

/** Weights and sizes of one layer. */
export interface GroupedAttention extends HeadSizes {
  /**
   * `norm` (d), applied before the attention; `query`, `key`, `value` (heads · headSize, d), or `fused`, which has their rows in
   * this order; `output` (d, heads · headSize). Optional: `queryNorm`, `keyNorm` (headSize), and a bias of each matrix, such as
   * `queryBias`.
   */
  readonly weights: Readonly<Record<string, Weight>>;
  readonly rotary: Rotary;
}

type Shapes = Readonly<Record<string, readonly number[]>>;
type Given = Readonly<Record<string, Value>>;

interface ProjectSizes extends HeadSizes {
  readonly shapes: Shapes;
  readonly tokens: number;
  readonly width: number;
  /** Number of pairs that are rotated. */
  readonly half: number;
}

const project = ({ shapes, tokens, width, half, heads, keyHeads, headSize, epsilon }: ProjectSizes) =>
  trace<string, string>(
    { ...shapes, hidden: [tokens, width], cos: [tokens, half], sin: [tokens, half] },
    (it: Given) => {
      const { hidden, norm, cos, sin, fused } = it as Record<'hidden' | 'norm' | 'cos' | 'sin', Value> & Given;
      const x = rmsNorm(hidden, norm, epsilon);
      // (t, heads · size) → (heads, t, size)
      const split = (flat: Value, count: number): Value =>
        transpose(reshape(flat, [tokens, count, headSize]), [1, 0, 2]);
      const all = fused && split(linear(x, fused, it.fusedBias), heads + 2 * keyHeads);
      const part = (name: string, first: number, count: number): Value =>
        all ? slice(all, 0, first, first + count) : split(linear(x, it[name] as Value, it[`${name}Bias`]), count);
      const turned = (head: Value, weight: Value | undefined): Value =>
        rotate(weight ? rmsNorm(head, weight, epsilon) : head, cos, sin, 'halves');
      return {
        query: turned(part('query', 0, heads), it.queryNorm),
        key: turned(part('key', heads, keyHeads), it.keyNorm),
        value: part('value', heads + keyHeads, keyHeads),
      };
    },
  );

interface AttendSizes extends HeadSizes {
  readonly shapes: Shapes;
  readonly tokens: number;
  readonly width: number;
  readonly room: number;
}

const attendAndProject = ({ shapes, tokens, width, room, heads, keyHeads, headSize }: AttendSizes) =>
  trace<string, string>(
    {
      ...shapes,
      hidden: [tokens, width],
      query: [heads, tokens, headSize],
      keys: [keyHeads, room, headSize],
      values: [keyHeads, room, headSize],
      mask: [tokens, room],
    },
    (it: Given) => {
      const { hidden, query, keys, values, mask, output } = it as Record<string, Value> & Record<'output', Value>;
      const mixed = attend(query as Value, keys as Value, values as Value, mask as Value, headSize ** -0.5);
      const flat = reshape(transpose(mixed, [1, 0, 2]), [tokens, heads * headSize]);
      return { hidden: add(hidden as Value, linear(flat, output, it.outputBias)) };
    },
  );

/** The attention of one layer. */
export function groupedAttention({ weights, rotary, heads, keyHeads, headSize, epsilon }: GroupedAttention): Attention {
  const sizes: HeadSizes = { heads, keyHeads, headSize, epsilon };
  const width = weights.norm?.shape[0] as number;
  const after = shapesOf(weights, (name) => name.startsWith('output'));
  const before = shapesOf(weights, (name) => !name.startsWith('output'));
  return {
    weights,
    rotary,
    heads,
    cached: { heads: keyHeads, keySize: headSize, valueSize: headSize },
    project(runner, tensors, hidden, { cos, sin }) {
      const tokens = hidden.length / width;
      const half = rotary.frequencies.length;
      return runner.run(project, { ...sizes, shapes: before, tokens, width, half }, { ...tensors, hidden, cos, sin }, [
        'query',
        'key',
        'value',
      ]);
    },
    async attend(runner, tensors, hidden, query, { key: keys, value: values, room }, mask) {
      const tokens = hidden.length / width;
      const feeds = { ...tensors, hidden, query, keys, values, mask };
      const results = await runner.run(attendAndProject, { ...sizes, shapes: after, tokens, width, room }, feeds, [
        'hidden',
      ]);
      return results.hidden;
    },
  };
}
