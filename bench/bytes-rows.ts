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
  /**
   * How weights are rounded: each by itself, or with error feedback in the record's metric: as published, or by our rounding, with scales
   * above 0 or of any sign.
   */
  readonly rounding: 'nearest' | 'as published' | 'feedback' | 'feedback, signed scales';
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
  everySeed: (rounding === 'feedback' || rounding === 'as published') && width < 4,
});

const DTYPES = ['bfloat16', 'int8', 'fp8', 'int6', 'int5', 'int4'];
/** The share of bf16's bytes that 8 bits a number make of m = 8, and those to which bases and dtypes are allocated. */
const EIGHT_BITS = 0.3015;
const BUDGETS = [
  { share: 0.3015, everySeed: false },
  { share: 0.203, everySeed: true },
  { share: 0.17, everySeed: true },
  { share: 0.141, everySeed: false },
];

/** The bits of a weight over all three projections, if gate and up have this share of bf16's 16 and down has 16. */
const averageBits = (share: number): string => ((2 * 16 * share + 16) / 3).toFixed(4);

const allocated = (dtype: string, size: readonly string[]): FactorWay => ({
  ...{ kind: 'factors', name: `m allocated, ${dtype}`, series: 'factors, m allocated', everySeed: true },
  options: [...TWO, ...size, '--dtype', dtype],
});

/** `repaired` says that down_proj is repaired as well, which stays dense and in bf16. */
const fitted = (share: number, everySeed: boolean, repaired = ''): FactorWay => ({
  ...{ kind: 'factors', name: `m and dtypes at ${(100 * share).toFixed(1)} %${repaired}`, everySeed },
  series: repaired ? 'the same, down repaired' : 'factors, fitted to bytes',
  options: [...TWO, '--average-bits', averageBits(share), ...(repaired ? ['--repair', 'factors+down'] : [])],
});

export const WAYS: readonly BytesWay[] = [
  ...[2, 3, 4, 8].flatMap((width) => [dense(width, 'nearest', 'nearest'), dense(width, 'feedback', 'GPTQ')]),
  ...[2, 3].map((width) => dense(width, 'feedback, signed scales', 'GPTQ, signed scales')),
  ...[2, 3, 4].map((width) => dense(width, 'as published', 'GPTQ as published,')),
  ...DTYPES.map(
    (dtype): FactorWay => ({
      ...{ kind: 'factors', name: `m = 8, ${dtype}`, series: 'factors, m = 8' },
      ...{ options: [...TWO, ...M8, ...UNIFORM, '--dtype', dtype], everySeed: false },
    }),
  ),
  allocated('bfloat16', M8),
  allocated('int8', ['--average-bits', averageBits(EIGHT_BITS)]),
  allocated('fp8', ['--average-bits', averageBits(EIGHT_BITS)]),
  ...BUDGETS.map(({ share, everySeed }) => fitted(share, everySeed)),
  fitted(0.203, true, ', down repaired'),
  fitted(0.17, true, ', down repaired'),
];

/** The most that the KL of factors should be, as a multiple of their rival's. Both are means over seeds. */
export const TARGETS = { int8: 1.25, fp8: 1.3, threeBits: 0.75, between: { share: 0.17, of: 0.65 } } as const;
