import { linkTensorflow } from '../engine/link-tensorflow.js';

/** `mobe engines --link-tensorflow <folder>`: progress on stderr, the result on stdout. */
export async function linkAndPrint(folder: string, flags: { json?: boolean }): Promise<void> {
  const linked = await linkTensorflow(folder, (line) => process.stderr.write(`${line}\n`));
  const { addon, kind, device } = linked;
  const verdict =
    kind === 'gpu'
      ? `It runs on the GPU: ${device}.`
      : `It runs on the CPU, not on a GPU: ${device}.\nFor a GPU it needs NVIDIA's driver and a wheel with CUDA: pip install 'tensorflow[and-cuda]'.`;
  const text = `${addon} is linked to TensorFlow.\n${verdict}\nUse it with --engine tensorflow.`;
  process.stdout.write(`${flags.json ? JSON.stringify(linked, null, 2) : text}\n`);
}
