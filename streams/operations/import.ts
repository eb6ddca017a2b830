import { encodeFinite, floatsOf } from '../../src/checkpoint/codec.js';
import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import { type FLOAT_NAMES, isQuantisedName } from '../../src/checkpoint/factor-dtype.js';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { readMatrix } from '../../src/checkpoint/stored-matrix.js';
import { planFactors } from '../../src/conversion/conversion-plan.js';
import { type GroupPlan, groupLabel, groupOf, productOf } from '../../src/conversion/group-plan.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { ForeignFactorsError, OptionError } from '../../src/errors.js';
import { roundToHalf } from '../../src/linalg/half.js';
import { encodeFactors, storedFactors } from '../../src/methods/factor-storage.js';
import type { Method } from '../../src/methods/method.js';
import { mobe } from '../../src/methods/mobe/mobe.js';
import { type Activation, type Problem, REFERENCE_ACTIVATIONS } from '../../src/methods/mobe/problem.js';
import { detectModel } from '../../src/models/detect.js';
import type { MoeModel } from '../../src/models/family.js';
import type { ByteRange, Files, RangeReader } from '../../src/sources/files.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { listWabFiles, openWabFile, type WabFile, type WabFileName } from '../../src/torch/wab.js';
import type { ComputeOptions } from '../compute/compute.js';
import { ComputeThread, withThread } from '../compute/compute-thread.js';
import { foldSigma } from '../compute/encode-expert.js';
import { openFiles, openSource, type Source } from '../machines/remote-files.js';
import type { FittedGroup, FoldedExpert } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { fold } from '../stages/fold.js';
import { sigmaIn } from '../stages/normalise.js';
import { asLoaded } from '../stages/rebuild.js';
import { convert } from './convert.js';
import type { OutputPlace } from './open-output.js';

/** Options of `importFactors`. */
export interface ImportOptions extends Pick<CompressOptions, 'engine' | 'threads'> {
  /** The dtype of the factors; default: that of the experts. */
  readonly dtype?: keyof typeof FLOAT_NAMES | undefined;
  /**
   * The activation of the factors. The files do not name it. By default, the one that fits the first expert better is taken.
   */
  readonly activation?: Activation | undefined;
}

/** A file of the reference implementation, and the group that it belongs to. */
interface Imported {
  readonly path: string;
  readonly file: WabFile;
  readonly group: GroupPlan;
}

/**
 * Converts the factor files of the reference implementation (`*_WAB.pth`) in `wab` into factor files of this program, for
 * `exportFactors`. α is the softmax of the stored logits. A is multiplied by σ, by which the reference divided the weights. The
 * error of the written factors is measured against `model`. Nothing in the files is executed. Throws `ForeignFactorsError` if
 * the files do not fit `model`.
 */
export async function importFactors(
  model: Source,
  wab: string,
  folder: OutputPlace,
  { activation: given, ...options }: ImportOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const { engine: choice, threads } = resolveSettings(options);
  if (isQuantisedName(options.dtype))
    throw new OptionError('--dtype', `${options.dtype} is for factors that mobe fits. Import them as floats`);
  const opened = await openSource(model, run);
  const source = { ...opened, files: joinFiles(opened, openFiles(wab, run)) };
  const detected = detectModel(source);
  const files = await openWabFolder(wab);
  const matched = files.map((it) =>
    matchGroup(it, files, detected, { ...(options.dtype && { dtype: options.dtype }) }),
  );
  const [first] = matched as [Imported];
  const engine = await chooseEngine(choice, threads, productOf(first.group));
  const compute = { engine: engine.name, threads };
  const activation = given ?? (await findActivation(first, source.files, compute));
  const imported = matched.map((it) => withActivation(it, activation));
  const plan = planFactors(
    source,
    imported.map(({ group }) => group),
  );
  const { groups } = plan;
  return convert({
    plan,
    out: folder,
    inputs: [source.folder, wab],
    experts: ({ missing, reader, signal }) =>
      withThread(compute, signal, async function* (thread) {
        for (const it of imported) {
          if (!missing.includes(it.group)) continue;
          yield* fold(await readGroup(it, await sigmaIn(groups, it.group, reader), reader, thread), plan);
        }
      }),
    record: {
      kind: 'fit',
      sourceFingerprint: await fingerprint(source),
      settings: {
        solver: 'reference',
        activation,
        groups: groups[0]?.groups,
        ...(options.dtype && { dtype: options.dtype }),
      },
      engine: engineRecord(engine),
    },
    run,
    started,
  });
}

type OpenWabFile = WabFileName & { readonly path: string; readonly file: WabFile };

async function openWabFolder(folder: string): Promise<OpenWabFile[]> {
  const names = await listWabFiles(folder);
  if (names.length === 0)
    throw new ForeignFactorsError(folder, 'it has no file like model_layers_0_mlp_gate_proj_WAB.pth');
  return Promise.all(names.map(async (name) => ({ ...name, file: await openWabFile(name.path) })));
}

