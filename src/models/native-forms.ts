/** The models that have a native form, and how transformers loads their native checkpoints. */
import type { Config, NativeForm } from './family.js';

/**
 * Model types of transformers whose native checkpoints were loaded and gave the right logits (docs/families.md). In any other
 * model the file might not find the experts, or the experts might compute otherwise than it supposes.
 */
const TESTED: ReadonlySet<string> = new Set([
  'deepseek_v2',
  'deepseek_v3',
  'dots1',
  'ernie4_5_moe',
  'gemma4',
  'glm4_moe',
  'gpt_oss',
  'granitemoe',
  'hunyuan_v1_moe',
  'jamba',
  // Kimi-K2 has the layout of DeepSeek-V3 and its own type.
  'kimi_k2',
  'lfm2_moe',
  'llama4',
  'minimax',
  'mixtral',
  'nemotron_h',
  'olmoe',
  'phimoe',
  'qwen2_moe',
  'qwen3_moe',
  'qwen3_next',
  'qwen3_vl_moe',
]);

/** Ling is not in transformers. Its modelling file has the whole model. */
const LING: ReadonlySet<string> = new Set(['bailing_moe', 'bailing_moe_v2']);

/** The `model_type` of all native checkpoints. Programs that do not know it refuse them, instead of making experts up. */
const NATIVE_TYPE = 'mobe';

/** The `model_type` of a model. A native checkpoint has it in another place. */
export function modelTypeOf({ model_type: own, mobe }: Config): string {
  const source = (mobe as Config | undefined)?.source_model_type;
  return String((own === NATIVE_TYPE ? source : own) ?? 'unknown');
}

/** The native form of a model; undefined if none was tested. */
export function nativeForm(config: Config): NativeForm | undefined {
  const modelType = modelTypeOf(config);
  const ling = LING.has(modelType);
  if (!ling && !TESTED.has(modelType)) return undefined;
  const architecture = architectureOf(config);
  const several = /ForConditionalGeneration$/.test(architecture);
  return {
    modelType: NATIVE_TYPE,
    architecture: architecture.replace(/Moe|MoE/, '').replace(/(?=For[A-Z]\w*$)/, 'MoBE'),
    module: ling ? 'modeling_bailing_mobe' : 'modeling_mobe',
    configClass: ling ? 'BailingMoBEConfig' : 'MoBEConfig',
    modelClass: ling ? 'BailingMoBEForCausalLM' : 'MoBEForCausalLM',
    // Never AutoModel: vLLM would load the checkpoint by it into its own classes, without the factors and without a word.
    autoClasses: [
      'AutoModelForCausalLM',
      ...(several ? ['AutoModelForImageTextToText', 'AutoModelForMultimodalLM'] : []),
    ],
  };
}

function architectureOf({ architectures }: Config): string {
  const [first] = Array.isArray(architectures) ? architectures : [];
  return typeof first === 'string' ? first : 'ForCausalLM';
}
