import fc from 'fast-check';
import { Packr } from 'msgpackr';
import { describe, expect, test } from 'vitest';
import { rawFrame, rawHello } from '../../fixtures/peers.js';
import { InvalidFrameError } from '../errors.js';
import { decodeFrame } from './decode-frame.js';
import { encodeFrame } from './encode-frame.js';
import type { Header } from './frame-header.js';
import { MAX_HEADER_BYTES, MAX_HEADER_DEPTH, MAX_PAYLOAD_BYTES, PROTOCOL_VERSION } from './limits.js';

const count = fc.maxSafeNat();
const name = fc.string({ minLength: 1, maxLength: 40, unit: 'grapheme' });
/** JSON has no −0; and msgpackr renames the key that would change an object's prototype. */
const value = fc
  .json({ maxDepth: 3 })
  .map((text) => JSON.parse(text) as unknown)
  .filter((it) => !JSON.stringify(it).includes('__proto__'));
const header: fc.Arbitrary<Header> = fc.oneof(
  fc.record({ kind: fc.constant('ack' as const), consumed: count }),
  fc.record({ kind: fc.constant('close' as const), sent: count }),
  fc.record({ kind: fc.constant('error' as const), code: name, message: fc.string() }),
  fc.record({ kind: fc.constant('request' as const), seq: count, method: name, params: value }),
  fc.record({ kind: fc.constant('event' as const), seq: count, value }),
  fc.record({ kind: fc.constant('end' as const), seq: count, value }),
  fc.record({ kind: fc.constant('failure' as const), seq: count, name, message: fc.string() }),
  fc.record({
    kind: fc.constant('tensor' as const),
    seq: count,
    tensor: count,
    name,
    dtype: name,
    shape: fc.array(count, { maxLength: 16 }),
    bytes: count,
  }),
  fc.record(
    {
      kind: fc.constant('data' as const),
      seq: count,
      tensor: count,
      checksum: fc.uint8Array({ minLength: 16, maxLength: 16 }).map((it) => Buffer.from(it)),
    },
    { requiredKeys: ['kind', 'seq', 'tensor'], noNullPrototype: true },
  ),
);
const frame = header.chain((it) =>
  fc.record({
    header: fc.constant(it),
    payload: it.kind === 'data' ? fc.uint8Array({ minLength: 1, maxLength: 64 }) : fc.constant(new Uint8Array(0)),
  }),
);

test('what is encoded is decoded, however it is cut into parts', () => {
  fc.assert(
    fc.property(frame, fc.array(fc.nat(), { maxLength: 4 }), (it, cuts) => {
      const { head, payload } = encodeFrame(it.header, it.payload);
      const bytes = Buffer.concat([head, payload]);
      const ends = [...cuts.map((cut) => cut % bytes.byteLength).sort((a, b) => a - b), bytes.byteLength];
      const parts = ends.map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end));
      for (const arrived of [[head, payload], [bytes], parts]) {
        const decoded = decodeFrame(arrived);
        expect(decoded.header).toEqual(it.header);
        expect(Buffer.from(decoded.payload)).toEqual(Buffer.from(it.payload));
        expect(decoded.bytes).toBe(bytes.byteLength);
      }
    }),
    { numRuns: 500 },
  );
});

test('a payload that came as a part of its own is handed on without a copy', () => {
  const { head, payload } = encodeFrame({ kind: 'data', seq: 0, tensor: 0 }, new Uint8Array(8));
  expect(decodeFrame([head, payload]).payload).toBe(payload);
});

test('the largest payload passes, one byte more does not', () => {
  const data = { kind: 'data', seq: 0, tensor: 0 } as const;
  const { head, payload } = encodeFrame(data, new Uint8Array(MAX_PAYLOAD_BYTES));
  expect(decodeFrame([head, payload]).payload.byteLength).toBe(MAX_PAYLOAD_BYTES);
  expect(() => encodeFrame(data, new Uint8Array(MAX_PAYLOAD_BYTES + 1))).toThrow(InvalidFrameError);
  expect(() => decodeFrame([head, new Uint8Array(MAX_PAYLOAD_BYTES + 1)])).toThrow(InvalidFrameError);
});

