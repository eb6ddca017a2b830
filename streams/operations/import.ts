import { encodeFinite, floatsOf } from '../../src/checkpoint/codec.js';
import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { planConversion } from '../../src/conversion/conversion-plan.js';
import { type GroupPlan, groupLabel, planGroups, sourceBytes } from '../../src/conversion/group-plan.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { ForeignFactorsError } from '../../src/errors.js';
import { roundToHalf } from '../../src/linalg/half.js';
import { type Activation, REFERENCE_ACTIVATIONS } from '../../src/methods/mobe/problem.js';
import { detectModel } from '../../src/models/detect.js';
import type { MoeModel } from '../../src/models/family.js';
import type { ByteRange, Files, RangeReader } from '../../src/sources/files.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { listWabFiles, openWabFile, type WabFile, type WabFileName } from '../../src/torch/wab.js';
import { ComputeWorker, withWorker } from '../compute/worker-pool.js';
import { openFiles, openSource, type Source } from '../machines/remote-files.js';
import type { Factorization } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { measureGroups } from './expert-branch.js';
import { fillFactorFolder } from './factor-folder.js';
import type { OutputPlace } from './open-output.js';

export interface ImportOptions extends Pick<CompressOptions, 'dtype' | 'engine' | 'threads'> {
  /** Undefined: whichever fits the first expert better. The files do not say. */
  readonly activation?: Activation | undefined;
}

/** A file of the reference, and the group it belongs to. */
interface Imported {
  readonly path: string;
  readonly file: WabFile;
  readonly group: GroupPlan;
}

/**
 * Turns the factor files of the reference implementation (`*_WAB.pth`) in `wab` into factor files of this program, for
 * `exportFactors`: α = softmax of the stored logits, A scaled by the σ that the reference divided the weights by, and the error
 * of what is written measured against the weights of `model`. Nothing in the files is executed.
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
  const opened = await openSource(model, run);
  const source = { ...opened, files: joinFiles(opened, openFiles(wab, run)) };
  const detected = detectModel(source);
  const files = await openWabFolder(wab);
  const matched = files.map((it) =>
    matchGroup(it, files, detected, { ...(options.dtype && { dtype: options.dtype }) }),
  );
  const [first] = matched as [Imported];
  const engine = await chooseEngine(choice, threads, first.group.problem);
  const compute = { engine: engine.name, threads };
  const activation = given ?? (await findActivation(first, source.files, compute));
  const imported = matched.map((it) => withActivation(it, activation));
  const groups = imported.map(({ group }) => group);
  return fillFactorFolder({
    folder,
    inputs: [source.folder, wab],
    groups,
    context: {
      sourceFingerprint: await fingerprint(source),
      settings: {
        solver: 'reference',
        activation,
        groups: groups[0]?.groups,
        ...(options.dtype && { dtype: options.dtype }),
      },
    },
    circumstances: {},
    plan: planConversion({
      source,
      groups,
      layers: detected.layers,
      format: 'hf',
      shardBytes: Number.POSITIVE_INFINITY,
    }),
    engine: engineRecord(engine),
    async produce(missing, reader, signal, _states, write) {
      const groupBytes = Math.max(...groups.map(sourceBytes));
      const sigmas = await measureGroups(missing, groups, reader, { groupBytes }, run);
      const wanted = imported.filter(({ group }) => missing.includes(group));
      return withWorker(compute, signal, async function* (worker) {
        for (const it of wanted)
          yield* write(await loadFactorization(it, sigmas.get(it.group) as number, reader, worker));
      });
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

/** The group of the model that a file's factors belong to. A file without a group number has all of a layer's experts. */
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
  const plans = planGroups(
    model,
    resolveSettings({
      ...options,
      format: 'hf',
      bases: m * groups,
      groups,
      rank: r,
      layers: [layer],
      projections: [projection],
    }),
  );
  const group = plans.find((it) => it.group === (number ?? 0));
  if (!group || siblings.length !== groups)
    throw new ForeignFactorsError(
      path,
      `of the ${groups} groups of layer ${layer} ${projection} there are ${siblings.length}`,
    );
  const { experts, rows, cols } = group.problem;
  if (n !== experts || p !== rows || d !== cols) {
    throw new ForeignFactorsError(
      path,
      `it is for ${n} experts of ${p} × ${d}; ${groupLabel(group)} of the model has ${experts} of ${rows} × ${cols}`,
    );
  }
  return { path, file, group };
}

const withActivation = ({ group, ...rest }: Imported, activation: Activation): Imported => ({
  ...rest,
  group: { ...group, problem: { ...group.problem, activation } },
});

/** The one with which a file is nearest to its first expert. */
async function findActivation(
  first: Imported,
  reader: Files,
  options: ConstructorParameters<typeof ComputeWorker>[0],
): Promise<Activation> {
  const worker = new ComputeWorker(options);
  try {
    const sigmas = await measureGroups(
      [first.group],
      [first.group],
      reader,
      { groupBytes: sourceBytes(first.group) },
      {},
    );
    const sigma = sigmas.get(first.group) as number;
    const errors: number[] = [];
    for (const activation of REFERENCE_ACTIVATIONS) {
      const factorization = await loadFactorization(withActivation(first, activation), sigma, reader, worker);
      errors.push((await factorization.expert(0)).squaredError);
    }
    return REFERENCE_ACTIVATIONS[errors.indexOf(Math.min(...errors))] as Activation;
  } finally {
    await worker.close();
    await reader.close();
  }
}

async function loadFactorization(
  { file, group }: Imported,
  measured: number,
  reader: RangeReader,
  worker: ComputeWorker,
): Promise<Factorization> {
  const { problem, dtype, format } = group;
  // The reference keeps the weights, and so their standard deviation, in fp16 while it fits.
  const sigma = roundToHalf(Float32Array.of(measured))[0] as number;
  const stored = file.A.dtype as FloatDtype; // openWabFile has checked it, of all three
  const label = groupLabel(group);
  const bases = encodeFinite(dtype, await readFloats(file.B, stored, reader), `bases of ${label}`);
  const logits = await readFloats(file.logits, stored, reader);
  const coefficients = encodeFinite(dtype, softmaxRows(logits, problem.bases), `coefficients of ${label}`);
  await worker.call('load', [{ problem, transposed: format.transposed, dtype, bases, coefficients }]);
  const size = (file.A.end - file.A.start) / problem.experts;
  return {
    group,
    sigma,
    bases,
    coefficients,
    steps: 0,
    seconds: 0,
    async expert(expert) {
      const start = file.A.start + expert * size;
      const A = await readFloats({ file: file.A.file, start, end: start + size }, stored, reader);
      const scaled = A.map((value) => value * sigma);
      const data = encodeFinite(dtype, scaled, `${label}, expert ${expert}`);
      const matrix = group.experts[expert] as StoredMatrix;
      const dense = { format, bytes: await readMatrix(reader, matrix) };
      return { data, ...(await worker.call('compare', [expert, data, dense])) };
    },
    release() {},
  };
}

const readFloats = async (range: ByteRange, dtype: FloatDtype, reader: RangeReader): Promise<Float32Array> =>
  floatsOf(dtype, await reader.readRange(range));

/** In f64, row by row, in place. */
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
