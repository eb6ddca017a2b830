import type { Family } from './family.js';

/** Mixtral 8x7B and 8x22B. Experts are named `block_sparse_moe.experts.{e}.w1`, `w3` and `w2`. */
export const mixtral: Family = {
  name: 'Mixtral',
  modelTypes: ['mixtral'],
  expertCountKey: 'num_local_experts',
  rowsKey: 'intermediate_size',
  isMoeLayer: () => true,
};