describe('refused is', () => {
  const packed = (bytes: number[]): Buffer => {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    return Buffer.concat([length, Buffer.from(bytes)]);
  };
  const nested = (depth: number): unknown => (depth === 0 ? null : [nested(depth - 1)]);
  test.each<[string, Buffer, RegExp]>([
    ['nothing at all', Buffer.alloc(0), /only 0 bytes/],
    ['a length that is cut off', Buffer.from([1, 0]), /only 2 bytes/],
    ['a header longer than the frame', Buffer.from([200, 0, 0, 0, 0x80]), /ends at byte 204/],
    ['a header longer than any may be', Buffer.from([0xff, 0xff, 0xff, 0xff]), /at most 65536/],
    ['an array of four thousand million that are not there', packed([0xdd, 0xff, 0xff, 0xff, 0xff]), /longer than it/],
    ['a string longer than the header', packed([0xd9, 0xff, 0x61]), /longer than it/],
    ['an extension type', packed([0xd4, 0x00, 0x00]), /unsupported MessagePack type/],
    ['bytes behind the header', packed([0x80, 0x80]), /followed by other bytes/],
    ['a header too deep', rawFrame({ kind: 'event', seq: 0, value: nested(MAX_HEADER_DEPTH) }), /nested deeper/],
    ['a number for a header', packed([0x07]), /its header is wrong/],
    ['an unknown kind', rawFrame({ kind: 'hullo' }), /wrong at "kind"/],
    ['a missing field', rawFrame({ kind: 'ack' }), /wrong at "consumed"/],
    ['an unknown field', rawFrame({ kind: 'ack', consumed: 1, more: 2 }), /Unrecognized key/],
    ['a negative count', rawFrame({ kind: 'ack', consumed: -1 }), /wrong at "consumed"/],
    ['a broken count', rawFrame({ kind: 'ack', consumed: 1.5 }), /wrong at "consumed"/],
    ['a count beyond 2^53', rawFrame({ kind: 'ack', consumed: 2 ** 60 }), /wrong at "consumed"/],
    ['a long name', rawFrame({ kind: 'request', seq: 0, method: 'm'.repeat(1025), params: 0 }), /wrong at "method"/],
    ['a credit too small for a frame', rawFrame(rawHello({ credit: 100 })), /wrong at "credit"/],
    ['a session that is no session', rawFrame(rawHello({ session: '../../etc' })), /wrong at "session"/],
    [
      'another version',
      rawFrame({ kind: 'hello', protocol: PROTOCOL_VERSION + 1, news: true }),
      new RegExp(`speaks version ${PROTOCOL_VERSION + 1}`),
    ],
    ['data without any', rawFrame({ kind: 'data', seq: 0, tensor: 0 }), /carries 0 bytes/],
    ['a payload where none belongs', rawFrame({ kind: 'ack', consumed: 0 }, new Uint8Array(3)), /carries 3 bytes/],
  ])('%s', (_, bytes, message) => {
    expect(() => decodeFrame([bytes])).toThrow(InvalidFrameError);
    expect(() => decodeFrame([bytes])).toThrow(message);
  });

  test('what is too long to send, before it is sent', () => {
    const params = 'p'.repeat(MAX_HEADER_BYTES);
    expect(() => encodeFrame({ kind: 'request', seq: 0, method: 'm', params })).toThrow(/at most 65536/);
    expect(() => encodeFrame({ kind: 'event', seq: 0, value: new Date() })).toThrow(/unsupported MessagePack type/);
  });
});

test('ten thousand damaged frames are read or refused, and nothing else', () => {
  const packr = new Packr({ useRecords: false });
  const seeds = [...fc.sample(frame, 100).map((it) => rawFrame(it.header, it.payload)), packr.pack(rawHello())];
  let refused = 0;
  fc.assert(
    fc.property(
      fc.constantFrom(...seeds),
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 6 }),
      fc.nat(),
      (seed, edits, cut) => {
        const bytes = Buffer.from(seed);
        for (const [at, byte] of edits) bytes[at % bytes.byteLength] = byte;
        try {
          decodeFrame([cut % 3 === 0 ? bytes.subarray(0, cut % bytes.byteLength) : bytes]);
        } catch (error) {
          refused++;
          expect(error).toBeInstanceOf(InvalidFrameError);
        }
      },
    ),
    { numRuns: 10_000 },
  );
  expect(refused).toBeGreaterThan(1_000);
});
