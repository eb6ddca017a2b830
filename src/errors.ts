/**
 * Every failure a user can cause, one class each, with what failed, where, and what to do. `errors/base.ts` has the kinds, the
 * others a part of the program each.
 */
export * from './errors/base.js';
export * from './errors/checkpoint.js';
export * from './errors/metric.js';
export * from './errors/model.js';
export * from './errors/option.js';
export * from './errors/peer.js';
export * from './errors/queue.js';
export * from './errors/record.js';
export * from './errors/run.js';
export * from './errors/shard-header.js';
export * from './errors/torch.js';
export * from './errors/web.js';
