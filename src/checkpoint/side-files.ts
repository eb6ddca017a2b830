import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CONFIG_FILE, INDEX_FILE } from './open-checkpoint.js';

/** Weights in other formats would describe the uncompressed model. */
const OTHER_WEIGHTS = /\.(safetensors|bin|pth|pt|ckpt|gguf|onnx|h5|msgpack)$|\.index\.json$/;

/**
 * What a checkpoint holds beside weights, index and config: tokenizer, generation settings, remote code, templates,
 * licence. Relative paths; hidden files are left behind (download caches, version control).
 */
export async function listSideFiles(folder: string): Promise<string[]> {
  const files: string[] = [];
  const visit = async (below: string): Promise<void> => {
    const entries = await readdir(join(folder, below), { withFileTypes: true });
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = below ? `${below}/${entry.name}` : entry.name;
      if (entry.name.startsWith('.') || path === CONFIG_FILE || path === INDEX_FILE || OTHER_WEIGHTS.test(entry.name))
        continue;
      if (entry.isDirectory()) await visit(path);
      // Download caches store files as symbolic links to blobs.
      else if (entry.isFile() || entry.isSymbolicLink()) files.push(path);
    }
  };
  await visit('');
  return files;
}
