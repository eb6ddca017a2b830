/** Sink of `fit` and `import`. */
import { join } from 'node:path';
import { encodeHeader } from '../../src/checkpoint/header.js';
import {
  encodeFactorMetadata,
  FACTOR_HEADER_BYTES,
  type FactorMetadata,
  factorFileName,
  factorTensors,
} from '../../src/conversion/factor-files.js';
import type { FittedGroupReport } from '../../src/conversion/run-report.js';
import { type FileSystem, nodeFileSystem, syncFolder } from '../../src/file-system.js';
import { layoutFile } from '../../src/output/layout.js';
import { asWriteError, ShardWriter } from '../../src/output/shard-writer.js';
import type { Factorization } from '../records.js';
import { foldExperts } from './fold.js';

export type FactorContext = Pick<FactorMetadata, 'sourceFingerprint' | 'settings'>;

/** Writes a group into a file of its own, which gets its name only when it is whole. */
export async function writeFactorFile(
  folder: string,
  factorization: Factorization,
  context: FactorContext,
  fs: FileSystem = nodeFileSystem,
): Promise<FittedGroupReport> {
  const { group, bases, coefficients } = factorization;
  const tensors = factorTensors(group);
  const name = factorFileName(group);
  const partial = join(folder, `${name}.partial`);
  await fs.remove(partial);
  const layout = layoutFile(name, tensors, {}, FACTOR_HEADER_BYTES);
  const writer = await ShardWriter.create(partial, layout, fs);
  try {
    await writer.write('B', 0, bases);
    await writer.write('alpha', 0, coefficients);
    const report = await foldExperts(factorization, (expert, data) =>
      writer.write('A', expert * data.byteLength, data),
    );
    const { seconds: _, ...reproducible } = report;
    const metadata = encodeFactorMetadata(group, { ...context, report: reproducible });
    await writer.rewriteHeader(encodeHeader(tensors, metadata, layout.header.byteLength));
    await writer.finish();
    await fs.rename(partial, join(folder, name)).catch((error) => {
      throw asWriteError(join(folder, name), error);
    });
    await syncFolder(folder, fs);
    return report;
  } catch (error) {
    await writer.abandon();
    await fs.remove(partial).catch(() => {});
    throw error;
  }
}
