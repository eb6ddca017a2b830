/** The options of an allocation: defaults, and what goes together. */
import type { z } from 'zod';
import type { MethodOptions } from '../methods/method.js';
import { methodNamed } from '../methods/registry.js';
import type { ALLOCATE_CHOICES, SENSITIVITY_CHOICES } from './allocation.js';

/** The options that decide how bases are spread. */
type AllocationOptions = Pick<MethodOptions, 'bases' | 'keep'> & {
  readonly method: string;
  readonly calibration?: string | undefined;
  readonly allocate?: (typeof ALLOCATE_CHOICES)[number] | undefined;
  readonly sensitivity?: (typeof SENSITIVITY_CHOICES)[number] | undefined;
  readonly maxLoss?: number | undefined;
};

/** Fills in how bases are spread, and what is measured for that. */
export function chosenAllocation({ method, calibration, allocate, sensitivity }: AllocationOptions) {
  const possible = calibration !== undefined && methodNamed(method).bases !== undefined;
  const chosen = allocate ?? (possible ? 'calibrated' : 'uniform');
  return { allocate: chosen, sensitivity: sensitivity ?? (chosen === 'calibrated' ? 'local' : undefined) };
}

/** Refuses options that contradict each other or the method. */
export function checkAllocation(options: AllocationOptions, { addIssue }: z.RefinementCtx) {
  const { method, calibration, allocate, sensitivity, maxLoss, bases, keep } = options;
  const refuse = (option: keyof AllocationOptions, message: string): void =>
    addIssue({ code: 'custom', path: [option], message });
  const chosen = chosenAllocation(options).allocate;
  if (allocate !== undefined && allocate !== 'uniform' && !methodNamed(method).bases)
    refuse('allocate', `--method ${method} has no bases to spread. Use --allocate uniform, or leave it out`);
  else if (allocate === 'calibrated' && calibration === undefined)
    refuse(
      'allocate',
      'calibrated needs a calibration record: make one with "mobe calibrate" and give it as --calibration, or use --allocate error',
    );
  else if (sensitivity !== undefined && chosen !== 'calibrated')
    refuse('sensitivity', 'it decides how --allocate calibrated measures, which needs --calibration');
  else if (maxLoss !== undefined && sensitivity !== 'kl')
    refuse(
      'maxLoss',
      'the loss is a KL divergence, which only --sensitivity kl measures. Give that, too, or use --keep',
    );
  else if (maxLoss !== undefined && (bases ?? keep) !== undefined)
    refuse('maxLoss', `it decides the size, and so does --${bases === undefined ? 'keep' : 'bases'}. Give one of them`);
}
