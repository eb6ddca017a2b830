/**
 * The process of one measurement. A new process has a fresh heap. It loads only the code that its task needs, because code takes
 * memory too.
 */
import { type Outcome, takeSample } from './sample.js';
import type { Task } from './task.js';

async function load(task: Task): Promise<() => Promise<Outcome>> {
  switch (task.kind) {
    case 'memory': {
      const { inMemory } = await import('./memory-tasks.js');
      return () => inMemory(task.what);
    }
    case 'hop': {
      const { hop } = await import('./hop.js');
      return () => hop(task.bytes);
    }
    case 'command': {
      const { runCommand } = await import('./commands.js');
      return () => runCommand(task.command, task.source, task.folder, task.sync);
    }
    case 'open': {
      const { openModel } = await import('./open-task.js');
      return () => openModel(task.model);
    }
    case 'pread':
    case 'read stream':
    case 'source': {
      const { ourSource, pread, readStream } = await import('./read-tasks.js');
      if (task.kind === 'pread') return () => pread(task.source);
      if (task.kind === 'source') return () => ourSource(task.source);
      return () => readStream(task.source, task.blockBytes);
    }
    case 'pwrite':
    case 'sink': {
      const { ourSink, pwrite } = await import('./write-tasks.js');
      return () => (task.kind === 'pwrite' ? pwrite : ourSink)(task.folder, task.bytes);
    }
    case 'convert':
    case 'compress': {
      const { compressLayer, passThroughConversion } = await import('./convert-tasks.js');
      if (task.kind === 'convert') return () => passThroughConversion(task.source, task.folder, task.slow);
      return () => compressLayer(task.model, task.folder, task.slow);
    }
  }
}

const task = JSON.parse(process.argv[2] as string) as Task;
const done = (message: object): void => void process.send?.(message, () => process.disconnect());
load(task)
  .then(takeSample)
  .then(
    (sample) => done({ sample }),
    (error: Error) => done({ error: { name: error.name, message: error.message } }),
  );
