/** The process that fits groups for a farm's worker. It lives as long as the worker does, and keeps the last run's plan. */
import { existsSync } from 'node:fs';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { FolderNotSharedError, UnlikeRunError } from '../../src/errors.js';
import { VERSION } from '../../src/version.js';
import { fitPlanned, type PlannedFit, planFit } from '../operations/fit-groups.js';
import { holding } from '../operations/open-calibration.js';
import type { Progress, RunOptions } from '../run-options.js';
import type { FarmRun } from './farm-run.js';
import { type FitLimits, type FromFit, STOP_WITHIN_MS, type ToFit } from './fit-messages.js';

const tell = (message: FromFit): void => {
  if (process.connected) process.send?.(message);
};

let kept: { readonly key: string; readonly fit: PlannedFit } | undefined;
let stop = new AbortController();

/** Plans the run's fit, and compares the plan with what was submitted. */
async function plan(run: FarmRun, { maxMemory, token, ca }: FitLimits): Promise<PlannedFit> {
  if (run.version !== VERSION)
    throw new UnlikeRunError(`it was submitted by mobe ${run.version}, and this is ${VERSION}`);
  const { model, options, threads, batchExperts } = run;
  const fit = await planFit(model, { ...options, threads, batchExperts, maxMemory }, { peers: { token, ca } });
  const { memory, source } = fit.planned;
  if ((await fingerprint(source)) !== run.sourceFingerprint)
    throw new UnlikeRunError(`${model} has other weights here than where it was submitted`);
  if (memory.threadsPerWorker !== threads || memory.batchExperts !== batchExperts)
    throw new UnlikeRunError(
      `it has ${memory.threadsPerWorker} threads a fit and ${memory.batchExperts} experts a batch, and the run has ${threads} and ${batchExperts}`,
    );
  return { ...fit, record: fit.record && holding(fit.record) }; // it serves all jobs of the run
}

async function fitJob({ run, groups: labels, limits }: Extract<ToFit, { kind: 'fit' }>): Promise<void> {
  const began = performance.now();
  let planning = true;
  stop = new AbortController();
  const { signal } = stop;
  try {
    if (!existsSync(run.factors)) throw new FolderNotSharedError(run.factors);
    const key = JSON.stringify(run);
    if (kept?.key !== key) kept = { key, fit: await plan(run, limits) };
    const { fit } = kept;
    const groups = labels.map((label) => fit.plan.groups.find((group) => groupLabel(group) === label));
    const missing = labels.find((_, i) => !groups[i]);
    if (missing !== undefined) throw new UnlikeRunError(`its plan has no ${missing}`);
    planning = false;
    const onProgress = (progress: Progress): void => {
      if (progress.kind !== 'step') tell({ kind: 'alive' });
      else {
        const { step, steps, loss, rate, secondsLeft } = progress;
        tell({ kind: 'step', step: { step, steps, loss, rate, secondsLeft } });
      }
    };
    const options: RunOptions = {
      onProgress,
      signal,
      saveEvery: limits.saveEvery,
      peers: { token: limits.token, ca: limits.ca },
    };
    const part = { groups: groups as GroupPlan[], onStart: async () => {} };
    const { already, engine } = await fitPlanned(fit, run.factors, options, began, part);
    const seconds = (performance.now() - began) / 1000;
    tell({ kind: 'done', device: engine?.device ?? '', already, seconds });
  } catch (error) {
    kept = undefined; // the source may have changed, or its connection may be broken
    const { name, message } = error as Error;
    tell({ kind: 'failed', name, message, planning });
  }
}

process.on('message', (message: ToFit) => {
  if (message.kind === 'stop') stop.abort();
  else void fitJob(message);
});
// The worker decides when this process ends; a terminal sends its signals to both.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {});
process.on('disconnect', () => {
  stop.abort();
  setTimeout(() => process.kill(process.pid, 'SIGKILL'), STOP_WITHIN_MS);
});
