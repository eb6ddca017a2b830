/** Changes of a layer's output by its probes, within a budget of memory. */
import {
  differenceBytes,
  type OutputDifferences,
  outputDifferences,
  type RoutedTokens,
} from '../../src/calibration/output-differences.js';
import { lossBytes } from '../../src/calibration/output-loss.js';
import type { LayerRecord } from '../../src/calibration/record.js';
import { BudgetTooSmallError, DamagedRecordError } from '../../src/errors.js';
import { sizesOf } from '../../src/models/detect.js';
import { type Probe, ProbeWeights, rebuildBytes } from './probe-weights.js';
import type { Measurement } from './sensitivity-measurement.js';

/** Fewer tokens would give noise. */
const LEAST_TOKENS = 256;

/**
 * Chooses which probes of a layer are computed together, and for how many tokens. Together the layer's weights are read once;
 * alone fewer bases are held. Throws `BudgetTooSmallError`.
 * @param parts the memory is divided by this
 */
export function arrangeProbes(
  { layer: layerOf, bytes, reservedBytes }: Measurement,
  { layer: number, width }: Pick<LayerRecord, 'layer' | 'width'>,
  probes: readonly Probe[],
  wanted: number,
  parts = 1,
): { together: Array<readonly Probe[]>; tokens: number } {
  const room = (groups: ReadonlyArray<readonly Probe[]>): { tokens: number; smallest: number } => {
    const needs = groups.map((own) => {
      const bases = own.reduce((sum, probe) => sum + rebuildBytes(probe), 0);
      const [differences, losses] = [differenceBytes(layerOf(number), width, own.length), lossBytes(width)];
      return { token: differences.token + losses.token, fixed: differences.fixed + losses.fixed + bases };
    });
    return {
      tokens: Math.min(wanted, ...needs.map(({ token, fixed }) => Math.floor((bytes / parts - fixed) / token))),
      smallest: Math.max(...needs.map(({ token, fixed }) => fixed + token * Math.min(wanted, LEAST_TOKENS))),
    };
  };
  const all = [probes];
  if (room(all).tokens === wanted) return { together: all, tokens: wanted };
  const single = probes.map((probe) => [probe]);
  const { tokens, smallest } = room(single);
  if (tokens < Math.min(wanted, LEAST_TOKENS))
    throw new BudgetTooSmallError(bytes + reservedBytes, parts * smallest + reservedBytes);
  return { together: single, tokens };
}

/**
 * The output of the layer's routed experts, and its change by each probe.
 * @param onShare called with the share of the experts that are done
 */
export async function changesOf(
  { layer: layerOf, record, runner, reader, probeReader, pause }: Measurement,
  number: number,
  tokens: RoutedTokens,
  probes: readonly Probe[],
  onShare: (share: number) => void = () => {},
): Promise<OutputDifferences> {
  const layer = layerOf(number);
  const { count, cols } = sizesOf(layer);
  if (tokens.width !== cols || tokens.experts.some((expert) => expert < 0 || expert >= count))
    throw new DamagedRecordError(record.name, `its layer ${number} does not fit experts of the model`);
  const replacements = probes.map((probe) => new ProbeWeights(probe, probeReader, runner.engine));
  let done = 0;
  try {
    return await outputDifferences(layer, tokens, replacements, {
      reader,
      runner,
      async beforeExpert() {
        await pause();
        onShare(Math.min(1, done++ / count));
      },
    });
  } finally {
    for (const it of replacements) await it.dispose();
  }
}
