/** Shows the progress of a run on stderr: a bar on a terminal, else a line every few seconds. */
import cliProgress from 'cli-progress';
import type { FoldProgress, Phase, Progress, RunHooks, StepProgress } from '../../streams/run-options.js';
import { groupLabel } from '../conversion/group-plan.js';
import { isFitted } from '../conversion/run-report.js';
import { formatBytes, formatSeconds } from '../format.js';
import { describePlan } from './describe-plan.js';
import { describeRecordPlan } from './describe-record-plan.js';
import { interruptible } from './interrupt.js';
import { LINE_INTERVAL_MS } from './tell.js';

type PhaseProgress = Extract<Progress, { kind: 'phase' }>;

const TITLES = {
  resume: 'checking what is finished',
  check: 'checking weights',
  probe: 'short fits for the allocation',
  sensitivity: 'measuring sensitivities',
  convert: 'converting',
  send: 'sending the rest',
  verify: 'comparing',
  copy: 'copying',
} as const;

const formatAmount = (phase: Phase, amount: number): string =>
  phase === 'sensitivity' ? `${amount} parts` : formatBytes(amount);

/** A running display of progress. */
export interface ProgressDisplay {
  readonly hooks: RunHooks;
  stop(): void;
}

/**
 * Starts a display. It also turns Ctrl-C and SIGTERM into an orderly stop; a second signal ends the process at once.
 * @param howToGoOn what to do after an interruption in the middle of a step; empty for commands that begin anew
 */
export function showProgress(howToGoOn = ''): ProgressDisplay {
  const bar = process.stderr.isTTY
    ? new cliProgress.SingleBar({
        format: '{title} [{bar}] {percentage}% {detail}',
        stream: process.stderr,
        hideCursor: true,
        clearOnComplete: true,
        linewrap: false,
        barsize: 24,
      })
    : undefined;
  const tracker = new Tracker();
  let lastLine = 0;
  const write = (text: string): void => void process.stderr.write(`${text}\n`);
  const onProgress = (progress: Progress): void => {
    if (progress.kind === 'plan') {
      write(`${describePlan(progress.plan)}\n`);
      return;
    }
    if (progress.kind === 'record') {
      write(`${describeRecordPlan(progress.plan)}\n`);
      return;
    }
    if (progress.kind === 'layer') {
      const { layer, layers, done, sequences } = progress;
      const text = `recording layer ${layer + 1} of ${layers}: ${done} of ${sequences} sequences`;
      if (bar) bar.update(Math.floor(1000 * tracker.share), { title: tracker.title, detail: text });
      else if (performance.now() - lastLine > LINE_INTERVAL_MS) {
        write(`  ${text}`);
        lastLine = performance.now();
      }
      return;
    }
    if (progress.kind === 'lost') {
      write(`${progress.reason.message} The group that ${progress.worker} was fitting is fitted again.`);
      return;
    }
    tracker.update(progress);
    if (progress.kind === 'phase') {
      bar?.stop();
      lastLine = performance.now();
      if (bar) bar.start(1000, 0, { title: tracker.title, detail: '' });
      else
        write(
          `${tracker.title}: ${progress.groups ? `${progress.groups} groups, ` : ''}${formatAmount(progress.phase, progress.bytes)}`,
        );
    }
    const detail = tracker.detail();
    if (bar) bar.update(Math.floor(1000 * tracker.share), { title: tracker.title, detail });
    else if (progress.kind === 'group') {
      const error = isFitted(progress.report) ? ` relative error ${progress.report.relativeError.toFixed(4)},` : '';
      const bases = progress.bases === undefined ? '' : ` with ${progress.bases} bases`;
      write(`  ${groupLabel(progress.report)}${bases}:${error} ${formatSeconds(progress.report.seconds)}; ${detail}`);
      lastLine = performance.now();
    } else if (performance.now() - lastLine > LINE_INTERVAL_MS) {
      write(`  ${tracker.title}: ${Math.floor(100 * tracker.share)} %, ${detail}`);
      lastLine = performance.now();
    }
  };
  const interruption = interruptible(
    () => {
      bar?.stop();
      write('stopping (Ctrl-C again stops at once) …');
    },
    () => write(`Interrupted in the middle of a step. ${howToGoOn}`.trimEnd()),
  );
  return {
    hooks: { onProgress, signal: interruption.signal },
    stop() {
      bar?.stop();
      interruption.stop();
    },
  };
}

/** Tracks the current phase: by steps if groups are fitted, else by bytes. */
class Tracker {
  private phase: PhaseProgress = { kind: 'phase', phase: 'check', groups: 0, bytes: 0 };
  private began = performance.now();
  private bytes = 0;
  private groups = 0;
  /** The running fits, by group. */
  private readonly running = new Map<string, StepProgress | FoldProgress>();
  private stepped = false;

  update(progress: Progress): void {
    switch (progress.kind) {
      case 'phase':
        this.phase = progress;
        this.began = performance.now();
        this.bytes = 0;
        this.groups = 0;
        this.stepped = false;
        break;
      case 'bytes':
        this.bytes = progress.bytes;
        break;
      case 'fold':
      case 'step':
        this.stepped = true;
        this.running.set(groupLabel(progress), progress);
        break;
      case 'group':
        this.groups++;
        this.running.delete(groupLabel(progress.report));
    }
  }

  get title(): string {
    return TITLES[this.phase.phase];
  }

  get share(): number {
    const { groups, bytes } = this.phase;
    if (!this.stepped) return bytes ? this.bytes / bytes : 1;
    const partial = [...this.running.values()].reduce((sum, it) => sum + ('step' in it ? it.step / it.steps : 1), 0);
    return groups ? Math.min(1, (this.groups + partial) / groups) : 1;
  }

  detail(): string {
    const elapsed = (performance.now() - this.began) / 1000;
    const { share } = this;
    const { phase, bytes } = this.phase;
    const left = share > 0.01 ? `about ${formatSeconds((elapsed * (1 - share)) / share)} left` : '';
    if (!this.stepped)
      return [`${formatAmount(phase, this.bytes)} of ${formatAmount(phase, bytes)}`, left].filter(Boolean).join(', ');
    const fits = [...this.running.values()].map((it) =>
      'step' in it
        ? `${groupLabel(it)} step ${it.step}/${it.steps} loss ${it.loss.toFixed(4)}`
        : `${groupLabel(it)} writing expert ${it.expert + 1}/${it.experts}`,
    );
    return [`group ${this.groups} of ${this.phase.groups}`, left, ...fits].filter(Boolean).join(', ');
  }
}
