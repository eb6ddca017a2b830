/** The ways of storing gate and up in fewer bytes that bench/bytes.ts compares. */

/** Factors of MoBE, made by `mobe compress`. */
export interface FactorWay {
  readonly kind: 'factors';
  readonly name: string;
  readonly series: string;
  readonly options: readonly string[];
  /** Whether every seed is measured, or the first alone. */
  readonly everySeed: boolean;
}

/** Rounded weights: `quantiseMatrix` of every expert. */
export interface DenseWay {
  readonly kind: 'dense';
  readonly name: string;
  readonly series: string;
  readonly width: number;
  /** How weights are rounded: each by itself, or with error feedback in the record's metric, with scales above 0 or of any sign. */
  readonly rounding: 'nearest' | 'feedback' | 'feedback, signed scales';
  readonly everySeed: boolean;
}

export type BytesWay = FactorWay | DenseWay;

/** Columns that share a scale, of dense weights as of factors. */
export const SCALE_GROUP = 64;

const TWO = ['--projections', 'gate_proj,up_proj'];
const M8 = ['--bases', '8'];
const UNIFORM = ['--allocate', 'uniform'];

const dense = (width: number, rounding: DenseWay['rounding'], name: string): DenseWay => ({
  ...{ kind: 'dense', name: `${name} int${width}`, series: name, width, rounding },
  everySeed: rounding !== 'nearest',
});

const DTYPES = ['bfloat16', 'int8', 'fp8', 'int6', 'int5', 'int4'];
/** Those for which there are targets. */
const ALLOCATED = ['bfloat16', 'int8', 'fp8'];

/** The shares of bf16's bytes to which bases and dtypes are allocated: those of `int8` at m = 8, of dense 3 bits, and others. */
const BUDGETS = [0.301, 0.203, 0.17, 0.141];

/** The bits of a weight over all three projections, if gate and up have this share of bf16's 16 and down has 16. */
const averageBits = (share: number): string => ((2 * 16 * share + 16) / 3).toFixed(4);

export const WAYS: readonly BytesWay[] = [
  ...[2, 3, 4, 8].flatMap((width) => [dense(width, 'nearest', 'nearest'), dense(width, 'feedback', 'GPTQ')]),
  ...[2, 3].map((width) => dense(width, 'feedback, signed scales', 'GPTQ, signed scales')),
  ...DTYPES.map(
    (dtype): FactorWay => ({
      ...{ kind: 'factors', name: `m = 8, ${dtype}`, series: 'factors, m = 8' },
      ...{ options: [...TWO, ...M8, ...UNIFORM, '--dtype', dtype], everySeed: false },
    }),
  ),
  ...ALLOCATED.map(
    (dtype): FactorWay => ({
      ...{ kind: 'factors', name: `m allocated, ${dtype}`, series: 'factors, m allocated' },
      ...{ options: [...TWO, ...M8, '--dtype', dtype], everySeed: true },
    }),
  ),
  ...BUDGETS.map(
    (share): FactorWay => ({
      ...{
        kind: 'factors',
        name: `m and dtypes at ${(100 * share).toFixed(1)} %`,
        series: 'factors, fitted to bytes',
      },
      ...{ options: [...TWO, '--average-bits', averageBits(share)], everySeed: true },
    }),
  ),
];

/** What the comparison should show. Shares and KLs are means over seeds. */
export const TARGETS = { int8: 1.25, fp8: 1.3, threeBits: 0.75, between: { share: 0.17, of: 0.65 } } as const;
