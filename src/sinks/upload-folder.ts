/**
 * An output that is sent to a place on a server while it is written. Shards are filled in a folder of this machine, since their
 * bytes come in any order. A shard is sent when all work on it is finished, and then removed here.
 */
import { type FileSystem, nodeFileSystem } from '../file-system.js';
import type { ShardLayout } from '../output/layout.js';
import type { Output } from '../output/output.js';
import type { OutputFolder } from '../output/output-folder.js';
import type { Unit } from '../output/unfinished-run.js';
import { fileContent, hashOf } from './content.js';
import type { SentFile, Sink } from './sink.js';

/** Complete shards that may wait on this disk while another is sent. Then the work waits. */
const MOST_WAITING = 2;

/** A shard on this disk. */
interface Filling {
  readonly layout: ShardLayout;
  /** The ids of units that write into it and are not finished. */
  readonly open: Set<string>;
}

export interface UploadOptions {
  /** Files of an earlier result at the place. */
  readonly replaces: readonly string[];
  /** Ends what is being sent. */
  readonly stop: AbortController;
  /** Called when all is written but so many bytes are still here. */
  readonly onRest?: (bytes: number) => void;
  readonly fs?: FileSystem | undefined;
}

export function uploadFolder(
  folder: OutputFolder,
  sink: Sink,
  { replaces: found, stop, onRest, fs = nodeFileSystem }: UploadOptions,
): Output {
  /** Bytes of the complete shards that are here. */
  const leaving = new Map<string, number>();
  const filling = new Map<string, Filling>();
  const fileOf = new Map<string, string>();
  /** The units of copies, by tensor. They are finished when their bytes are written. */
  const copies = new Map<string, Unit[]>();
  const sent: SentFile[] = [];
  /** Files of which anything was sent. An earlier result may have others of the names of this one. */
  const tried = new Set<string>();
  let replaces = found;
  let noted = false;
  let begun: Promise<void> | undefined;
  let tail: Promise<void> = Promise.resolve();
  let waiting = 0;
  /** Continue the writes that wait for a shard to leave. */
  const blocked: Array<() => void> = [];
  let failure: unknown;
  let lost: (error: Error) => void = () => {};

  /** A file that was sent has replaced the earlier one of its name, so that one must not go. */
  const begin = (): Promise<void> => {
    begun ??= sink.begin(replaces.filter((it) => !sent.some(({ file }) => file === it)));
    return begun;
  };
  const carry = async (file: string, bytes: number): Promise<void> => {
    try {
      if (failure) return;
      const path = await folder.detach(file);
      const content = fileContent(path, bytes, fs);
      const sha256 = await hashOf(content, 'sha256');
      await begin();
      tried.add(file);
      const done = await sink.send({ file, bytes, sha256 }, content);
      await folder.free(done);
      sent.push(done);
      leaving.delete(file);
    } catch (error) {
      failure ??= error;
      lost(error as Error);
    } finally {
      waiting--;
      for (const go of blocked.splice(0)) go();
    }
  };
  /** Sends the shard if all work on it is finished. */
  const look = (file: string): void => {
    const shard = filling.get(file);
    if (!shard || shard.open.size > 0) return;
    filling.delete(file);
    leaving.set(file, shard.layout.bytes);
    waiting++;
    tail = tail.then(() => carry(file, shard.layout.bytes));
  };
  const finished = (unit: Unit): void => {
    for (const file of new Set(unit.parts.map(({ tensor }) => fileOf.get(tensor) ?? ''))) {
      filling.get(file)?.open.delete(unit.id);
      look(file);
    }
  };
  const room = async (): Promise<void> => {
    while (waiting > MOST_WAITING && !failure) await new Promise<void>((resolve) => blocked.push(resolve));
    if (failure) throw failure;
  };

  return {
    workspace: folder.workspace,
    // Saved states are of use only if there is room for them beside the shards.
    elsewhere: true,
    get finishedParts() {
      return folder.finishedParts;
    },
    async resume(layouts, units, onBytes) {
      const entries = folder.foundEntries;
      const before = entries.flatMap((entry) => ('sent' in entry ? [entry.sent] : []));
      for (const entry of entries) if ('replaces' in entry) replaces = entry.replaces;
      const latest = [...new Map(before.map((it) => [it.file, it])).values()];
      const there = latest.length > 0 ? await sink.held(latest) : [];
      const done = await folder.resume(layouts, units, onBytes, there);
      sent.push(...folder.away);
      noted = done.size > 0;
      for (const layout of layouts) {
        for (const { name } of layout.tensors) fileOf.set(name, layout.file);
        if (!sent.some(({ file }) => file === layout.file)) filling.set(layout.file, { layout, open: new Set() });
      }
      for (const unit of units) {
        if (done.has(unit.id) || unit.parts.every(({ bytes }) => bytes === 0)) continue;
        for (const { tensor } of unit.parts) filling.get(fileOf.get(tensor) ?? '')?.open.add(unit.id);
        if (unit.noted) continue;
        for (const { tensor } of unit.parts) copies.set(tensor, [...(copies.get(tensor) ?? []), unit]);
      }
      return done;
    },
    async reserve(layout) {
      await folder.reserve(layout);
      if (!noted) await folder.note({ replaces: [...replaces] });
      noted = true;
      look(layout.file); // an earlier run may have finished it without sending it
    },
    async write(tensor, offset, data, hashes) {
      await folder.write(tensor, offset, data, hashes);
      const written = copies.get(tensor)?.filter((unit) => folder.covers(unit)) ?? [];
      for (const unit of written) {
        for (const { tensor: of } of unit.parts)
          copies.set(
            of,
            (copies.get(of) ?? []).filter((it) => it !== unit),
          );
        finished(unit);
      }
      await room();
    },
    async finish(unit, note) {
      await folder.finish(unit, note);
      finished(unit);
      await room();
    },
    sync: () => folder.sync(),
    writeText: (file, text) => folder.writeText(file, text),
    writeFile: (file, bytes, content) => folder.writeFile(file, bytes, content),
    async commit(last) {
      if (leaving.size > 0) onRest?.([...leaving.values()].reduce((sum, bytes) => sum + bytes, 0));
      await tail;
      if (failure) throw failure;
      const small: Array<readonly [SentFile, ReturnType<typeof fileContent>]> = [];
      for (const [file, path] of folder.held) {
        const { size } = await fs.stat(path);
        const content = fileContent(path, size, fs);
        small.push([{ file, bytes: size, sha256: await hashOf(content, 'sha256') }, content]);
      }
      await begin();
      await sink.publish({ sent, small, last, replaces });
      sink.close();
      await folder.abandon();
    },
    async abandon(keep) {
      stop.abort();
      failure ??= new Error('abandoned');
      await tail;
      const kept = await folder.abandon(keep);
      if (!kept) await sink.discard([...new Set([...tried, ...sent.map(({ file }) => file)])]);
      sink.close();
      return kept;
    },
    onLost: (listener) => {
      lost = listener;
    },
  };
}
