import { EngineUnavailableError } from '../errors.js';
import { DEFAULT_ENGINE, ENGINE_NAMES, type EngineName, FOR_CHECKS } from './create-engine.js';
import { cpuName } from './device-name.js';
import type { EngineFacts } from './engine.js';
import type { ProductShape } from './gemm-rate.js';
import { type BrokenEngine, probeEngine, type WorkingEngine, works } from './probe.js';

/** Values of `--engine`. */
export const ENGINE_CHOICES = ['auto', ...ENGINE_NAMES] as const;
/** A value of `--engine`. */
export type EngineChoice = (typeof ENGINE_CHOICES)[number];

/** The engine to use, and its device. */
export interface ChosenEngine extends EngineFacts {
  readonly name: EngineName;
}

/**
 * Chooses an engine before work begins. `auto` measures the engines that are not for checks alone on products of the given shape. Throws an
 * `EngineUnavailableError` if the named engine does not work.
 */
export async function chooseEngine(choice: EngineChoice, threads: number, shape?: ProductShape): Promise<ChosenEngine> {
  if (choice === DEFAULT_ENGINE) return defaultEngine();
  if (choice === 'auto') {
    const probes: Array<WorkingEngine | BrokenEngine> = [];
    // Engines that are measured at the same time slow each other down.
    for (const name of ENGINE_NAMES)
      if (!FOR_CHECKS[name]) probes.push(await probeEngine(name, { threads, rate: shape ?? 'any' }));
    return fastest(probes.filter(works));
  }
  const probe = await probeEngine(choice, { threads });
  if (!works(probe)) throw new EngineUnavailableError(choice, probe.reason);
  return probe;
}

/**
 * The fastest GPU if it is faster than the default engine, else the default engine. A GPU emulated in software counts as a CPU. Engines
 * for checks are not taken.
 */
export function fastest(engines: readonly WorkingEngine[]): ChosenEngine {
  const rate = ({ gemmRate = 0 }: WorkingEngine): number => gemmRate;
  const standard = engines.find(({ name }) => name === DEFAULT_ENGINE);
  const gpus = engines
    .filter(({ kind, name }) => kind === 'gpu' && !FOR_CHECKS[name])
    .sort((a, b) => rate(b) - rate(a));
  const [best] = gpus;
  if (best && (!standard || rate(best) > rate(standard))) return best;
  return standard ?? defaultEngine();
}

const defaultEngine = (): ChosenEngine => ({
  name: DEFAULT_ENGINE,
  device: cpuName(),
  kind: 'cpu',
  writesParts: true,
});
