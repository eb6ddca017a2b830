/** The options for what to factorise and how. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { ALLOCATE_CHOICES, METRIC_CHOICES, REPAIR_CHOICES, SENSITIVITY_CHOICES } from '../conversion/allocation.js';
import { DTYPE_NAMES, FORMATS, SCALE_GROUPS } from '../conversion/settings.js';
import { QUALITY_NAMES } from '../methods/method.js';
import { ACTIVATIONS } from '../methods/mobe/problem.js';
import { QUALITIES } from '../methods/mobe/sizes.js';
import { WIDTHS } from '../methods/quantise/problem.js';
import { DEFAULT_METHOD, METHODS } from '../methods/registry.js';
import { DEFAULT_PROJECTIONS, PROJECTIONS } from '../models/family.js';
import { engine, maxMemory, positiveInteger, positiveNumber, precision, threads, wholeNumber } from './options.js';

const methods = [...METHODS.values()];

/** The methods for the help: "mobe: MoBE; …". */
const METHOD_TITLES = methods
  .map(
    ({ name, title, writes }) =>
      `${name}: ${title}${writes ? ', to packed integers of --width bits, as compressed-tensors has them; with --calibration by GPTQ' : ''}`,
  )
  .join('; ');

/** The solvers of all methods that leave a choice. */
const SOLVER_NAMES = methods.flatMap(({ solvers }) => (solvers.length > 1 ? solvers : []));

/** The steps of the qualities for the help: "150, 600, 3000". */
const QUALITY_STEPS = Object.values(QUALITIES)
  .map(({ varpro }) => varpro)
  .join(', ');

export const format = (): Option =>
  new Option(
    '--format <format>',
    'mobe: a native checkpoint, stored as factors; hf: standard weights, rebuilt from the factors and not smaller (default: mobe; hf with a method that has no factors)',
  ).choices(FORMATS);

