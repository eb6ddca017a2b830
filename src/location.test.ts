import { expect, test } from 'vitest';
import { modelName, publicLocation } from './location.js';

test.each([
  ['https://user:password@host/a/?key=1', 'https://host/a'],
  ['http://token@host/a#part', 'http://host/a'],
  ['wss://user:password@host:1/', 'wss://host:1'],
  ['s3://key:secret@bucket/a', 's3://bucket/a'],
  ['ftp://user:password@host/a', 'ftp://host/a'],
  ['hf://org/name@refs/pr/1/a', 'hf://org/name@refs/pr/1/a'],
  ['-', '-'],
])('%s is named %s', (location, name) => expect(publicLocation(location)).toBe(name));

test.each([
  ['/models/tiny', 'tiny'],
  ['hf://org/name', 'org/name'],
  ['hf://org/name@main/sub/deep', 'org/name'],
  ['https://host/my%20model', 'my model'],
  ['https://host/50%', '50%'],
])('the model at %s is called %s', (location, name) => expect(modelName(location)).toBe(name));
