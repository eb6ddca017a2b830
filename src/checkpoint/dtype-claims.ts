/** Finds contradictions between a checkpoint's config files and its tensors' dtypes. A loader would misread such a checkpoint. */
import { CONFIG_FILE } from './file-names.js';
import type { Checkpoint } from './open-checkpoint.js';
import { describeQuantisation, isObject, quantisationEntries } from './quantisation-entries.js';
import { seemsQuantised } from './seems-quantised.js';

/** Values of `torch_dtype`, with the dtypes of safetensors headers that they stand for. */
const TORCH_DTYPES: Readonly<Record<string, string>> = {
  bfloat16: 'BF16',
  float16: 'F16',
  half: 'F16',
  float32: 'F32',
  float: 'F32',
  float64: 'F64',
};

/** Whether a native checkpoint's config gives the dtypes of quantised factors. */
function namesFactors({ mobe }: Checkpoint['config']): boolean {
  const factors = isObject(mobe) ? mobe.factors : undefined;
  return Array.isArray(factors) && factors.some((entry) => isObject(entry) && entry.dtype !== undefined);
}

/**
 * Returns a sentence for each contradiction; none if files and tensors agree.
 * @param quantConfig the content of `hf_quant_config.json`, if the folder has one
 */
export function dtypeContradictions(
  { config, tensors }: Pick<Checkpoint, 'config' | 'tensors'>,
  quantConfig?: Readonly<Record<string, unknown>>,
): string[] {
  const all = [...tensors.values()];
  const entries = quantisationEntries(config);
  const quantised = all.find(seemsQuantised);
  const problems: string[] = [];
  if (!quantised) {
    for (const entry of entries)
      problems.push(`${CONFIG_FILE}: "${entry.path}" says ${describeQuantisation(entry)}, but no tensor is quantised`);
    if (quantConfig) problems.push('hf_quant_config.json is there, but no tensor is quantised');
  } else if (entries.length === 0 && !quantConfig && /^F[468]/.test(quantised.dtype) && !namesFactors(config))
    problems.push(`${CONFIG_FILE} says nothing of quantisation, but "${quantised.name}" is ${quantised.dtype}`);
  for (const key of ['torch_dtype', 'dtype']) {
    const claimed = config[key];
    const dtype =
      typeof claimed === 'string' && Object.hasOwn(TORCH_DTYPES, claimed) ? TORCH_DTYPES[claimed] : undefined;
    if (dtype && all.length && !all.some((tensor) => tensor.dtype === dtype))
      problems.push(`${CONFIG_FILE}: "${key}" is "${String(claimed)}", but no tensor is ${dtype}`);
  }
  return problems;
}
