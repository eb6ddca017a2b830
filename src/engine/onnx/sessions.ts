/** Compiled ONNX Runtime sessions, kept for reuse. Errors of a run name the engine and the device. */
import { createHash } from 'node:crypto';
import * as ort from 'onnxruntime-node';
import { EngineRunError } from '../../errors.js';
import type { EngineFacts } from '../engine.js';
import type { Graph } from '../graph.js';
import { type Dialect, encodeOnnx } from './encode.js';

// Errors are thrown. The runtime's log would only say the same before.
ort.env.logLevel = 'fatal';

/** Idle sessions that are kept: the next group usually has the same shapes, and so the same programs. */
const MAX_IDLE_SESSIONS = 12;

/**
 * Options for providers of devices. A node that would fall back to the CPU makes the session fail.
 */
export const DEVICE_OPTIONS: ort.InferenceSession.SessionOptions = {
  extra: { session: { disable_cpu_ep_fallback: '1' } },
  logSeverityLevel: 4,
};

/** Inputs or outputs of a run, by name. */
export type Feeds = Readonly<Record<string, ort.Tensor>>;

/** A compiled graph. `release` makes it available for reuse. */
export interface Session {
  run(feeds: Feeds, fetches?: Feeds): Promise<ort.InferenceSession.ReturnType>;
  release(): Promise<void>;
}

/** Compiled sessions by the hash of their model. */
export class Sessions {
  private readonly idle = new Map<string, ort.InferenceSession[]>();
  private idleCount = 0;

  constructor(
    private readonly facts: EngineFacts,
    private readonly options: ort.InferenceSession.SessionOptions,
    private readonly dialect?: Dialect,
  ) {}

  async open(graph: Graph): Promise<Session> {
    const model = encodeOnnx(graph, this.dialect);
    const key = createHash('sha256').update(model).digest('hex');
    const session = await this.told(() => this.take(key, model));
    return {
      run: (feeds, fetches) => this.told(() => (fetches ? session.run(feeds, fetches) : session.run(feeds))),
      release: () => this.give(key, session),
    };
  }

  private async take(key: string, model: Uint8Array): Promise<ort.InferenceSession> {
    const session = this.idle.get(key)?.pop();
    if (!session) return ort.InferenceSession.create(model, this.options);
    this.idleCount--;
    return session;
  }

  private async give(key: string, session: ort.InferenceSession): Promise<void> {
    const sessions = this.idle.get(key) ?? [];
    this.idle.delete(key); // and inserted again at the end: the map is ordered by last use
    this.idle.set(key, [...sessions, session]);
    if (++this.idleCount <= MAX_IDLE_SESSIONS) return;
    for (const [oldest, [first, ...rest]] of this.idle) {
      if (rest.length) this.idle.set(oldest, rest);
      else this.idle.delete(oldest);
      if (!first) continue;
      this.idleCount--;
      await first.release();
      return;
    }
  }

  private async told<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw new EngineRunError(this.facts.name, this.facts.device, (error as Error).message.trim());
    }
  }
}
