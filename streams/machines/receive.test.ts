/** `mobe receive` refuses a peer that breaks the protocol, with a clear message, and keeps nothing. */
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { encodeHeader } from '../../src/checkpoint/header.js';
import { REPORT_FILE, type StoredReport } from '../../src/conversion/run-report.js';
import type { Channel } from '../../src/transport/channel.js';
import { connect } from '../../src/transport/connect.js';
import { jsonPiece } from '../../src/transport/json-tensor.js';
import { createRequester, type Requester } from '../../src/transport/requests.js';
import { wholePiece } from '../../src/transport/tensor-piece.js';
import { DONE, OUTPUT_SERVICE, pieceName } from './output-protocol.js';
import { type Receiver, receive } from './receive.js';
import { remoteOutput } from './remote-output.js';

const root = temporaryFolder();
const TENSORS = [{ name: 'a', dtype: 'U8', shape: [4], bytes: 4 }];
const HEADER = encodeHeader(TENSORS);
const SHARD = { file: 'model.safetensors', bytes: HEADER.byteLength + 4 };
const WANTED = { kind: 'copy', sourceFingerprint: '0', settings: {} };

let out: string;
let made = 0;
let receiver: Receiver;
let channels: Channel[];
async function peer(): Promise<Requester> {
  const channel = await connect(receiver.url, { service: OUTPUT_SERVICE });
  channels.push(channel);
  return createRequester(channel);
}
beforeEach(async () => {
  out = join(root, `${made++}`, 'out');
  mkdirSync(join(out, '..'));
  channels = [];
  receiver = await receive(out, { host: '127.0.0.1', port: 0 });
});
afterEach(async () => {
  await receiver.close();
  for (const channel of channels) channel.fail(new Error('the test is over'));
});

const create = (ask: Requester) => ask('create', { wanted: WANTED, neededBytes: 10, force: false });
/** The identity of a run that can be resumed. */
const IDENTITY = {
  wanted: WANTED,
  version: '0',
  layout: '0',
  circumstances: {},
  headers: '0',
  modified: {},
  contents: {},
};
const createRun = (ask: Requester, identity: unknown = IDENTITY) =>
  ask('create', { wanted: WANTED, neededBytes: 10, force: false }, { uploads: [jsonPiece(identity)] });
const reserve = (ask: Requester) => ask('reserve', SHARD, { uploads: [wholePiece('header', HEADER)] });
const write = (ask: Requester, name: string, data: Uint8Array) =>
  ask('write', null, { uploads: [wholePiece(name, data)] });

/** Expects no file under a final name, and nothing beside the folder. */
function expectNothing(): void {
  expect(existsSync(out) ? readdirSync(out).filter((name) => !name.startsWith('.')) : []).toEqual([]);
  expect(readdirSync(join(out, '..')).filter((name) => name !== 'out')).toEqual([]);
}

test('the whole conversation of one that does behave', async () => {
  const ask = await peer();
  expect(await create(ask)).toEqual({ unfinished: false });
  await reserve(ask);
  await write(ask, pieceName('a', 0), Uint8Array.of(1, 2, 3, 4));
  await ask('file', { file: 'sub/x.txt', bytes: 2 }, { uploads: [wholePiece('sub/x.txt', Uint8Array.of(104, 105))] });
  await ask('commit', { last: [] });
  await channels[0]?.close();
  await receiver.done;
  expect(
    readdirSync(out)
      .filter((name) => !name.startsWith('.'))
      .sort(),
  ).toEqual(['model.safetensors', 'sub']);
});

