/** Runs studies: makes all variants one after the other, then scores several at once. */
import type { Rank } from '../../src/methods/svd/baselines.js';
import { mean } from '../levels.js';
import type { Row, Study } from './studies.js';
import type { Score, Workshop } from './workshop.js';

/** Models that are scored at once, each on one thread. */
const LANES = 2;

/** A row with its scores. */
export interface ResultRow extends Row {
  readonly size?: Rank;
  /** Mean score of all seeds. */
  readonly score: Score;
  /** Scores of the seeds, if there are several. */
  readonly scores?: readonly Score[];
}

/** A study with its scores. */
export interface Result extends Study {
  readonly rows: readonly ResultRow[];
}

/** Makes and scores every variant once. */
export async function runStudies(
  studies: readonly Study[],
  workshop: Workshop,
  log: (line: string) => void,
): Promise<Result[]> {
  const rows = studies.flatMap((study) => study.rows);
  const variants = new Map(rows.flatMap((row) => row.variants).map((variant) => [variant.key, variant]));
  for (const variant of variants.values()) {
    await workshop.make(variant);
    log(`made ${variant.key}`);
  }
  const subjects = rows.flatMap((row) => row.variants.map((variant) => ({ variant, k: row.expertsPerToken })));
  const waiting = [...new Map(subjects.map((it) => [`${it.variant.key} ${it.k}`, it])).values()];
  const lane = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      await workshop.score(next.variant, next.k);
      log(`scored ${next.variant.key}, ${waiting.length} to go`);
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  const results: Result[] = [];
  for (const study of studies) results.push({ ...study, rows: await Promise.all(study.rows.map(result)) });
  return results;

  async function result(row: Row): Promise<ResultRow> {
    const { size } = await workshop.make(row.variants[0] as Row['variants'][0]);
    const scores = await Promise.all(row.variants.map((variant) => workshop.score(variant, row.expertsPerToken)));
    return { ...row, ...(size && { size }), score: average(scores), ...(scores.length > 1 && { scores }) };
  }
}

const average = (scores: readonly Score[]): Score => {
  const of = (key: keyof Score): number => mean(scores.map((score) => score[key]));
  return { error: of('error'), nll: of('nll'), divergence: of('divergence'), agreement: of('agreement') };
};
