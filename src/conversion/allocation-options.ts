/** The options of an allocation: defaults, and what goes together. */
import type { z } from 'zod';
import type { MethodOptions } from '../methods/method.js';
import { DEFAULT_METHOD, methodNamed } from '../methods/registry.js';
import type { ALLOCATE_CHOICES, Allocation, SENSITIVITY_CHOICES } from './allocation.js';

/** The options that decide how bases are spread. */
type AllocationOptions = Pick<MethodOptions, 'bases' | 'keep'> & {
  readonly method: string;
  readonly calibration?: string | undefined;
  readonly allocate?: (typeof ALLOCATE_CHOICES)[number] | undefined;
  readonly sensitivity?: (typeof SENSITIVITY_CHOICES)[number] | undefined;
  readonly maxLoss?: number | undefined;
  readonly averageBits?: number | undefined;
  readonly keepBytes?: number | undefined;
  readonly format?: 'mobe' | 'hf' | undefined;
  readonly allocation?: Allocation | undefined;
};

/** Whether the options give a size in bytes, so that dtypes are allocated with the bases. */
export const limitsBytes = ({
  averageBits,
  keepBytes,
}: Pick<AllocationOptions, 'averageBits' | 'keepBytes'>): boolean => (averageBits ?? keepBytes) !== undefined;

/** Whether fits are made in the metric of a calibration record. */
export const hasMetric = ({
  calibration,
  metric,
  solver,
}: {
  readonly calibration?: string | undefined;
  readonly metric?: string | undefined;
  readonly solver?: string | undefined;
}): boolean => calibration !== undefined && metric !== 'none' && solver !== 'adam';

/** Fills in how bases are spread, and what is measured for that. */
export function chosenAllocation({ method, calibration, allocate, sensitivity, ...size }: AllocationOptions) {
  const possible = calibration !== undefined && methodNamed(method).bases !== undefined;
  const chosen = allocate ?? (possible ? 'calibrated' : limitsBytes(size) ? 'error' : 'uniform');
  return { allocate: chosen, sensitivity: sensitivity ?? (chosen === 'calibrated' ? 'local' : undefined) };
}

/** Refuses options that contradict each other or the method. */
export function checkAllocation(options: AllocationOptions, context: z.RefinementCtx) {
  const { addIssue } = context;
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
  if (limitsBytes(options)) checkBytes(options, context);
}

/** Refuses a size in bytes beside options that contradict it. */
function checkBytes(options: AllocationOptions, { addIssue }: z.RefinementCtx): void {
  const { method, format, allocate, averageBits, keepBytes, maxLoss, bases, keep, allocation } = options;
  const option = averageBits === undefined ? 'keepBytes' : 'averageBits';
  const refuse = (message: string): void => addIssue({ code: 'custom', path: [option], message });
  const sizes = { '--keep-bytes': keepBytes, '--keep': keep, '--bases': bases, '--max-loss': maxLoss };
  const other = Object.entries(sizes).find(([flag, value]) => value !== undefined && flag !== FLAGS[option]);
  if (other) refuse(`it decides the size, and so does ${other[0]}. Give one of them`);
  else if (!methodNamed(method).bases)
    refuse(`--method ${method} has no bases, which it spreads with the dtypes. Use --method ${DEFAULT_METHOD.name}`);
  else if (format === 'hf' && !allocation)
    refuse('it chooses the dtypes of factors, and --format hf writes rebuilt weights. Use --format mobe, or --keep');
  else if (allocate === 'uniform')
    refuse(
      'it spreads bytes by predicted errors, and --allocate uniform gives all the same. Use --allocate error, or leave it out',
    );
}

const FLAGS = { averageBits: '--average-bits', keepBytes: '--keep-bytes' } as const;
