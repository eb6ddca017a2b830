/** The names under which published checkpoints store a layer's experts. One row describes one layout. */
import type { Projection } from './family.js';

/**
 * Names come after the layer's prefix. `{e}` is the number of the expert. A name without it is of one tensor with all experts,
 * whose first axis is the expert.
 */
interface Layout {
  /** Gate and up side by side: (n, 2p, d) or, if transposed, (n, d, 2p). The shapes of it and of `down` show which. */
  readonly gateUp?: string;
  /** (p, d). Experts with two matrices have no gate. */
  readonly gate?: string;
  readonly up?: string;
  /** (d, p) */
  readonly down: string;
  /** The projections whose matrices are transposed, where shapes do not show it. Without `gateUp`, p and d can be swapped. */
  readonly transposed?: readonly Projection[];
  /** The rows of gate and up alternate in `gateUp`: always, or in models of these types. Shapes do not show it. */
  readonly alternating?: 'always' | readonly string[];
  /** The modules in which these names are used, if they are too common to be known by themselves. */
  readonly modules?: readonly string[];
  /** The first axis is of all rows of all experts, (n·p, d). The router with this name has a row for each expert. */
  readonly router?: string;
}

const LAYOUTS: readonly Layout[] = [
  // Most families: Qwen, DeepSeek, Kimi-K2, GLM, Ling, OLMoE, ERNIE, dots.1, Jamba, … Nemotron-H has no gate.
  { gate: 'experts.{e}.gate_proj.weight', up: 'experts.{e}.up_proj.weight', down: 'experts.{e}.down_proj.weight' },
  // Mixtral, Phi-3.5-MoE, MiniMax, LFM2, Kimi-Linear, DeepSeek-V4, Mistral's own format
  { gate: 'experts.{e}.w1.weight', up: 'experts.{e}.w3.weight', down: 'experts.{e}.w2.weight' },
  // transformers 5 and Qwen3.5, Gemma 4; transposed in Qwen3-VL-MoE, Llama 4 and gpt-oss
  {
    gateUp: 'experts.gate_up_proj',
    gate: 'experts.gate_proj',
    up: 'experts.up_proj',
    down: 'experts.down_proj',
    alternating: ['gpt_oss'],
  },
  // Aria, transposed
  { gateUp: 'experts.fc1.weight', down: 'experts.fc2.weight' },
  // Granite-MoE and its kin; JetMoE
  { gateUp: 'input_linear.weight', down: 'output_linear.weight', modules: ['block_sparse_moe', 'mlp'] },
  // Step-3.5
  { gate: 'gate_proj.weight', up: 'up_proj.weight', down: 'down_proj.weight', modules: ['moe'] },
  // Inkling
  { gateUp: 'experts.w13_weight', down: 'experts.w2_weight', alternating: 'always' },
  // Nemotron with a speech encoder
  { up: 'experts.gate_and_up_projs', down: 'experts.down_projs', transposed: ['up_proj', 'down_proj'] },
  // DBRX, which multiplies by w2 from the right
  {
    gate: 'experts.mlp.w1',
    up: 'experts.mlp.v1',
    down: 'experts.mlp.w2',
    transposed: ['down_proj'],
    router: 'router.layer.weight',
  },
];

/** An expert tensor, by its name. */
export interface ExpertName {
  /** The part of the name before the layer's number, e.g. `model.`; a model may have several stacks of layers. */
  readonly stack: string;
  readonly layer: number;
  /** The prefix of the layer's tensor names, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  /** Undefined if the tensor holds all experts. */
  readonly expert: number | undefined;
  /** The projections in the tensor, in stored order. */
  readonly projections: readonly Projection[];
  readonly layout: Layout;
}

type Entry = Pick<ExpertName, 'layout' | 'projections'>;

const ENTRIES: ReadonlyMap<string, Entry> = new Map(
  LAYOUTS.flatMap((layout) => {
    const { gateUp, gate, up, down, modules = [''] } = layout;
    const names: ReadonlyArray<readonly [string | undefined, readonly Projection[]]> = [
      [gateUp, ['gate_proj', 'up_proj']],
      [gate, ['gate_proj']],
      [up, ['up_proj']],
      [down, ['down_proj']],
    ];
    return modules.flatMap((module) =>
      names.flatMap(
        ([name, projections]): Array<[string, Entry]> =>
          name ? [[module ? `${module}.${name}` : name, { layout, projections }]] : [],
      ),
    );
  }),
);

const LAYER = String.raw`((?:.+\.)?)(?:layers|blocks)\.(\d+)\.`;
/** Names in a module `experts`, wherever it is in the layer. */
const IN_EXPERTS = new RegExp(`^(${LAYER}(?:.+\\.)?)experts\\.(?:(\\d+)\\.)?(.+)$`);
/** Names directly in a module of the layer. */
const IN_MODULE = new RegExp(`^(${LAYER}(?:.+\\.)?(\\w+)\\.)(\\w+\\.weight)$`);

/** Reads the name of an expert tensor that is not quantised; undefined if it is no such name. */
export function expertName(name: string): ExpertName | undefined {
  const inExperts = IN_EXPERTS.exec(name);
  if (inExperts) {
    const [, prefix, stack, layer, expert, own] = inExperts as unknown as [
      string,
      string,
      string,
      string,
      string?,
      string?,
    ];
    const entry = ENTRIES.get(expert === undefined ? `experts.${own}` : `experts.{e}.${own}`);
    const number = expert === undefined ? undefined : Number(expert);
    return entry && { prefix, stack, layer: Number(layer), expert: number, ...entry };
  }
  const inModule = IN_MODULE.exec(name);
  if (!inModule) return undefined;
  const [, prefix, stack, layer, module, own] = inModule as unknown as [string, string, string, string, string, string];
  const entry = ENTRIES.get(`${module}.${own}`);
  return entry && { prefix, stack, layer: Number(layer), expert: undefined, ...entry };
}
