import { fileIn } from '../../src/location.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { FILE_SERVICE, type FileInfo, offerFiles } from '../../src/transport/served-files.js';
import type { ListenAt, ServiceHooks } from './peer-options.js';
import { openFiles, openSource, type Source } from './remote-files.js';

/**
 * Serves the files of a checkpoint, by byte ranges, to other machines. Serves no other files. Throws an `InputError` if the
 * checkpoint is damaged or the port cannot be opened.
 */
export async function serve(source: Source, at: ListenAt, hooks: ServiceHooks = {}): Promise<Listener> {
  await openSource(source); // a damaged checkpoint is reported here, not to the first client
  return listen({ ...at, service: FILE_SERVICE, ...hooks }, async (channel) => {
    const { folder, files } = openFiles(source);
    hooks.onLog?.(`${channel.peer} reads ${folder}`);
    const held = (await files.list(folder)).map(({ path, ...rest }): FileInfo => ({ file: path, ...rest }));
    const dangling = ((await files.dangling?.(folder)) ?? []).map(
      (file): FileInfo => ({ file, bytes: 0, modified: 0, dangling: true }),
    );
    const list = [...held, ...dangling];
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
