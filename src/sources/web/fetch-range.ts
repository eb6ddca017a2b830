/** Downloads a range of a file and checks that it is the range that was asked for, of the same file as before. */
import { NoRangesError, ReadError, SourceChangedError } from '../../errors.js';
import { passingRefusal, TryAgain } from './try-again.js';
import type { Web } from './web.js';
import type { Answer } from './web-client.js';
import type { WebFile, WebPlace } from './web-place.js';

/** A file of at most this size is read whole if its server has no ranges. Configs and tokenizers have some MB. */
const MOST_WHOLE_BYTES = 32 * 1024 * 1024;
/** Storage hosts sometimes answer 200 where 206 was asked for. After this many times in a row, they have no ranges. */
const MOST_WHOLE_ANSWERS = 3;

/** Ranges from here on are read in the way that is quick for long ones. */
const BULK_BYTES = 64 * 1024;

/** The versions of files as the answers tell them: for each address without its query, the ETag or the date. */
export type Versions = Map<string, string>;

/**
 * Fills `target` from `position` on. A request that fails continues where it stopped, so no byte is asked for twice. Throws
 * `SourceChangedError` if the file is another than before, `NoRangesError`, the errors of the place and those of `persist`.
 * @param name of the file in messages
 */
export async function fetchRange(
  web: Web,
  place: WebPlace,
  versions: Versions,
  { file, name }: { file: WebFile; name: string },
  position: number,
  target: Uint8Array,
): Promise<void> {
  let done = 0;
  let wholeAnswers = 0;
  await web.persist(name, async (progress) => {
    const link = await place.link(file);
    const first = position + done;
    const last = position + target.byteLength - 1;
    const headers = { ...link.headers, range: `bytes=${first}-${last}` };
    await web.client.exchange(
      { method: 'GET', url: link.url, headers, bulk: last - first >= BULK_BYTES },
      async (answer) => {
        if (link.expires && [401, 403, 404, 410].includes(answer.status)) {
          place.forgetLink?.(file);
          throw new TryAgain(`its storage answers with status ${answer.status}`);
        }
        let skip = 0;
        if (answer.status === 206) checkContentRange(answer, file, name, first, last);
        else if (answer.status === 200) {
          const whole = Number(answer.headers['content-length'] ?? file.bytes);
          if (whole !== file.bytes) throw new SourceChangedError(name, `it had ${file.bytes} bytes, now ${whole}`);
          if (file.bytes > MOST_WHOLE_BYTES && last - first + 1 < file.bytes) {
            if (++wholeAnswers >= MOST_WHOLE_ANSWERS) throw new NoRangesError(web.server.name, name);
            throw new TryAgain('it sends the whole file where a range was asked for');
          }
          skip = first;
        } else throw await refusal(answer, place, file, name, first);
        checkVersion(answer, versions, name);
        await answer.pour((chunk) => {
          const ignored = Math.min(skip, chunk.byteLength);
          skip -= ignored;
          // A whole file may go on behind the range.
          const wanted = chunk.subarray(ignored, ignored + target.byteLength - done);
          if (answer.status === 206 && wanted.byteLength + ignored < chunk.byteLength)
            throw new TryAgain('it sends more bytes than it announces');
          target.set(wanted, done);
          done += wanted.byteLength;
          if (wanted.byteLength > 0) progress();
        });
      },
    );
    if (done < target.byteLength) throw new TryAgain('the answer has fewer bytes than were asked for');
  });
}

/** Checks that an answer has the range that was asked for, or its beginning, and that the file has its length. */
function checkContentRange({ headers }: Answer, { bytes }: WebFile, name: string, first: number, last: number): void {
  const [, from, to, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(headers['content-range'] ?? '') ?? [];
  if (total !== undefined && total !== '*' && Number(total) !== bytes)
    throw new SourceChangedError(name, `it had ${bytes} bytes, now ${total}`);
  if (Number(from) !== first || Number(to) > last || Number(to) < first)
    throw new TryAgain(
      `it sends another range than bytes ${first}-${last} (Content-Range: ${headers['content-range'] ?? 'none'})`,
    );
  const length = headers['content-length'];
  if (length !== undefined && Number(length) !== Number(to) - first + 1)
    throw new TryAgain(`its Content-Length ${length} does not fit its Content-Range ${headers['content-range']}`);
  if (!/^(?:identity)?$/.test(headers['content-encoding'] ?? ''))
    throw new TryAgain(`it sends a range in the encoding ${headers['content-encoding']}`);
}

/** Compares an answer's ETag, or else its date, with that of earlier answers from the same address. */
export function checkVersion(
  { url, headers }: Pick<Answer, 'url' | 'headers'>,
  versions: Versions,
  name: string,
): void {
  const now = headers.etag ?? headers['last-modified'];
  if (now === undefined) return;
  const address = url.origin + url.pathname;
  const before = versions.get(address) ?? now;
  versions.set(address, before);
  if (before !== now) throw new SourceChangedError(name, `its ETag was ${before}, now ${now}`);
}

async function refusal(answer: Answer, place: WebPlace, file: WebFile, name: string, first: number): Promise<Error> {
  const passing = passingRefusal(answer.status, answer.headers);
  if (passing) return passing;
  if (answer.status === 416) {
    const total = /^bytes \*\/(\d+)$/.exec(answer.headers['content-range'] ?? '')?.[1];
    return total === undefined || Number(total) === file.bytes
      ? new ReadError(name, first, 'the server says that it has no such range (status 416)')
      : new SourceChangedError(name, `it had ${file.bytes} bytes, now ${total}`);
  }
  if (answer.status === 412) return new SourceChangedError(name, 'the server says so (status 412)');
  return place.refusal(answer, file);
}
