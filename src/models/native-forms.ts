/** The models that have a native form, and how transformers loads their native checkpoints. */
import type { Config, NativeForm } from './family.js';

/**
 * Model types of transformers whose native checkpoints were loaded and gave the right logits (the table in docs/families.md). In any other
 * model the file might not find the experts, or the experts might compute otherwise than it supposes.
 */
const TESTED: ReadonlySet<string> = new Set([
  'afmoe',
  'aria',
  'axk1',
  'axk2',
  'bailing_hybrid',
  'beam',
  'cohere2_moe',
  'deepseek_ocr2',
  'deepseek_v2',
  'deepseek_v3',
  'deepseek_v32',
  'deepseek_v4',
  'dots1',
  'dots3_note',
  'ernie4_5_moe',
  'exaone_moe',
  'flex_olmo',
  'flint',
  'gemma4',
  'glm4_moe',
  'glm4_moe_lite',
  'glm4v_moe',
  'glm5_next',
  'glm_moe_dsa',
  'gpt_oss',
  'granitemoe',
  'granitemoe_swa',
  'granitemoehybrid',
  'granitemoeshared',
  'hunyuan_v1_moe',
  'hy_v3',
  'hy_v4',
  'hy_v4_vl',
  'inkling2',
  'inkling2_loop',
  'inkling_mm_model',
  'jamba',
  // Kimi-K2 has the layout of DeepSeek-V3 and its own type.
  'kimi_k2',
  'kimi_k25',
  'kimi_linear',
  'kolibri1',
  'laguna',
  'lara_mini',
  'lfm2_moe',
  'llama4',
  'llama4_text',
  'aria_text',
  'dots3_note_text',
  'gemma4_text',
  'inkling2_loop_text',
  'inkling2_text',
  'inkling_text',
  'minimax_m3_vl_text',
  'qwen3_5_moe_text',
  'qwen4_exp_text',
  'mellum',
  'mimo_v2_flash',
  'minimax',
  'minimax_m2',
  'minimax_m3_vl',
  'mistral4',
  'mistral_large4',
  'mixtral',
  'muse_spark',
  'nemotron_h',
  'olmoe',
  'phimoe',
  'qwen2_moe',
  'qwen3_5_moe',
  'qwen3_moe',
  'qwen3_next',
  'qwen3_omni_moe',
  'qwen3_vl_moe',
  'qwen4_exp',
  'solar_open',
  'step3p7',
  'unlimited_ocr',
  'zaya',
]);

/** Ling is not in transformers. Its modelling file has the whole model. */
const LING: ReadonlySet<string> = new Set(['bailing_moe', 'bailing_moe_v2']);

/** The `model_type` of all native checkpoints. Programs that do not know it refuse them, and do not invent experts. */
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
  return {
    modelType: NATIVE_TYPE,
    architecture: architecture.replace(/Moe|MoE/, '').replace(/(?=For[A-Z]\w*$)/, 'MoBE'),
    module: ling ? 'modeling_bailing_mobe' : 'modeling_mobe',
    configClass: ling ? 'BailingMoBEConfig' : 'MoBEConfig',
    modelClass: ling ? 'BailingMoBEForCausalLM' : 'MoBEForCausalLM',
    autoClasses: autoClassesOf(architecture, modelType),
  };
}

/** Never AutoModel: vLLM would load the checkpoint by it into its own classes, without the factors and without a word. */
function autoClassesOf(architecture: string, modelType: string): string[] {
  if (/ForTokenClassification$/.test(architecture)) return ['AutoModelForTokenClassification'];
  // Mistral 4 is a language model that transformers lists among the multimodal ones.
  const multimodal = /ForConditionalGeneration$/.test(architecture) || modelType === 'mistral4';
  return ['AutoModelForCausalLM', ...(multimodal ? ['AutoModelForImageTextToText', 'AutoModelForMultimodalLM'] : [])];
}

function architectureOf({ architectures }: Config): string {
  const [first] = Array.isArray(architectures) ? architectures : [];
  return typeof first === 'string' ? first : 'ForCausalLM';
}
