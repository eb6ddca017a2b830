/** The targets of a varpro fit and their metric, as input tensors of its programs. */
import type { Engine, EngineTensor, Program } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import type { Targets } from '../method.js';
import { type BatchRange, StackedExperts } from './batches.js';
import { keepsProduct, metricShapes, timesColumns } from './metric.js';
import type { Problem } from './problem.js';

/** Tensors by the names of a program's inputs. */
type Inputs = Readonly<Record<string, EngineTensor>>;

/** Targets and metric of all experts, batch by batch. */
export class WeightedTargets {
  private readonly weights: StackedExperts;
  private readonly columns: StackedExperts | undefined;
  private readonly rows: StackedExperts | undefined;
  /** W·C by first expert. If it is not kept, only that of the last batch. */
  private readonly products = new Map<number, EngineTensor>();
  /** Programs that multiply W by C, by batch size. */
  private readonly programs = new Map<number, Program>();

  /** @param hold whether arrays and W·C are kept for the whole fit */
  constructor(
    private readonly engine: Engine,
    private readonly problem: Problem,
    private readonly targets: Targets,
    private readonly hold: boolean,
  ) {
    const { rows, columns } = targets.metric ?? {};
    const { C, P } = metricShapes(problem, 1, targets.metric);
    this.weights = new StackedExperts(engine, targets, [problem.rows, problem.cols], hold);
    if (columns && C) this.columns = new StackedExperts(engine, columns, C.slice(1), hold);
    if (rows && P) this.rows = new StackedExperts(engine, rows, P.slice(1), hold);
  }

  /** Whether the metric has a C. */
  get hasColumns(): boolean {
    return this.columns !== undefined;
  }

  /** W, the metric's C and P, and WC = W·C if C is full. Valid until the call for another batch. The caller must not dispose of them. */
  async get(range: BatchRange): Promise<Inputs> {
    const W = this.weights.get(range);
    const { C } = this.getColumns(range);
    return {
      W,
      ...(C && { C, ...(keepsProduct(this.targets.metric) && { WC: await this.product(range, W, C) }) }),
      ...(this.rows && { P: this.rows.get(range) }),
    };
  }

  /** C, if the metric has it. Valid until the call for another batch. The caller must not dispose of it. */
  getColumns(range: BatchRange): { C?: EngineTensor } {
    return this.columns ? { C: this.columns.get(range) } : {};
  }

  private async product({ first, count }: BatchRange, W: EngineTensor, C: EngineTensor): Promise<EngineTensor> {
    const known = this.products.get(first);
    if (known) return known;
    if (!this.hold) this.disposeProducts();
    const out = await (await this.multiplication(count)).run({ W, C });
    const WC = out.WC as EngineTensor;
    this.products.set(first, WC);
    return WC;
  }

  private disposeProducts(): void {
    for (const product of this.products.values()) product.dispose();
    this.products.clear();
  }

  private async multiplication(count: number): Promise<Program> {
    const known = this.programs.get(count);
    if (known) return known;
    const { rows, cols } = this.problem;
    const { C } = metricShapes(this.problem, count, this.targets.metric);
    const graph = trace({ W: [count, rows, cols], C }, (it) => ({ WC: timesColumns(it.W, it.C) }));
    const program = await this.engine.compile(graph);
    this.programs.set(count, program);
    return program;
  }

  async dispose(): Promise<void> {
    for (const stacked of [this.weights, this.columns, this.rows]) stacked?.dispose();
    this.disposeProducts();
    for (const program of this.programs.values()) await program.dispose();
  }
}