/** Adds the options that `plan`, `compress` and `fit` share. */
export function addFactorisationOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--method <method>', `how experts are factorised; ${METHOD_TITLES}`)
        .choices(methods.map(({ name }) => name))
        .default(DEFAULT_METHOD.name),
    )
    .addOption(
      new Option(
        '--bases <m>',
        'number of bases that the experts of a layer and projection share; fewer make it smaller',
      )
        .argParser(positiveInteger)
        .conflicts('keep'),
    )
    .addOption(
      new Option(
        '--keep <share>',
        "share of the converted layers' routed-expert parameters (gate, up and down) to keep; decides the number of bases, or the rank of svd (default: 0.76; if full rank keeps more, a smaller rank is chosen with it, or the paper's sizes)",
      ).argParser(share),
    )
    .addOption(
      new Option(
        '--rank <r>',
        'rows of each basis (default: full rank, the smaller side of an expert, if it can keep 0.76; see --keep); with --method svd: the rank of each expert',
      ).argParser(positiveInteger),
    )
    .addOption(
      new Option('--activation <f>', 'function that is applied to the mixed bases (default: silu)').choices(
        ACTIVATIONS,
      ),
    )
    .addOption(
      new Option(
        '--projections <list>',
        `projections to factorise, comma-separated: gate_proj, up_proj, down_proj (default: ${DEFAULT_PROJECTIONS.join(',')}; all with a calibration record, with --average-bits or --keep-bytes, and with quantised factors of quantised experts)`,
      ).argParser(projections),
    )
    .addOption(
      new Option(
        '--calibration <record>',
        'a calibration record of the model (mobe calibrate): bases are allocated and experts fitted by what matters on its text',
      ),
    )
    .addOption(
      new Option(
        '--metric <form>',
        "how fits weigh errors by the record; full: by the covariance of each expert's inputs; low-rank: by an approximation of it, which takes less memory; none: all alike (default: with a record, full if that adds at most a quarter to the memory, else low-rank)",
      ).choices(METRIC_CHOICES),
    )
    .addOption(
      new Option(
        '--repair <what>',
        'what is fitted anew to the record after rounding; factors: the last A of each expert, also of fits without a metric (default: factors with a record, else none; a fit in a metric always fits its last A in it)',
      ).choices(REPAIR_CHOICES),
    )
    .addOption(
      new Option(
        '--allocate <how>',
        'how bases are spread over layers and projections; uniform: the same number everywhere; error: by the errors of short fits; calibrated: by what those errors do on the text of a calibration record (default: calibrated with a record, else uniform, or error with --average-bits and --keep-bytes)',
      ).choices(ALLOCATE_CHOICES),
    )
    .addOption(
      new Option(
        '--sensitivity <what>',
        "what --allocate calibrated measures; local: the error of a layer's output, from the record alone; kl: the KL divergence of the model's predictions, for models that this program runs (default: local)",
      ).choices(SENSITIVITY_CHOICES),
    )
    .addOption(
      new Option(
        '--max-loss <kl>',
        'in place of --keep, with --sensitivity kl: the smallest size whose predicted KL divergence on the calibration text, in nats a token, is at most this',
      )
        .argParser(positiveNumber)
        .conflicts(['keep', 'bases']),
    )
    .addOption(
      new Option(
        '--average-bits <x>',
        "in place of --keep, for --format mobe: the most bits that are stored for the converted layers' routed experts (gate, up and down; dense ones and scales included), for each of their weights; the number of bases and the dtypes (of --dtype alone, if it is given) are chosen by layer and projection, by the errors of short fits or with a record by what they do",
      )
        .argParser(positiveNumber)
        .conflicts(['keepBytes', 'keep', 'bases', 'maxLoss']),
    )
    .addOption(
      new Option(
        '--keep-bytes <share>',
        'as --average-bits: the share of the bytes that these experts have in the source, e.g. 0.2',
      )
        .argParser(share)
        .conflicts(['averageBits', 'keep', 'bases', 'maxLoss']),
    )
    .addOption(
      new Option(
        '--groups <g>',
        "cut a layer's experts into g groups, in order; each has its share of the bases (default: 1)",
      ).argParser(positiveInteger),
    )
    .addOption(
      new Option('--layers <list>', 'layers to convert, e.g. 0-3,7 (default: all with routed experts)').argParser(
        layers,
      ),
    )
    .addOption(
      new Option(
        '--dtype <dtype>',
        'dtype of the factors or rebuilt weights (default: that of the experts; of quantised ones int8 or, if they have fewer than 8 bits, int4 factors, and bfloat16 weights). int8, fp8 and fewer bits are for --format mobe and for mobe fit',
      ).choices(DTYPE_NAMES),
    )
    .addOption(
      new Option(
        '--bases-dtype <dtype>',
        'dtype of the bases (default: that of --dtype; with fp8: int8, with int5: int6, with int4: int5)',
      ).choices(DTYPE_NAMES),
    )
    .addOption(
      new Option(
        '--scale-group <n>',
        'columns of a row of quantised factors, or of quantised weights, that share a scale: 64 or 128 (default: 64; with --method quantise 128, or 64 if rows are no multiple of 128)',
      ).argParser(scaleGroup),
    )
    .addOption(
      new Option('--width <bits>', 'bits of a weight with --method quantise: 4 or 8 (default: 4)').argParser(width),
    )
    .addOption(
      new Option(
        '--solver <solver>',
        'varpro (default): the fast solver of this project; adam: the solver of the reference implementation',
      ).choices(SOLVER_NAMES),
    )
    .addOption(
      new Option('--quality <quality>', 'how much time a fit may take (default: balanced)').choices(QUALITY_NAMES),
    )
    .addOption(
      new Option(
        '--steps <n>',
        `the most solver steps for each group (default: by quality, ${QUALITY_STEPS} for varpro, three quarters of that in a metric)`,
      ).argParser(positiveInteger),
    )
    .addOption(
      new Option('--learning-rate <rate>', 'learning rate (default: chosen by the solver)').argParser(positiveNumber),
    )
    .addOption(
      new Option(
        '--batch-experts <n>',
        'experts that are computed together; fewer need less memory (default: by size)',
      ).argParser(positiveInteger),
    )
    .addOption(engine())
    .addOption(precision())
    .addOption(threads())
    .addOption(new Option('--seed <n>', 'seed of the random start').argParser(wholeNumber).default(0))
    .addOption(maxMemory());
}

function scaleGroup(text: string): number {
  const value = SCALE_GROUPS.find((known) => String(known) === text);
  if (value === undefined) throw new InvalidArgumentError(`Expected ${SCALE_GROUPS.join(' or ')}.`);
  return value;
}

function width(text: string): number {
  const value = WIDTHS.find((known) => String(known) === text);
  if (value === undefined) throw new InvalidArgumentError(`Expected ${WIDTHS.join(' or ')}.`);
  return value;
}

function share(text: string): number {
  const value = positiveNumber(text);
  if (value >= 1) throw new InvalidArgumentError('Expected a share between 0 and 1, e.g. 0.76.');
  return value;
}

function projections(text: string): string[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.find((name) => !PROJECTIONS.some((known) => known === name));
  if (unknown !== undefined) throw new InvalidArgumentError(`"${unknown}" is not one of ${PROJECTIONS.join(', ')}.`);
  return names;
}

/** "0-3,7" → [0, 1, 2, 3, 7]; "none" → [] */
function layers(text: string): number[] {
  if (text === 'none') return [];
  const numbers = new Set<number>();
  for (const part of text.split(',')) {
    const match = /^\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?$/.exec(part);
    const first = Number(match?.[1]);
    const last = Number(match?.[2] ?? match?.[1]);
    if (!match || last < first) throw new InvalidArgumentError(`"${part}" is neither a layer nor a range like 0-3.`);
    for (let layer = first; layer <= last; layer++) numbers.add(layer);
  }
  return [...numbers].sort((a, b) => a - b);
}
