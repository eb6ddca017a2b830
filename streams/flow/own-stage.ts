import type { Held } from '../records.js';

/** A stage of groups that a user of the library puts into the pipeline. */
export type OwnStage<T extends Held> = (groups: AsyncIterable<T>) => AsyncIterable<T>;

/**
 * Runs a stage of somebody's own so that a group it drops cannot hang the pipeline: when the stage asks for its next group,
 * those that it has neither passed on nor released are given back to the budget. A stage that keeps groups to pass them on
 * later may do so; their memory is then not counted.
 */
export async function* runOwnStage<T extends Held>(groups: AsyncIterable<T>, own: OwnStage<T>): AsyncGenerator<T> {
  const inside = new Set<T['release']>();
  const giveBack = (): void => {
    for (const release of inside) release();
    inside.clear();
  };
  async function* entering(): AsyncGenerator<T> {
    for await (const group of groups) {
      inside.add(group.release);
      yield group;
      giveBack();
    }
  }
  try {
    for await (const group of own(entering())) {
      inside.delete(group.release);
      yield group;
    }
  } finally {
    giveBack();
  }
}
