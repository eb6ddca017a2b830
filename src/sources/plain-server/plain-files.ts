/** Opens checkpoints on plain file servers. */
import { InvalidLocationError } from '../../errors.js';
import { publicLocation } from '../../location.js';
import type { Files } from '../files.js';
import type { SourceOptions } from '../source-options.js';
import { openWeb } from '../web/web.js';
import { webFiles } from '../web/web-files.js';
import { plainPlace } from './plain-place.js';

/** The files at an `http://` or `https://` address. A user and a password in it are sent as basic authentication. */
export function plainFiles(location: string, options: SourceOptions): Files {
  const folder = publicLocation(location);
  if (!URL.canParse(location)) throw new InvalidLocationError(folder, 'it is not an address', 'https://host/folder/');
  const address = new URL(location);
  const { username, password } = address;
  const secret = Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`).toString('base64');
  const headers: Record<string, string> = username || password ? { authorization: `Basic ${secret}` } : {};
  [address.username, address.password, address.hash] = ['', '', ''];
  const web = openWeb(address.origin, 'Wait some minutes, then run the command again.', options);
  return webFiles(folder, web, plainPlace(folder, address, headers, web));
}
