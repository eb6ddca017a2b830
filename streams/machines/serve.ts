import { fileIn } from '../../src/location.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { FILE_SERVICE, type FileInfo, offerFiles } from '../../src/transport/served-files.js';
import type { ListenAt, ServiceHooks } from './peer-options.js';
import { openFiles, openSource, type Source } from './remote-files.js';

/**
 * Offers a checkpoint to other machines: its files, by ranges, and no others. Throws an `InputError` where it is damaged or cannot
 * be listened for.
 */
export async function serve(source: Source, at: ListenAt, hooks: ServiceHooks = {}): Promise<Listener> {
  await openSource(source); // better found out now than by whoever connects
  return listen({ ...at, service: FILE_SERVICE, ...hooks }, async (channel) => {
    const { folder, files } = openFiles(source);
    hooks.onLog?.(`${channel.peer} reads ${folder}`);
    const list = (await files.list(folder)).map(({ path, ...rest }): FileInfo => ({ file: path, ...rest }));
    try {
      await offerFiles(channel, {
        list: () => Promise.resolve(list),
        read: (file, position, target) => files.read(fileIn(folder, file), position, target),
      });
    } finally {
      await files.close();
      hooks.onLog?.(`${channel.peer} is done`);
    }
  });
}
