/**
 * Whether this program can compute a model's experts from their weights alone: y = Σ w·down·(silu(gate·x) ⊙ up·x), which is added
 * to the residual stream as it is or times a constant of the model. Read from the modelling code of transformers.
 */
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import { UnsupportedExpertsError } from '../errors.js';
import { fileIn } from '../location.js';
import type { Config } from './family.js';
import { languageConfig } from './language-config.js';
import { modelTypeOf, nativeForm } from './native-forms.js';

const CLAMPED = 'its experts clamp gate and up';
const NORMED = 'it normalises the output of its experts before adding it';
const STREAMS = 'its experts write into several residual streams';
const CONVOLVED = 'it convolves the output of its experts before adding it';

/** The models of `nativeForm` with other experts, by model_type. */
const OTHERS: Readonly<Record<string, string>> = {
  afmoe: NORMED,
  axk1: NORMED,
  beam: NORMED,
  deepseek_v4: CLAMPED,
  flex_olmo: NORMED,
  gemma4: NORMED,
  gemma4_text: NORMED,
  glm5_next: CLAMPED,
  gpt_oss: 'its experts have biases',
  hy_v4: CLAMPED,
  hy_v4_vl: CLAMPED,
  inkling2: CONVOLVED,
  inkling2_text: CONVOLVED,
  inkling2_loop: CONVOLVED,
  inkling2_loop_text: CONVOLVED,
  inkling_mm_model: CONVOLVED,
  inkling_text: CONVOLVED,
  kolibri1: NORMED,
  llama4: 'it multiplies the inputs of its experts by the weights of the router',
  llama4_text: 'it multiplies the inputs of its experts by the weights of the router',
  minimax_m3_vl: CLAMPED,
  minimax_m3_vl_text: CLAMPED,
  muse_spark: NORMED,
  nemotron_h: 'its experts have no gate_proj',
  qwen4_exp: STREAMS,
  qwen4_exp_text: STREAMS,
  step3p7: CLAMPED,
  zaya: 'it scales the output of its experts by learned factors',
};

/** What keeps this program from computing the experts; undefined if nothing does. */
function obstacle(config: Config): string | undefined {
  const modelType = modelTypeOf(config);
  if (modelType in OTHERS) return OTHERS[modelType];
  if (!nativeForm(config)) return `it is not known how experts of model_type "${modelType}" compute`;
  const { hidden_act: activation = 'silu' } = languageConfig(config);
  return activation === 'silu' || activation === 'swish'
    ? undefined
    : `its activation is ${JSON.stringify(activation)}`;
}

/** Throws an `UnsupportedExpertsError` if this program cannot compute the experts. */
export function checkComputable({ config, folder }: Pick<Checkpoint, 'config' | 'folder'>): void {
  const found = obstacle(config);
  if (found) throw new UnsupportedExpertsError(fileIn(folder, CONFIG_FILE), found);
}
