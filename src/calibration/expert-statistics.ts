/**
 * Computes the metric of an expert from its tokens, with an engine's products. Letters: t tokens, d width, p neurons. Gate and up are
 * weighed by the covariance of their inputs, and their rows by what the neurons do to the output. Down is factorised as its transpose,
 * whose rows are the neurons, so the covariance of the hidden activations weighs its rows.
 */
import type { Engine, EngineTensor, Program } from '../engine/engine.js';
import { trace } from '../engine/graph.js';
import { add, matmul, mul, square, sum, type Value } from '../engine/ops.js';
import type { MetricForm } from '../methods/method.js';
import { activateWithDerivative } from '../methods/mobe/activation.js';
import { matrixElements } from '../methods/mobe/metric.js';
import type { Activation } from '../methods/mobe/problem.js';
import type { Projection } from '../models/family.js';
import { createLowRank, type LowRankApproximation } from './low-rank.js';

/** The metric to measure for each expert of a group. */
export interface StatisticsOptions {
  readonly projection: Projection;
  /** p */
  readonly rows: number;
  /** d */
  readonly cols: number;
  /** The form of the metric: a diagonal of the rows for gate and up, and a full covariance or one of low rank. */
  readonly form: MetricForm;
  /** The experts' activation. */
  readonly activation: Activation;
  readonly seed: number;
}

/** The weights that are needed to measure a projection. */
export function neededWeights(projection: Projection, hasGate: boolean): ReadonlyArray<keyof ExpertWeights> {
  if (projection === 'down_proj') return hasGate ? ['gate', 'up'] : ['up'];
  if (projection === 'gate_proj') return ['gate', 'up', 'down'];
  return hasGate ? ['gate', 'down'] : ['up', 'down'];
}

/** Whether two projections have the same covariance: gate and up have the same inputs. */
export const sharesCovariance = (a: Projection, b: Projection): boolean => a !== 'down_proj' && b !== 'down_proj';

/** An expert's dense weights as stored: gate and up (p, d), down (d, p). Those that are not needed may be left out. */
export interface ExpertWeights {
  readonly gate?: Float32Array | undefined;
  readonly up?: Float32Array | undefined;
  readonly down?: Float32Array | undefined;
}

/** An expert to measure. */
export interface MeasuredExpert {
  readonly expert: number;
  /** t */
  readonly tokens: number;
  /** ρ: the share of the identity. */
  readonly shrinkage: number;
}

/** Some tokens of an expert. */
export interface TokenBatch {
  /** (count, d) */
  readonly inputs: Float32Array;
  /** v, (count) */
  readonly importance: Float32Array;
}

/** The result for an expert. */
export interface Measured {
  /**
   * Its matrices as in `GroupMetric`. A diagonal of rows is left 0, because its scale depends on the other experts.
   */
  readonly matrices: Uint8Array<ArrayBuffer>;
  /** Σ v² q² ‖down‖² of each neuron, (p); absent if rows have no diagonal. */
  readonly neurons?: Float64Array | undefined;
}

/** Programs are made for multiples of so many tokens; the rest is padded with zeros. */
const LEAST_TOKENS = 64;
/** The most numbers of inputs that are measured at once. */
const MOST_NUMBERS = 2 ** 23;
/** More tokens at once make no product faster. */
const MOST_TOKENS = 4096;

/** The most tokens of a batch: a power of two. */
export const tokensAtOnce = (width: number): number =>
  Math.min(MOST_TOKENS, Math.max(LEAST_TOKENS, 2 ** Math.floor(Math.log2(MOST_NUMBERS / width))));

/** The tokens of a program: an eighth more than `count` at most, so that few programs are made. */
export function roomFor(count: number): number {
  const step = Math.max(LEAST_TOKENS, 2 ** (Math.floor(Math.log2(count)) - 3));
  return Math.ceil(count / step) * step;
}

interface Expert extends MeasuredExpert {
  readonly inputs: Readonly<Record<string, EngineTensor>>;
  readonly downNorms: Float64Array | undefined;
  /** The tokens themselves as Z, if they are no more than the rank. */
  readonly direct: Float32Array<ArrayBuffer> | undefined;
  seen: number;
  covariance: EngineTensor | undefined;
  neurons: EngineTensor | undefined;
}

