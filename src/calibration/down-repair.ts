/**
 * The repair of an expert's down_proj D after its gate and up were compressed. With h₀ and h₁ the hidden activations before and
 * after, weighted by v, D′ minimises Σ_t ‖D h₀ − D′ h₁‖² + λ‖D′ − D‖². So D′ = D (Σ h₀h₁ᵀ + λI)(Σ h₁h₁ᵀ + λI)⁻¹, which is
 * D + D·E·(H + λI)⁻¹ with H = Σ h₁h₁ᵀ and E = Σ (h₀ − h₁)h₁ᵀ. This form rounds only the correction to f32.
 */
import type { Engine, EngineTensor, Program } from '../engine/engine.js';
import { trace } from '../engine/graph.js';
import { add, identity, matmul, mul, reshape, sub, type Value } from '../engine/ops.js';
import { createInverter } from '../methods/mobe/inverter.js';
import { hiddenOf, padded, roomFor, type TokenBatch } from './expert-statistics.js';

/** λ, as a share of H's mean diagonal. */
const RIDGE = 0.1;

/** gate_proj and up_proj of an expert, each (p, d). Some experts have no gate. */
export interface GateAndUp {
  readonly gate?: Float32Array | undefined;
  readonly up: Float32Array;
}

/** The experts of a layer. */
export interface ExpertShape {
  /** p */
  readonly rows: number;
  /** d */
  readonly cols: number;
  /** Whether they have a gate. */
  readonly gated: boolean;
}

/** Repairs one expert at a time. */
export interface DownRepair {
  /** Sets the expert's weights. */
  begin(before: GateAndUp, after: GateAndUp): void;
  /** Adds tokens of the expert. */
  add(batch: TokenBatch): Promise<void>;
  /** D′, (d, p), for D of the same shape. The same array if no token activates the expert. */
  solve(down: Float32Array): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/** Prepares to repair the experts of a layer, whose hidden activations are silu(gate·x) ⊙ up·x, or silu(up·x) without a gate. */
export async function createDownRepair(engine: Engine, { rows: p, cols: d, gated }: ExpertShape): Promise<DownRepair> {
  const weights = [p, d];
  const square = [p, p];
  const gates = gated ? weights : undefined;
  const sums = new Map<number, Program>();
  const sumsOf = async (count: number): Promise<Program> => {
    const known = sums.get(count);
    if (known) return known;
    const program = await engine.compile(
      trace(
        {
          ...{ h: [count, d], v: [count, 1], H: square, E: square },
          ...{ gate0: gates, up0: weights, gate1: gates, up1: weights },
        },
        ({ h, v, gate0, up0, gate1, up1, H, E }) => {
          const project = (W: Value): Value => matmul(h, W, { transposeB: true });
          const hidden = (gate: Value | undefined, up: Value): Value =>
            mul(hiddenOf('silu', gate && project(gate), project(up)), v);
          const after = hidden(gate1, up1);
          const sumWith = (before: Value, it: Value): Value => add(before, matmul(it, after, { transposeA: true }));
          return { H: sumWith(H, after), E: sumWith(E, sub(hidden(gate0, up0), after)) };
        },
      ),
    );
    sums.set(count, program);
    return program;
  };
  const shifted = await engine.compile(
    trace({ H: square, scale: [1, 1] }, ({ H, scale }) => ({
      G: reshape(add(mul(H, scale), mul(identity(p), RIDGE)), [1, p, p]),
    })),
  );
  const correct = await engine.compile(
    trace({ D: [1, d, p], E: square, scale: [1, 1], G: [1, p, p], X: [1, p, p] }, ({ D, E, scale, G, X }) => {
      const DE = matmul(D, reshape(mul(E, scale), [1, p, p]));
      const first = matmul(DE, X);
      return { D: add(D, add(first, matmul(sub(DE, matmul(first, G)), X))) };
    }),
  );
  const inverter = await createInverter(engine, p);
  let held: Record<string, EngineTensor> = {};
  const release = (): void => {
    for (const tensor of Object.values(held)) tensor.dispose();
    held = {};
  };

  return {
    begin(before, after) {
      release();
      const zeros = (): EngineTensor => engine.tensor(new Float32Array(p * p), square);
      held = {
        ...(before.gate && { gate0: engine.tensor(before.gate, weights) }),
        up0: engine.tensor(before.up, weights),
        ...(after.gate && { gate1: engine.tensor(after.gate, weights) }),
        up1: engine.tensor(after.up, weights),
        H: zeros(),
        E: zeros(),
      };
    },
    async add({ inputs, importance }) {
      const room = roomFor(importance.length);
      const h = engine.tensor(padded(inputs, room * d), [room, d]);
      const v = engine.tensor(padded(importance, room), [room, 1]);
      const next = await (await sumsOf(room)).run({ ...held, h, v });
      for (const used of [h, v, held.H, held.E]) used?.dispose();
      held = { ...held, ...next };
    },
    async solve(down) {
      const { H, E } = held as { H: EngineTensor; E: EngineTensor };
      const values = await engine.read(H);
      let mean = 0;
      for (let i = 0; i < p; i++) mean += (values[i * p + i] as number) / p;
      if (!(mean > 0)) return down;
      const scale = engine.tensor(Float32Array.of(1 / mean), [1, 1]);
      const { G } = (await shifted.run({ H, scale })) as { G: EngineTensor };
      const X = await inverter.invert(G);
      const D = engine.tensor(down, [1, d, p]);
      const result = (await correct.run({ D, E, scale, G, X })).D as EngineTensor;
      const repaired = (await engine.read(result)).slice();
      for (const used of [scale, G, X, D, result]) used.dispose();
      release();
      return repaired;
    },
    async dispose() {
      release();
      await inverter.dispose();
      for (const program of [...sums.values(), shifted, correct]) await program.dispose();
    },
  };
}
