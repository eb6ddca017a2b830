/** Measures matrices in a metric, for reports. */
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { elements, mul, sum } from '../../engine/ops.js';
import type { GroupShape, Metric, MetricMatrix } from '../method.js';
import { metricShapes, timesColumns, timesRows } from './metric.js';

/** Computes tr(P M C Mᵀ). */
export interface MetricNorm {
  /** @param values M (p, d) f32, row-major */
  squared(expert: number, values: Float32Array): Promise<number>;
  dispose(): Promise<void>;
}

/** Prepares the norm of a group's metric. */
export async function createMetricNorm(
  engine: Engine,
  { rows: p, cols: d }: Pick<GroupShape, 'rows' | 'cols'>,
  metric: Metric,
): Promise<MetricNorm> {
  const { C, P } = metricShapes({ rows: p, cols: d }, 1, metric);
  const program = await engine.compile(
    trace({ M: [1, p, d], C, P }, ({ M, C, P }) => ({ sums: sum(mul(M, timesRows(P, timesColumns(M, C))), [2]) })),
  );
  const tensorOf = (matrix: MetricMatrix | undefined, shape: readonly number[] | undefined, expert: number) => {
    if (!matrix || !shape) return undefined;
    const number = matrix.shared ? 0 : expert;
    const known = matrix.view?.(number);
    const values = known ?? new Float32Array(elements(shape));
    if (!known) matrix.read(number, values);
    return engine.tensor(values, shape);
  };
  return {
    async squared(expert, values) {
      const [tensorC, tensorP] = [tensorOf(metric.columns, C, expert), tensorOf(metric.rows, P, expert)];
      const inputs = {
        M: engine.tensor(values, [1, p, d]),
        ...(tensorC && { C: tensorC }),
        ...(tensorP && { P: tensorP }),
      };
      const { sums } = await program.run(inputs);
      let total = 0;
      for (const row of await engine.read(sums as EngineTensor)) total += row;
      for (const tensor of [...Object.values(inputs), sums]) tensor?.dispose();
      return total;
    },
    dispose: () => program.dispose(),
  };
}
