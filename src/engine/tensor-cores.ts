/**
 * TF32 on NVIDIA's GPUs. Their libraries read one variable of the environment, when they start, so a process has one answer for all
 * engines. Neither TensorFlow.js nor ONNX Runtime's Node binding has a switch of its own, and both runtimes multiply in TF32 where the
 * variable allows it. So where it is allowed, the products of programs in f32 are split (products.ts).
 */
import { PrecisionError } from '../errors.js';
import type { Engine, EngineFacts, Precision } from './engine.js';
import { roundFactors, splitFactors } from './products.js';

const VARIABLE = 'NVIDIA_TF32_OVERRIDE';

/** Allows TF32 in this process, unless the user forbids it or an engine started without it. Must be called before an engine starts. */
export function allowTensorCores(): void {
  process.env[VARIABLE] ??= '1';
}

/** Whether an engine that starts now may use TF32. If nobody allowed it, it is forbidden from now on. */
export function tensorCoresAllowed(): boolean {
  process.env[VARIABLE] ??= '0';
  return process.env[VARIABLE] !== '0';
}

/**
 * An engine whose products are in f32 unless a program asks for TF32.
 * @param engine all of whose products may be in TF32
 */
export const withTensorCores = (engine: Engine): Engine => ({
  ...engine,
  tf32: true,
  compile: (graph, precision) => engine.compile(precision === 'tf32' ? graph : splitFactors(graph)),
});

/** An engine that rounds the factors of all products, as tensor cores do. It is slower than the given one: it is for checks alone. */
export const simulateTensorCores = (engine: Engine): Engine =>
  withTensorCores({ ...engine, compile: (graph) => engine.compile(roundFactors(graph)) });

/** The precision of a fit's products: TF32 if the engine has it, unless f32 is asked for. Throws a `PrecisionError`. */
export function choosePrecision({ name, device, tf32 }: EngineFacts, asked: Precision | undefined): Precision {
  if (asked === 'tf32' && !tf32) throw new PrecisionError(name, device, tf32 === false);
  return asked ?? (tf32 ? 'tf32' : 'f32');
}
