/** The process of one measurement: nothing else has warmed its heap or widened its memory. */

import { runCommand } from './commands.js';
import { hop } from './hop.js';
import { inMemory } from './memory-tasks.js';
import { openModel, ourSource, pread, readStream } from './read-tasks.js';
import { type Outcome, takeSample } from './sample.js';
import type { Task } from './task.js';
import { compressLayer, ourSink, passThroughConversion, pwrite } from './write-tasks.js';

function run(task: Task): Promise<Outcome> {
  switch (task.kind) {
    case 'pread':
      return pread(task.source);
    case 'read stream':
      return readStream(task.source, task.blockBytes);
    case 'source':
      return ourSource(task.source);
    case 'memory':
      return inMemory(task.what);
    case 'hop':
      return hop(task.bytes);
    case 'pwrite':
      return pwrite(task.folder, task.bytes);
    case 'sink':
      return ourSink(task.folder, task.bytes);
    case 'convert':
      return passThroughConversion(task.source, task.folder, task.slow);
    case 'command':
      return runCommand(task.command, task.source, task.folder, task.sync);
    case 'compress':
      return compressLayer(task.model, task.folder, task.slow);
    case 'open':
      return openModel(task.model);
  }
}

const task = JSON.parse(process.argv[2] as string) as Task;
const done = (message: object): void => void process.send?.(message, () => process.disconnect());
takeSample(() => run(task)).then(
  (sample) => done({ sample }),
  (error: Error) => done({ error: { name: error.name, message: error.message } }),
);