describe('refused:', () => {
  test.each([
    '../escape',
    '/etc/escape',
    'a/../../escape',
    '..',
    'c:\\escape',
    'a\\..\\escape',
    './escape',
    'nul\0',
    '.journal',
    'a/.b',
    '',
  ])('the path %j', async (file) => {
    const ask = await peer();
    await create(ask);
    await expect(ask('file', { file, bytes: 1 }, { uploads: [wholePiece('x', Uint8Array.of(1))] })).rejects.toThrow();
    await expect(ask('reserve', { ...SHARD, file }, { uploads: [wholePiece('header', HEADER)] })).rejects.toThrow();
    expectNothing();
  });

  test.each<[string, (ask: Requester) => Promise<unknown>, string]>([
    ['work before "create"', (ask) => reserve(ask), 'before "create"'],
    ['a second "create"', (ask) => create(ask).then(() => create(ask)), 'twice'],
    [
      'a tensor that was not reserved',
      (ask) => create(ask).then(() => write(ask, pieceName('b', 0), Uint8Array.of(1))),
      'no room',
    ],
    [
      'a part beyond its tensor',
      async (ask) => {
        await create(ask);
        await reserve(ask);
        await write(ask, pieceName('a', 3), Uint8Array.of(1, 2));
      },
      'no room',
    ],
    [
      'a part without a place',
      async (ask) => {
        await create(ask);
        await reserve(ask);
        await write(ask, 'a', Uint8Array.of(1));
      },
      'no part',
    ],
    [
      'a header of other tensors than the file has room for',
      (ask) =>
        create(ask).then(() =>
          ask('reserve', { ...SHARD, bytes: SHARD.bytes + 1 }, { uploads: [wholePiece('header', HEADER)] }),
        ),
      'follow the last tensor',
    ],
    [
      'a header larger than its file',
      (ask) =>
        create(ask).then(() => ask('reserve', { ...SHARD, bytes: 9 }, { uploads: [wholePiece('header', HEADER)] })),
      'the header',
    ],
    [
      'a shard without a header',
      (ask) => create(ask).then(() => ask('reserve', SHARD, { uploads: [] })),
      'did not come',
    ],
    [
      'a file with fewer bytes than said',
      (ask) =>
        create(ask).then(() => ask('file', { file: 'x', bytes: 9 }, { uploads: [wholePiece('x', Uint8Array.of(1))] })),
      '1 of 9',
    ],
    [
      'a commit before all bytes are there',
      async (ask) => {
        await create(ask);
        await reserve(ask);
        await ask('commit', { last: [] });
      },
      '0 of 4 bytes',
    ],
    ['an identity that is none', (ask) => createRun(ask, { wanted: WANTED }), "the run's identity is not one"],
    ['a resumption of nothing', (ask) => ask('resume', null), 'before "create"'],
    [
      'a resumption that does not say of what',
      (ask) => createRun(ask).then(() => ask('resume', null)),
      'what is to be resumed did not come',
    ],
    [
      'a resumption of units that are none',
      (ask) =>
        createRun(ask).then(() => ask('resume', null, { uploads: [jsonPiece({ shards: [], units: [{ id: 3 }] })] })),
      'what is to be resumed is not one',
    ],
    [
      'a resumption of what was begun',
      async (ask) => {
        await createRun(ask);
        await reserve(ask);
        await ask('resume', null, { uploads: [jsonPiece({ shards: [], units: [] })] });
      },
      'it resumes what it has begun',
    ],
    [
      'a resumption without its headers',
      (ask) => createRun(ask).then(() => ask('resume', null, { uploads: [jsonPiece({ shards: [SHARD], units: [] })] })),
      'the header of model.safetensors did not come',
    ],
    [
      'a header that another tensor breaks off',
      (ask) =>
        create(ask).then(() =>
          ask('reserve', SHARD, {
            uploads: [
              { ...wholePiece('header', HEADER), data: HEADER.subarray(0, 9) },
              { ...wholePiece('other', HEADER), data: HEADER.subarray(0, 9) },
              { ...wholePiece('header', HEADER), offset: 9, data: HEADER.subarray(9) },
              { ...wholePiece('other', HEADER), offset: 9, data: HEADER.subarray(9) },
            ],
          }),
        ),
      'is broken off by "other"',
    ],
    [
      'a unit that is called done and did not come',
      async (ask) => {
        await createRun(ask);
        await reserve(ask);
        const unit = { id: 'all of a', parts: [{ tensor: 'a', offset: 0, bytes: 4 }], noted: true };
        const uploads = [wholePiece(pieceName('a', 0), Uint8Array.of(1, 2)), jsonPiece({ unit, note: 1 }, DONE)];
        await ask('write', null, { uploads });
      },
      'not all of "all of a" came',
    ],
    [
      'more of these than it may hold',
      async (ask) => {
        await createRun(ask);
        const unit = { id: 'of nothing', parts: [{ tensor: 'b', offset: 0, bytes: 4 }], noted: true };
        const note = 'x'.repeat(2 ** 24);
        await ask('write', null, { uploads: Array.from({ length: 5 }, () => jsonPiece({ unit, note }, DONE)) });
      },
      'too much waits',
    ],
    [
      'a unit that is called done in no words',
      async (ask) => {
        await createRun(ask);
        await ask('write', null, { uploads: [wholePiece(DONE, Uint8Array.of(1))] });
      },
      'a finished unit is not one',
    ],
    ['parameters that are none', (ask) => ask('create', { wanted: 3 }), 'wanted'],
  ])('%s', async (_, act, says) => {
    await expect(act(await peer())).rejects.toThrow(says);
    expectNothing();
  });

  test('a second conversation while one is under way; the first goes on', async () => {
    const [first, second] = [await peer(), await peer()];
    await create(first);
    await expect(create(second)).rejects.toThrow('another conversion');
    await reserve(first);
  });
});

