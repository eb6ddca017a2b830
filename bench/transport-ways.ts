/** The compared ways. `ws` sends without masks, which is fastest; `ws masked` sends as a client does by default. */
const WAYS = ['tcp', 'ws', 'ws masked', 'mobe'] as const;
export type Way = (typeof WAYS)[number];
export const DIRECTIONS = ['client to server', 'server to client'] as const;
export type Direction = (typeof DIRECTIONS)[number];
export type Role = 'listen' | 'connect';

/** The ways to measure in a direction. Servers never mask, so one way is left out. */
export const waysOf = (direction: Direction): readonly Way[] =>
  WAYS.filter((way) => way !== 'ws masked' || direction === 'client to server');