/** The group of the model that a file belongs to. A file without a group number has all experts of its layer. */
function matchGroup(
  { path, layer, projection, group: number, file }: OpenWabFile,
  all: readonly OpenWabFile[],
  model: MoeModel,
  options: CompressOptions,
): Imported {
  const siblings = all.filter((it) => it.layer === layer && it.projection === projection);
  const groups = number === undefined ? 1 : 1 + Math.max(...siblings.map(({ group }) => group ?? 0));
  const [n, p, r] = file.A.shape as [number, number, number];
  const [m, , d] = file.B.shape as [number, number, number];
  const key = { layer, projection, group: number ?? 0, groups };
  if (siblings.length !== groups)
    throw new ForeignFactorsError(
      path,
      `of the ${groups} groups of layer ${layer} ${projection} there are ${siblings.length}`,
    );
  const problem = { experts: n, rows: p, cols: d, bases: m, rank: r, activation: REFERENCE_ACTIVATIONS[0] };
  const group = groupOf(model, key, resolveSettings(options), { method: mobe as Method, problem });
  if (!group) {
    const found = groupOf(model, key, {});
    throw new ForeignFactorsError(
      path,
      `it is for ${n} experts of ${p} × ${d}; ${groupLabel(key)} of the model ${found ? `has ${found.problem.experts} of ${found.problem.rows} × ${found.problem.cols}` : 'does not exist'}`,
    );
  }
  return { path, file, group };
}

const withActivation = ({ group, ...rest }: Imported, activation: Activation): Imported => ({
  ...rest,
  group: { ...group, problem: { ...(group.problem as Problem), activation } as Problem },
});

/** The activation with which a file reproduces its first expert best. */
async function findActivation(first: Imported, reader: Files, options: ComputeOptions): Promise<Activation> {
  const thread = new ComputeThread(options);
  try {
    const sigma = await sigmaIn([first.group], first.group, reader);
    const errors: number[] = [];
    for (const activation of REFERENCE_ACTIVATIONS) {
      const { experts } = await readGroup(withActivation(first, activation), sigma, reader, thread);
      for await (const { squaredError } of experts) {
        errors.push(squaredError);
        break;
      }
    }
    return REFERENCE_ACTIVATIONS[errors.indexOf(Math.min(...errors))] as Activation;
  } finally {
    await thread.close();
    await reader.close();
  }
}

/** A file's factors in the form in which a fit returns them. */
async function readGroup(
  { file, group }: Imported,
  measured: number,
  reader: RangeReader,
  thread: ComputeThread,
): Promise<FittedGroup> {
  const { method, dtype } = group;
  const problem = group.problem as Problem;
  // The reference holds the weights in fp16, and so its standard deviation is rounded to fp16.
  const sigma = roundToHalf(Float32Array.of(measured))[0] as number;
  const stored = file.A.dtype as FloatDtype; // openWabFile has checked the dtype of all three tensors
  const label = groupLabel(group);
  const B = encodeFinite(dtype, await readFloats(file.B, stored, reader), `bases of ${label}`);
  const logits = await readFloats(file.logits, stored, reader);
  const alpha = encodeFinite(dtype, softmaxRows(logits, problem.bases), `coefficients of ${label}`);
  const shared = { B, alpha };
  await thread.call('load', [asLoaded(group, shared)]);
  const size = (file.A.end - file.A.start) / problem.experts;
  async function* experts(): AsyncGenerator<FoldedExpert> {
    for (const [expert, matrix] of group.experts.entries()) {
      const start = file.A.start + expert * size;
      const A = await readFloats({ file: file.A.file, start, end: start + size }, stored, reader);
      const scaled = foldSigma(method, { A }, sigma);
      const tensors = encodeFactors(storedFactors(group).byExpert, scaled, () => `${label}, expert ${expert}`);
      const dense = { format: { ...group.format, encoding: matrix.encoding }, bytes: await readMatrix(reader, matrix) };
      yield { expert, tensors, ...(await thread.call('compare', [expert, tensors, dense])) };
    }
  }
  return { group, sigma, shared, steps: 0, seconds: 0, experts: experts(), release() {} };
}

const readFloats = async (range: ByteRange, dtype: FloatDtype, reader: RangeReader): Promise<Float32Array> =>
  floatsOf(dtype, await reader.readRange(range));

/** Softmax of each row, computed in f64, in place. */
function softmaxRows(logits: Float32Array, cols: number): Float32Array {
  for (let start = 0; start < logits.length; start += cols) {
    const row = logits.subarray(start, start + cols);
    const most = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const powers = Float64Array.from(row, (value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b, 0);
    row.set(powers.map((value) => value / sum));
  }
  return logits;
}
