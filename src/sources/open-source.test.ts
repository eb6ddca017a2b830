import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { memoryFolder } from '../../fixtures/memory-folder.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { NotACheckpointError, PipeSourceError, ReadError, UnknownSchemeError } from '../errors.js';
import { fileIn, isPath, normaliseLocation, schemeOf } from '../location.js';
import { LocalFiles } from './files.js';
import { joinFiles } from './join-files.js';
import { openFiles, openSource, registerSource } from './open-source.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

describe('a location', () => {
  test.each([
    ['model', undefined, join(process.cwd(), 'model'), join(process.cwd(), 'model', 'a')],
    ['C:\\model', undefined, join(process.cwd(), 'C:\\model'), join(process.cwd(), 'C:\\model', 'a')],
    ['ws://host:1/', 'ws', 'ws://host:1', 'ws://host:1/a'],
    ['WSS://host', 'wss', 'WSS://host', 'WSS://host/a'],
    ['hf://Qwen/Qwen3-30B-A3B', 'hf', 'hf://Qwen/Qwen3-30B-A3B', 'hf://Qwen/Qwen3-30B-A3B/a'],
  ])('%s', (location, scheme, normal, file) => {
    expect(schemeOf(location)).toBe(scheme);
    expect(isPath(location)).toBe(scheme === undefined);
    expect(normaliseLocation(location)).toBe(normal);
    expect(fileIn(normal, 'a')).toBe(file);
  });
});

describe('a source', () => {
  test('without a scheme is a folder of this machine', async () => {
    expect(openFiles(TINY_MODEL).files).toBeInstanceOf(LocalFiles);
    expect((await openSource(TINY_MODEL)).tensors.size).toBe(423);
  });

  test('of a registered scheme is read by what was registered, which is told the location without a slash at its end', async () => {
    const { files } = memoryFolder(new Map([['config.json', bytes('{}')]]));
    const asked: string[] = [];
    registerSource('registered', (location) => {
      asked.push(location);
      return files;
    });
    expect(openFiles('registered://a/b//')).toEqual({ folder: 'registered://a/b', files });
    await expect(openSource('registered://a/b')).rejects.toThrow('registered://a/b/config.json');
    expect(asked).toEqual(['registered://a/b', 'registered://a/b']);
  });

  test.each(['gs://bucket/model', 'ftp://host/model', 'file:///model'])(
    '%s is refused with what is known',
    (location) => {
      registerSource('known', () => new LocalFiles());
      expect(() => openFiles(location)).toThrow(UnknownSchemeError);
      expect(() => openFiles(location)).toThrow(/^\w+:\/\/\S+ cannot be opened.*a folder of this machine.*known:\/\/…/);
    },
  );

  test('cannot be a pipe, since a checkpoint is read at many places', () => {
    expect(() => openFiles('-')).toThrow(PipeSourceError);
    expect(() => openFiles('-')).toThrow('mobe receive <folder> -');
  });

  test('that is an object is taken as it is: a folder with its files, or a checkpoint that is open', async () => {
    const folder = memoryFolder(new Map([['config.json', bytes('{}')]]));
    expect(openFiles(folder)).toBe(folder);
    await expect(openSource(folder)).rejects.toThrow(NotACheckpointError);
    const checkpoint = await openCheckpoint(TINY_MODEL);
    expect(await openSource(checkpoint)).toBe(checkpoint);
  });
});

describe('files of several folders', () => {
  const at = (folder: string, text: string) => ({
    folder,
    files: {
      ...memoryFolder(new Map()).files,
      list: async () => [{ path: 'f', bytes: 1, modified: 0 }],
      size: async () => text.length,
      readRange: async () => new Uint8Array(bytes(text)),
    },
  });
  const joined = joinFiles(at('/a', 'a'), at('/a/b', 'inner'), at('ws://host', 'elsewhere'));

  test.each([
    ['/a/f', 'a'],
    ['/a/bc/f', 'a'],
    ['/a/b/f', 'inner'],
    ['ws://host/f', 'elsewhere'],
  ])('%s is read by those of its folder', async (file, content) => {
    expect(new TextDecoder().decode(await joined.readRange({ file, start: 0, end: 1 }))).toBe(content);
    expect(await joined.size(file)).toBe(content.length);
  });

  test('what is in none of them is an error that names it', async () => {
    await expect(joined.size('/ab/f')).rejects.toThrow(ReadError);
    await expect(joined.list('ws://host2')).rejects.toThrow('ws://host2');
  });
});
