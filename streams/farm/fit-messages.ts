/** Messages between a farm's worker and the process that fits for it. */
import type { FitStep } from '../../src/methods/method.js';
import type { FarmRun } from './farm-run.js';

/** A process has this long to save its state when it is asked to stop. `interruptible` ends the worker soon after. */
export const STOP_WITHIN_MS = 1_200;

/** A request to the process. */
export type ToFit =
  | {
      readonly kind: 'fit';
      readonly run: FarmRun;
      /** Labels of the groups. */
      readonly groups: readonly string[];
      readonly limits: FitLimits;
    }
  | { readonly kind: 'stop' };

/** The part of a machine that a process may use, and its secrets. */
export interface FitLimits {
  readonly maxMemory: number;
  readonly saveEvery?: number | undefined;
  readonly token?: string | undefined;
  readonly ca?: Buffer | undefined;
}

/** A message of the process. It answers each `fit` with one `done` or `failed`. */
export type FromFit =
  | { readonly kind: 'step'; readonly step: FitStep }
  /** Work goes on that is no step. */
  | { readonly kind: 'alive' }
  | { readonly kind: 'done'; readonly device: string; readonly already: boolean; readonly seconds: number }
  /** @param planning the fit had not begun: the cause is this machine, not the group */
  | { readonly kind: 'failed'; readonly name: string; readonly message: string; readonly planning: boolean };