test('a peer that leaves before the end: nothing looks whole, and the next one can come', async () => {
  const first = await peer();
  await create(first);
  await reserve(first);
  await channels[0]?.close();
  expectNothing();
  const second = await peer();
  expect(await create(second)).toEqual({ unfinished: false });
});

test('a result is whole, whatever its peer does then', async () => {
  const ask = await peer();
  await create(ask);
  await ask('commit', { last: [] });
  await expect(ask('more', null)).rejects.toThrow();
  await receiver.done;
});

test('one that is refused leaves the way for others', async () => {
  writeFileSync(out, 'a file');
  const [first, second] = [await peer(), await peer()];
  await expect(create(first)).rejects.toThrow();
  rmSync(out);
  expect(await create(second)).toEqual({ unfinished: false });
});

test('a peer that leaves with a hash that is wrong: what it wrote is kept, and not believed', async () => {
  const unit = { id: 'all of a', parts: [{ tensor: 'a', offset: 0, bytes: 4 }], noted: false };
  const answers: unknown[] = [];
  for (const sha256 of ['0'.repeat(64), undefined, undefined]) {
    const ask = await peer();
    const { unfinished } = (await createRun(ask)) as { unfinished: boolean };
    if (unfinished) {
      const uploads = [jsonPiece({ shards: [SHARD], units: [unit] }), wholePiece('header', HEADER)];
      const onPiece = ({ data }: { data: Uint8Array }) => void answers.push(JSON.parse(Buffer.from(data).toString()));
      await ask('resume', null, { uploads, onPiece });
    }
    await reserve(ask);
    await write(ask, pieceName('a', 0, sha256), Uint8Array.of(1, 2, 3, 4));
    expect(await ask('abandon', { keep: true })).toEqual({ kept: true });
    await channels.at(-1)?.close();
  }
  // The first session sent a wrong hash, and the second finds that out. The second sent no hash, so the receiver computed it.
  const own = '9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a';
  expect(answers).toEqual([[], [{ part: { tensor: 'a', start: 0, end: 4, sha256: own } }]]);
});

test('the record of a result that is there already comes back, however many groups it has', async () => {
  const losses = Array.from({ length: 32 }, (_, i) => [i + 1, 1 / (i + 1)] as const);
  const key = { projection: 'up_proj', group: 0, groups: 1 } as const;
  const fit = { relativeError: 0.2, mse: 1e-4, sigma: 0.01, steps: 32, losses, seconds: 1 };
  const record: StoredReport = {
    ...{ version: 1, kind: 'compress', sourceFingerprint: '0', settings: { bases: 8 }, files: [REPORT_FILE] },
    ...{ parametersBefore: 2, parametersAfter: 1, bytesBefore: 4, bytesAfter: 2, peakRssBytes: 1, seconds: 1 },
    groups: Array.from({ length: 2000 }, (_, layer) => ({ layer, ...key, ...fit })),
  };
  mkdirSync(out);
  writeFileSync(join(out, REPORT_FILE), JSON.stringify(record));
  const opened = await remoteOutput(receiver.url, { wanted: record, neededBytes: 1, inputs: [] }, {});
  expect(opened).toEqual({ done: record });
  await receiver.done;
});
