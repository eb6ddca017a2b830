/** Finds the entries of a config that describe a quantisation. They may be at any level, and there may be several. */

/** The keys that loaders read. compressed-tensors used to write the second one. */
const KEYS: readonly string[] = ['quantization_config', 'compression_config'];

export interface QuantisationEntry {
  /** The keys that lead to the entry, with dots between them, e.g. `thinker_config.text_config.quantization_config`. */
  readonly path: string;
  readonly entry: Readonly<Record<string, unknown>>;
}

/** All entries on quantisation, outermost first. If one object has two, `quantization_config` comes first. */
export function quantisationEntries(config: Readonly<Record<string, unknown>>): QuantisationEntry[] {
  const found: QuantisationEntry[] = [];
  const visit = (value: Readonly<Record<string, unknown>>, below: string): void => {
    for (const key of KEYS) {
      const entry = value[key];
      if (isObject(entry)) found.push({ path: below + key, entry });
    }
    for (const [key, entry] of Object.entries(value)) {
      // A key with a dot would make the path ambiguous. No published config has one.
      if (isObject(entry) && !key.includes('.') && !KEYS.includes(key)) visit(entry, `${below}${key}.`);
    }
  };
  visit(config, '');
  return found.sort((a, b) => depth(a) - depth(b));
}

const depth = ({ path }: QuantisationEntry): number => path.split('.').length;

export const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const NAMES: Readonly<Record<string, string>> = {
  gptq: 'GPTQ',
  awq: 'AWQ',
  bitsandbytes: 'bitsandbytes',
  mxfp4: 'MXFP4',
  fp8: 'FP8',
  modelopt: 'ModelOpt',
};

/** The format that an entry names, in words: "GPTQ of 4 bits". */
export function describeQuantisation({ entry }: QuantisationEntry): string {
  const method = String(entry.quant_method ?? 'a format without a name');
  const bits = entry.bits ?? entry.w_bit;
  const algorithm = typeof entry.quant_algo === 'string' ? ` (${entry.quant_algo})` : '';
  return `${Object.hasOwn(NAMES, method) ? NAMES[method] : method}${algorithm}${bits === undefined ? '' : ` of ${String(bits)} bits`}`;
}
