import { floatBytes } from '../checkpoint/dtype.js';
import { floatDtypeOf } from '../checkpoint/encoding.js';
import { isQuantised, quantisedMatrix } from '../checkpoint/quantisation.js';
import { matrixBytes } from '../checkpoint/stored-matrix.js';
import { describeGrowth } from '../conversion/check-size.js';
import type { TimedPlan } from '../conversion/estimate.js';
import { describeEncodings, formatRanges, type GroupPlan } from '../conversion/group-plan.js';
import { holdsWeights, isNative } from '../conversion/settings.js';

/** The notes on a plan: those on the source, and those if experts do not stay quantised or the output has more bytes. */
export const planNotes = (planned: TimedPlan): string[] => [
  ...planned.source.notes,
  ...planned.model.notes,
  ...decodedNote(planned),
  ...unpackedNote(planned),
  ...cutBlocksNote(planned),
  ...growthNote(planned),
];

/** Names the quantisations that `--keep-quantized` cannot write, so that converted experts become plain. */
function decodedNote({ groups, format, settings: { keepQuantized, dtype } }: TimedPlan): string[] {
  const isQuantised = ({ experts }: GroupPlan): boolean =>
    experts.some(({ encoding }) => floatDtypeOf(encoding) === undefined);
  const written = keepQuantized && holdsWeights({ format });
  const decoded = written ? groups.filter((group) => !group.forms && isQuantised(group)) : [];
  if (decoded.length === 0) return [];
  const layers = formatRanges([...new Set(decoded.map(({ layer }) => layer))]);
  const kinds = [...new Set(decoded.flatMap(describeEncodings))].join(', ');
  const matrices = decoded.flatMap(({ experts, dtype: float }) => experts.map((it) => ({ it, float })));
  const before = matrices.reduce((sum, { it }) => sum + matrixBytes(it), 0);
  const after = matrices.reduce((sum, { it, float }) => sum + it.rows * it.cols * floatBytes(float), 0);
  return [
    `the experts of layer ${layers} are decoded to ${dtype ?? 'bfloat16'}, which takes ${(after / before).toFixed(1)} times their bytes, in spite of --keep-quantized: their quantisation (${kinds}) can be read, but not written. All else stays quantised.`,
  ];
}

/** Says which programs do not load a result of which only some layers are quantised. */
function unpackedNote({ groups, model }: TimedPlan): string[] {
  const converted = new Set(groups.map(({ layer }) => layer));
  const others = model.layers.map(({ layer }) => layer).filter((layer) => !converted.has(layer));
  if (!groups[0]?.coded || others.length === 0) return [];
  return [
    `the experts of layer ${formatRanges(others)} stay plain, and those of the other layers are packed: transformers 5 does not load such a mixture. Leave out --layers for it.`,
  ];
}

/**
 * Names kept FP8 weights whose last blocks are cut short. transformers decodes the FP8 of a native checkpoint, and expects blocks that
 * divide a weight.
 */
function cutBlocksNote({ copies, source, format, groups }: TimedPlan): string[] {
  if (!isNative({ format }) || groups.length === 0) return [];
  const names = new Set(copies.filter(({ decode, assemble }) => !decode && !assemble).map(({ target }) => target));
  const cut = [...names].flatMap((name) => {
    const tensor = source.tensors.get(name);
    if (!tensor || !isQuantised(tensor)) return [];
    const { encoding, rows, cols } = quantisedMatrix(tensor, source);
    const isCut = (side: number, block: number): boolean => side > block && side % block > 0;
    if (encoding.kind !== 'codes' || !(isCut(rows, encoding.blockRows) || isCut(cols, encoding.blockCols))) return [];
    return [`${name} (${rows} × ${cols} in blocks of ${encoding.blockRows} × ${encoding.blockCols})`];
  });
  const more = cut.length > 1 ? ` and ${cut.length - 1} other weights` : '';
  return cut.length === 0
    ? []
    : [
        `${cut[0]}${more} stay in FP8 with blocks that do not divide them: transformers 5 refuses these or decodes them otherwise, and mobe does not. Leave out --keep-quantized for transformers.`,
      ];
}

function growthNote(planned: TimedPlan): string[] {
  const growth = describeGrowth(planned);
  return growth ? [`${growth} mobe compress writes it only with --allow-larger.`] : [];
}