/** Measures the experts of a group, one after another. */
export class ExpertStatistics {
  private readonly programs = new Map<string, Program>();
  private lowRank: LowRankApproximation | undefined;
  private expert: Expert | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly options: StatisticsOptions,
    /** Statistics of another projection of the same experts, with the same covariance. They finish first. */
    private readonly twin?: ExpertStatistics,
  ) {}

  /** The last expert's covariance as it was written. */
  private written: Float32Array | undefined;

  /** The covariance is that of hidden activations (down), or of inputs. */
  private get hidden(): boolean {
    return this.options.projection === 'down_proj';
  }

  /** Whether rows have a diagonal, which needs the activations. */
  private get weighsNeurons(): boolean {
    return this.options.form.rows?.form === 'diagonal';
  }

  private get covarianceForm() {
    const { rows, columns } = this.options.form;
    return this.hidden ? rows : columns;
  }

  /** The size of the covariance. */
  private get size(): number {
    return this.hidden ? this.options.rows : this.options.cols;
  }

  /** Begins an expert. If rows have a form, `weights` has those of `neededWeights`. */
  begin(expert: MeasuredExpert, weights: ExpertWeights): void {
    const { rows: p, cols: d, projection } = this.options;
    const needed = this.options.form.rows ? neededWeights(projection, weights.gate !== undefined) : [];
    const [gate, up, down] = (['gate', 'up', 'down'] as const).map((name) =>
      needed.includes(name) ? weights[name] : undefined,
    );
    const { size } = this;
    const form = this.twin ? undefined : this.covarianceForm;
    const rank = form?.form === 'low-rank' ? (form.rank as number) : 0;
    const direct = form && expert.tokens <= rank ? new Float32Array(size * rank) : undefined;
    const inputs: Record<string, EngineTensor> = {};
    if (up) inputs.up = this.engine.tensor(up, [p, d]);
    if (gate) inputs.gate = this.engine.tensor(gate, [p, d]);
    const downNorms = this.weighsNeurons && down ? columnNorms(down, p) : undefined;
    this.expert = {
      ...expert,
      inputs,
      downNorms,
      direct,
      seen: 0,
      covariance: form && !direct ? this.zeros(size, size) : undefined,
      neurons: this.weighsNeurons ? this.zeros(1, p) : undefined,
    };
  }

  /** Adds some of the expert's tokens, at most `tokensAtOnce` of them. */
  async add({ inputs, importance }: TokenBatch): Promise<void> {
    const it = this.expert as Expert;
    const { covariance: S, neurons } = it;
    if (!S && !neurons && !it.direct) return; // its twin has all that it needs
    const { cols: d } = this.options;
    const count = importance.length;
    it.seen += count;
    const room = roomFor(count);
    const X = this.engine.tensor(padded(inputs, room * d), [room, d]);
    const v = this.engine.tensor(padded(importance, room), [room, 1]);
    const program = await this.program(room, it);
    const out = await program.run({ X, v, ...it.inputs, ...(S && { S }), ...(neurons && { neurons }) });
    for (const tensor of [X, v, S, neurons]) tensor?.dispose();
    it.covariance = out.S;
    it.neurons = out.neurons;
    if (it.direct && out.features) {
      const rank = it.direct.length / this.size;
      const features = await this.engine.read(out.features);
      for (let token = 0; token < count; token++)
        for (let j = 0; j < this.size; j++)
          it.direct[j * rank + it.seen - count + token] = features[token * this.size + j] as number;
      out.features.dispose();
    }
  }

  /** The metric of the expert. Its numbers are not finite if those of its tokens or weights are not. */
  async finish(): Promise<Measured> {
    const it = this.expert as Expert;
    this.expert = undefined;
    const { form } = this.options;
    const rows = form.rows ? matrixElements(form.rows, this.options.rows) : 0;
    const columns = form.columns ? matrixElements(form.columns, this.options.cols) : 0;
    const numbers = new Float32Array(rows + columns);
    const target = this.hidden ? numbers : numbers.subarray(rows);
    if (it.direct) shrinkFactor(it.direct, meanSquare(it.direct, this.size), 0, it.shrinkage, target);
    else if (it.covariance) await this.writeCovariance(it, target);
    else if (this.twin?.written) target.set(this.twin.written);
    this.written = target;
    const sums = it.neurons && (await this.engine.read(it.neurons));
    const neurons = sums && Float64Array.from(sums, (sum, k) => sum * ((it.downNorms?.[k] as number) ?? 1));
    for (const tensor of [...Object.values(it.inputs), it.covariance, it.neurons]) tensor?.dispose();
    return { matrices: new Uint8Array(numbers.buffer), neurons };
  }

  private async writeCovariance({ covariance, expert, shrinkage }: Expert, target: Float32Array): Promise<void> {
    const { size } = this;
    const S = covariance as EngineTensor;
    const values = await this.engine.read(S);
    let trace = 0;
    for (let i = 0; i < size; i++) trace += values[i * size + i] as number;
    if (this.covarianceForm?.form === 'low-rank') {
      this.lowRank ??= await createLowRank(this.engine, size, this.covarianceForm.rank as number);
      const { Z, c } = await this.lowRank.of(S, trace, this.options.seed, expert);
      shrinkFactor(Z, trace / size, c, shrinkage, target);
      return;
    }
    const scale = trace === 0 ? 0 : ((1 - shrinkage) * size) / trace;
    const rest = trace === 0 ? 1 : shrinkage;
    for (let i = 0; i < values.length; i++) target[i] = (values[i] as number) * scale;
    for (let i = 0; i < size; i++) target[i * size + i] = (target[i * size + i] as number) + rest;
  }

  private zeros(...shape: [number, number]): EngineTensor {
    return this.engine.tensor(new Float32Array(shape[0] * shape[1]), shape);
  }

  private async program(tokens: number, { inputs, covariance, direct }: Expert): Promise<Program> {
    const key = `${tokens} ${!direct}`;
    const known = this.programs.get(key);
    if (known) return known;
    const { rows: p, cols: d, activation } = this.options;
    const { size, hidden, weighsNeurons } = this;
    const shapes = {
      X: [tokens, d],
      v: [tokens, 1],
      up: 'up' in inputs ? [p, d] : undefined,
      gate: 'gate' in inputs ? [p, d] : undefined,
      S: covariance && [size, size],
      neurons: weighsNeurons ? [1, p] : undefined,
    };
    const graph = trace(shapes, ({ X, v, up, gate, S, neurons }) => {
      const outputs: Record<string, Value> = {};
      const u = up && matmul(X, up, { transposeB: true });
      const g = gate && matmul(X, gate, { transposeB: true });
      if (neurons) {
        const q = effect(this.options.projection, activation, g, u);
        outputs.neurons = add(neurons, sum(square(mul(q, v)), [0]));
      }
      if (S || direct) {
        const features = mul(hidden ? hiddenOf(activation, g, u) : X, v);
        if (S) outputs.S = add(S, matmul(features, features, { transposeA: true }));
        else outputs.features = features;
      }
      return outputs;
    });
    const program = await this.engine.compile(graph);
    this.programs.set(key, program);
    return program;
  }

  async dispose(): Promise<void> {
    for (const program of this.programs.values()) await program.dispose();
    await this.lowRank?.dispose();
  }
}

