/** What bench/transport.ts compares. `ws`: without masks, as fast as it gets; `ws masked`: as a client sends by default. */
const WAYS = ['tcp', 'ws', 'ws masked', 'mobe'] as const;
export type Way = (typeof WAYS)[number];
export const DIRECTIONS = ['client to server', 'server to client'] as const;
export type Direction = (typeof DIRECTIONS)[number];
export type Role = 'listen' | 'connect';

/** Servers never mask. */
export const waysOf = (direction: Direction): readonly Way[] =>
  WAYS.filter((way) => way !== 'ws masked' || direction === 'client to server');
