import type { ExpertGroup, TensorRecord } from '../records.js';

/** Gathers the experts of each group; a group leaves as soon as its last expert is in. */
export async function* groupExperts(records: AsyncIterable<TensorRecord>): AsyncGenerator<ExpertGroup> {
  let experts: Array<Uint8Array<ArrayBuffer>> = [];
  let arrived = 0;
  for await (const { group, expert, data, release } of records) {
    experts[expert] = data;
    arrived++;
    if (arrived < group.experts.length) continue;
    yield { group, experts, release };
    experts = [];
    arrived = 0;
  }
}
