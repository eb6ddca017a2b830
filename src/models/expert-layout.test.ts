import { describe, expect, test } from 'vitest';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { type ExpertLayout, expertLayout, layoutOf, placeIn, shapeIn } from './expert-layout.js';
import { PROJECTIONS, type Projection } from './family.js';

const [N, P, D] = [3, 4, 6];
const PREFIX = 'model.layers.2.mlp.';

const sizeOf = (projection: Projection) => (projection === 'down_proj' ? { rows: D, cols: P } : { rows: P, cols: D });

const gateUp = (transposed: boolean, interleaved: boolean): ExpertLayout => [
  { name: 'experts.gate_up_proj', projections: ['gate_proj', 'up_proj'], transposed, interleaved, flat: false },
  { name: 'experts.down_proj', projections: ['down_proj'], transposed, interleaved: false, flat: false },
];

const one = (name: string, projection: Projection) => ({
  name,
  projections: [projection],
  interleaved: false,
  transposed: false,
  flat: false,
});

const LAYOUTS: Record<string, ExpertLayout> = {
  separate: PROJECTIONS.map((projection) => one(`experts.{e}.${projection}.weight`, projection)),
  "Mixtral's": [
    one('experts.{e}.w1.weight', 'gate_proj'),
    one('experts.{e}.w3.weight', 'up_proj'),
    one('experts.{e}.w2.weight', 'down_proj'),
  ],
  'one fused tensor a projection': PROJECTIONS.map((projection) => one(`${projection}.weight`, projection)),
  "DBRX's": [
    { ...one('experts.mlp.w1', 'gate_proj'), flat: true },
    { ...one('experts.mlp.v1', 'up_proj'), flat: true },
    { ...one('experts.mlp.w2', 'down_proj'), flat: true, transposed: true },
  ],
  'two matrices': [one('experts.up_proj', 'up_proj'), one('experts.down_proj', 'down_proj')],
  fused: gateUp(false, false),
  'fused, transposed': gateUp(true, false),
  'fused, alternating rows': gateUp(false, true),
  "gpt-oss's": gateUp(true, true),
};

function layer(layout: ExpertLayout) {
  const matrices = (projection: Projection): StoredMatrix[] =>
    Array.from({ length: N }, (_, expert) => expert).flatMap((expert) => {
      const place = placeIn(layout, PREFIX, projection, expert, sizeOf(projection));
      if (!place) return [];
      const data = { file: 'model.safetensors', start: 0, end: 2 * P * D };
      return { name: place.tensor, ...sizeOf(projection), encoding: { kind: 'float', dtype: 'BF16' }, data, place };
    });
  const experts = {
    gate_proj: matrices('gate_proj'),
    up_proj: matrices('up_proj'),
    down_proj: matrices('down_proj'),
  };
  return { layer: 2, prefix: PREFIX, experts };
}

/** The tensors of a checkpoint in this layout, by name. */
const tensorsOf = (layout: ExpertLayout) =>
  new Map(
    layout.flatMap((tensor) => {
      const shape = shapeIn(tensor, N, sizeOf(tensor.projections[0] as Projection));
      const names = Array.from({ length: N }, (_, expert) => `${PREFIX}${tensor.name.replace('{e}', String(expert))}`);
      return names.map((name) => [name, { shape }] as const);
    }),
  );

describe.each(Object.entries(LAYOUTS))('%s', (_, layout) => {
  test('is found from the places that it gives', () => {
    expect(layoutOf(layer(layout), tensorsOf(layout))).toEqual(layout);
    expect(expertLayout.parse(JSON.parse(JSON.stringify(layout)))).toEqual(layout);
  });

  test('gives every element of every tensor to one weight', () => {
    const taken = new Map<string, number[]>();
    for (const { rows, cols, place } of PROJECTIONS.flatMap((it) => layer(layout).experts[it])) {
      const { row, column } = place.steps ?? { row: cols, column: 1 };
      const elements = taken.get(place.tensor) ?? [];
      for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) elements.push(place.element + i * row + j * column);
      taken.set(place.tensor, elements);
    }
    const shapes = tensorsOf(layout);
    expect([...taken.keys()].sort()).toEqual([...shapes.keys()].sort());
    for (const [name, elements] of taken)
      expect(elements).toHaveLength(shapes.get(name)?.shape.reduce((a, b) => a * b) ?? 0);
    for (const elements of taken.values()) expect(elements.sort((a, b) => a - b)).toEqual(elements.map((_, i) => i));
  });
});
