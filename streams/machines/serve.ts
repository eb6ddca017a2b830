import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { fileIn, LocalFiles } from '../../src/sources/files.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { FILE_SERVICE, type FileInfo, offerFiles } from '../../src/transport/served-files.js';
import type { ListenAt, ServiceHooks } from './peer-options.js';

/**
 * Offers the checkpoint in a folder to other machines: its files, by ranges, and no others. Throws an `InputError` where the
 * folder is damaged or cannot be listened for.
 */
export async function serve(folder: string, at: ListenAt, hooks: ServiceHooks = {}): Promise<Listener> {
  const { folder: root } = await openCheckpoint(folder); // better found out now than by whoever connects
  return listen({ ...at, service: FILE_SERVICE, ...hooks }, async (channel) => {
    hooks.onLog?.(`${channel.peer} reads ${root}`);
    const files = new LocalFiles();
    const list = (await files.list(root)).map(({ path, ...rest }): FileInfo => ({ file: path, ...rest }));
    try {
      await offerFiles(channel, {
        list: () => Promise.resolve(list),
        read: (file, position, target) => files.read(fileIn(root, file), position, target),
      });
    } finally {
      await files.close();
      hooks.onLog?.(`${channel.peer} is done`);
    }
  });
}