/** The hidden activations: f(g)·u, or f(u) of an expert without a gate. */
export function hiddenOf(activation: Activation, g: Value | undefined, u: Value | undefined): Value {
  const { value } = activateWithDerivative(activation, (g ?? u) as Value);
  return g && u ? mul(value, u) : value;
}

/** q: how much the hidden activation changes with the output of the projection. */
function effect(projection: Projection, activation: Activation, g: Value | undefined, u: Value | undefined): Value {
  const { value, derivative } = activateWithDerivative(activation, (g ?? u) as Value);
  if (!g) return derivative;
  return projection === 'gate_proj' && u ? mul(derivative, u) : value;
}

/** ‖down_:k‖² of each column of down (d, p). */
function columnNorms(down: Float32Array, columns: number): Float64Array {
  const norms = new Float64Array(columns);
  for (let i = 0, k = 0; i < down.length; i++, k = k + 1 === columns ? 0 : k + 1) {
    const value = down[i] as number;
    norms[k] = (norms[k] as number) + value * value;
  }
  return norms;
}

/** Values, followed by zeros up to a length. */
export const padded = (values: Float32Array, length: number): Float32Array => {
  if (values.length === length) return values;
  const result = new Float32Array(length);
  result.set(values);
  return result;
};

/** The mean diagonal of ZZᵀ. */
function meanSquare(Z: Float32Array, size: number): number {
  let total = 0;
  for (const value of Z) total += value * value;
  return total / size;
}

/** Writes Z and c of (1 − ρ)·(ZZᵀ + c·I)/mean + ρ·I. */
function shrinkFactor(Z: Float32Array, mean: number, c: number, share: number, target: Float32Array): void {
  const scale = mean === 0 ? 0 : (1 - share) / mean;
  const root = Math.sqrt(scale);
  for (let i = 0; i < Z.length; i++) target[i] = (Z[i] as number) * root;
  target[Z.length] = mean === 0 ? 1 : scale * c + share;
}
