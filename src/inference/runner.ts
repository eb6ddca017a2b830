/** Runs tensor programs on host arrays. Each program is compiled once for each set of sizes. */
import type { Engine, EngineTensor, Program } from '../engine/engine.js';
import type { Graph } from '../engine/graph.js';

/** Makes a program for given sizes. It must be a pure function: equal sizes give the same program. */
export type Recipe<Sizes> = (sizes: Sizes) => Graph;

/** Compiled programs that are kept. A model needs about ten for each number of tokens. */
const MAX_PROGRAMS = 256;

/** Input of a program: a tensor of the engine, or an array, which gets its shape from the program. */
export type Feed = EngineTensor | Float32Array;

/** Programs of one engine. */
export class Runner {
  /** Ordered by last use. */
  private readonly programs = new Map<string, { graph: Graph; program: Program }>();
  private readonly names = new Map<Recipe<never>, string>();

  constructor(readonly engine: Engine) {}

  /** Runs a program and returns copies of the named outputs. Throws an `EngineError` if an input is missing or has a wrong size. */
  async run<Sizes, Out extends string>(
    recipe: Recipe<Sizes>,
    sizes: Sizes,
    feeds: Readonly<Record<string, Feed>>,
    outputs: readonly Out[],
  ): Promise<Record<Out, Float32Array>> {
    const read = {} as Record<Out, Float32Array>;
    await this.use(recipe, sizes, feeds, outputs, (name, values) => {
      read[name] = values.slice();
    });
    return read;
  }

  /** Like `run`, but copies the outputs into the caller's arrays. */
  async runInto<Sizes>(
    recipe: Recipe<Sizes>,
    sizes: Sizes,
    feeds: Readonly<Record<string, Feed>>,
    targets: Readonly<Record<string, Float32Array>>,
  ): Promise<void> {
    await this.use(recipe, sizes, feeds, Object.keys(targets), (name, values) => targets[name]?.set(values));
  }

  /** @param take gets each output. The array is valid only during the call. */
  private async use<Sizes, Out extends string>(
    recipe: Recipe<Sizes>,
    sizes: Sizes,
    feeds: Readonly<Record<string, Feed>>,
    outputs: readonly Out[],
    take: (name: Out, values: Float32Array) => void,
  ): Promise<void> {
    const { graph, program } = await this.compiled(recipe, sizes);
    const passing: EngineTensor[] = [];
    try {
      const inputs: Record<string, EngineTensor> = {};
      for (const [name, { shape }] of graph.inputs) {
        const feed = feeds[name];
        if (feed === undefined) continue; // the engine throws
        inputs[name] = feed instanceof Float32Array ? this.engine.tensor(feed, shape) : feed;
        if (feed instanceof Float32Array) passing.push(inputs[name]);
      }
      const results = await program.run(inputs);
      passing.push(...Object.values(results));
      for (const name of outputs) take(name, await this.engine.read(results[name] as EngineTensor));
    } finally {
      for (const tensor of passing) tensor.dispose();
    }
  }

  private async compiled<Sizes>(recipe: Recipe<Sizes>, sizes: Sizes): Promise<{ graph: Graph; program: Program }> {
    const key = `${this.nameOf(recipe)} ${JSON.stringify(sizes)}`;
    let compiled = this.programs.get(key);
    if (compiled) this.programs.delete(key);
    else {
      const graph = recipe(sizes);
      compiled = { graph, program: await this.engine.compile(graph) };
    }
    this.programs.set(key, compiled);
    if (this.programs.size > MAX_PROGRAMS) {
      const [oldest, { program }] = this.programs.entries().next().value as [string, { program: Program }];
      this.programs.delete(oldest);
      await program.dispose();
    }
    return compiled;
  }

  /** A unique name: two recipes may have the same function name. */
  private nameOf(recipe: Recipe<never>): string {
    const known = this.names.get(recipe) ?? String(this.names.size);
    this.names.set(recipe, known);
    return known;
  }

  async dispose(): Promise<void> {
    for (const { program } of this.programs.values()) await program.dispose();
    this.programs.clear();
  }
}
