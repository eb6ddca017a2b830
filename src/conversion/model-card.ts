import { dtypeName, dtypeNamed } from '../checkpoint/factor-dtype.js';
import { formatBytes, formatCount, formatPercent } from '../format.js';
import { describeDtypes } from '../methods/factor-storage.js';
import { DEFAULT_METHOD, namedMethod } from '../methods/registry.js';
import { allocationSchema } from './allocation.js';
import { groupLabel } from './group-plan.js';
import { fitWarnings, type GroupReport, isFitted } from './run-report.js';
import { isNative, type OutputFormat } from './settings.js';

/** The facts in a model card. */
export interface ModelCard {
  /** The source's name (`modelName`). */
  source: string;
  format: OutputFormat;
  parametersBefore: number;
  parametersAfter: number;
  bytesBefore: number;
  bytesAfter: number;
  settings: Readonly<Record<string, unknown>>;
  groups: readonly GroupReport[];
}

/** The dtypes of quantised factors in words; empty if none are. */
function storage({ dtype, basesDtype, scaleGroup, allocation }: ModelCard['settings']): string {
  const allocated =
    allocationSchema.safeParse(allocation).data?.projections.flatMap(({ stored }) => stored ?? []) ?? [];
  if (allocated.length)
    return `, by layer and projection in ${[...new Set(allocated.map(describeDtypes))].join('; or in ')}`;
  const [own, shared] = [dtype, basesDtype].map((name) => dtypeNamed(name, Number(scaleGroup)));
  if (!Number.isSafeInteger(scaleGroup) || !shared) return '';
  return `, in ${own ? describeDtypes({ own, shared }) : `the dtype of the experts, their bases in ${dtypeName(shared)}`}`;
}

/** Which programs load a native checkpoint. */
const LOADING = `## Loading

- transformers 5.24: \`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\`.
- vLLM with the plugin in mobe-stream, for models that vLLM has: \`npm install mobe-stream\`, \`pip install "$(npx mobe serving --path)"\`, then
  \`vllm serve folder\`.
- vLLM without the plugin, SGLang and llama.cpp refuse it. \`npx mobe expand folder out\` makes standard weights for them, at least as large
  as the source.

`;

/** The model card (README.md) of a converted checkpoint, as Markdown. */
export function modelCard(card: ModelCard): string {
  const { source, settings, groups } = card;
  const projections = [...new Set(groups.map(({ projection }) => projection))].join(', ') || 'no projection';
  const { title, formula, reference } = namedMethod(settings.method) ?? DEFAULT_METHOD;
  const what = isNative(card)
    ? `a native ${title} checkpoint: of the routed experts, ${projections} are stored as ${formula}${storage(settings)}`
    : `standard weights, in which ${projections} of the routed experts were replaced by ${formula}`;
  const rows = groups
    .filter(isFitted)
    .map((report) => `| ${groupLabel(report)} | ${report.relativeError.toFixed(4)} | ${report.steps || 'not known'} |`);
  const warnings = fitWarnings(groups);
  const told = warnings.length ? `## To be known\n\n${warnings.map((warning) => `- ${warning}`).join('\n')}\n\n` : '';
  const errors = rows.length
    ? `## Relative error ‖W − Ŵ‖/‖W‖ of what is stored\n\n| group | error | steps |\n|---|---|---|\n${rows.join('\n')}\n`
    : '';
  // The hub refuses cards whose base model cannot be the name of one.
  const base = /^\w[\w.-]*(?:\/\w[\w.-]*)?$/.test(source) ? `base_model: ${source}\n` : '';
  return `---
${base}tags:
- mobe
- mixture-of-experts
---

# ${source}, compressed with ${title}

This is ${what}${reference ? ` (${reference})` : ''}. Made by mobe-stream; \`mobe.json\` has the full record.

| | before | after | |
|---|---|---|---|
| parameters | ${formatCount(card.parametersBefore)} | ${formatCount(card.parametersAfter)} | ${formatPercent(card.parametersAfter / card.parametersBefore)} |
| tensor bytes | ${formatBytes(card.bytesBefore)} | ${formatBytes(card.bytesAfter)} | ${formatPercent(card.bytesAfter / card.bytesBefore)} |

${isNative(card) ? LOADING : ''}## Settings

\`\`\`json
${JSON.stringify({ ...settings, allocation: undefined }, null, 2)}
\`\`\`

${told}${errors}`;
}
