#!/usr/bin/env bash
# Everything that needs a GPU, without a network, in under nine minutes:
#   tools/gpu_check.sh [--again] [--dry-run]
# Builds for the GPU of this machine; runs the CUDA tests, compute-sanitizer on a small set of them,
# the conformance of each PTX wrapper with the emulator, CUDA graphs, and the benchmark. Writes one
# results file: device, driver, versions, commit, every measurement, and how each step ended.
#
# Needs torch 2.11 or newer with CUDA, nvcc, CMake, pytest, pytest-benchmark, hypothesis in the
# environment of PYTHON (python3). A step that passed is not repeated by the next call on the same
# commit and device; --again begins anew. --dry-run goes through the steps on a machine without a GPU:
# tests are collected, not run, and the benchmark runs small problems on the CPU.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
folder=${GPU_CHECK_FOLDER:-$root/build/gpu-check}
mode=gpu
for argument in "$@"; do
  case $argument in
    --again) rm -rf "$folder" ;;
    --dry-run) mode=dry ;;
    *) echo "usage: tools/gpu_check.sh [--again] [--dry-run]" >&2 && exit 2 ;;
  esac
done
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PERFCONV_CUDA=1 PYTHONDONTWRITEBYTECODE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # the tests run in torch's deterministic mode
outside=$root/build/outside # no perfconv in it
mkdir -p "$folder" "$outside"

# ---- the machine ---------------------------------------------------------------------------------

torch_sees() { # the name of the GPU; a message and failure without one
  "$python" - << 'PYTHON'
import sys
try:
    import torch
except ImportError:
    sys.exit("this Python has no torch; set PYTHON to one that has")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU")
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
    sys.exit(f"torch {torch.__version__} is older than 2.11")
print(torch.cuda.get_device_name().replace(" ", "-"))
PYTHON
}

if [ $mode = dry ]; then
  device=none
elif ! device=$(torch_sees 2>&1); then
  echo "gpu_check: ${device##*$'\n'}. This script needs a GPU; --dry-run shows its steps." >&2
  exit 3
fi
commit=$(git -C "$root" describe --always --dirty 2> /dev/null || echo unknown)
state=$folder/state
if [ "$(head -n 1 "$state" 2> /dev/null)" != "$commit $device $mode" ]; then
  rm -rf "${folder:?}"/*
  echo "$commit $device $mode" > "$state"
fi
results=$folder/results.jsonl

# ---- steps ---------------------------------------------------------------------------------------

# step NAME SECONDS COMMAND...: runs it once; "NAME passed|failed|skipped SECONDS" goes to the state.
step() {
  local name=$1 limit=$2 status=passed
  shift 2
  if grep -q "^$name \(passed\|skipped\)" "$state"; then
    echo "===== $name: done before"
    return
  fi
  sed -i "/^$name /d" "$state"
  echo "===== $name (at most $limit s): $*"
  local begin=$SECONDS
  if [[ $1 == skip:* ]]; then
    status=skipped
  else
    timeout "$limit" "$@" 2>&1 | tee "$folder/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || status=failed
  fi
  echo "$name $status $((SECONDS - begin))" >> "$state"
  echo "===== $name: $status after $((SECONDS - begin)) s"
}

pytest=("$python" -m pytest -q -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider)
if [ $mode = dry ]; then
  pytest+=(--collect-only)
else
  export PERFCONV_REQUIRE_CUDA=1
fi
tests=$root/tests/cuda
# One case of every kind of kernel, ragged sizes, no float64.
small=(-m cuda -k "(plain or empty or groups or 2047) and not float64 and not graphs and not errors")

sanitizer() { # NAME: a tool of compute-sanitizer over the small set, or the reason why not
  if [ $mode = dry ]; then
    step "$1" 45 "${pytest[@]}" "$tests" "${small[@]}"
    return
  fi
  if ! command -v compute-sanitizer > /dev/null; then
    step "$1" 0 skip:no-compute-sanitizer
    return
  fi
  local filter=() help
  help=$(compute-sanitizer --help)
  for option in --kernel-regex --kernel-name; do
    # Our kernels, not torch's; but what torch's wrote, initcheck must have seen.
    if [ ${#filter[@]} = 0 ] && [ "$1" != initcheck ] && [[ $help == *"$option "* ]]; then
      filter=("$option" kns=perfconv)
    fi
  done
  # Without torch's cache every tensor is an allocation whose ends the tool knows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$1" 45 compute-sanitizer --tool "$1" "${filter[@]}" \
    --error-exitcode 99 "${pytest[@]}" "$tests" "${small[@]}"
}

cd "$root" || exit 1
if [ $mode = dry ]; then
  step build 10 echo "python setup.py build_ext --inplace, for the visible GPU"
else
  step build 90 "$python" setup.py --quiet build_ext --inplace
fi
if ! grep -q "^build passed" "$state"; then
  echo "gpu_check: the build failed; the other steps need it" >&2
  exit 1
fi
cd "$outside" || exit 1
step tests 100 "${pytest[@]}" --maxfail 20 "$tests" -m cuda --ignore "$tests/test_graphs.py"
step graphs 35 "${pytest[@]}" "$tests/test_graphs.py" -m cuda
sanitizer memcheck
sanitizer racecheck
sanitizer initcheck
if [ -f "$root/tests/emulator/test_conformance.py" ]; then
  # What the GPU gives is kept in tests/emulator/golden, for the emulator to be compared with.
  PERFCONV_WRITE_GOLDEN=1 step conformance 30 "${pytest[@]}" \
    "$root/tests/emulator/test_conformance.py" -m cuda
fi
benchmark=(env -u CUBLAS_WORKSPACE_CONFIG "$python" "$root/benchmarks/bench_cuda.py" --no-compile --output "$results")
if [ $mode = dry ]; then
  step benchmark 100 "${benchmark[@]}" --dry-run --filter c64-64-1x30x40-k3-dil1-bfloat16-random0.25
else
  step benchmark 100 "${benchmark[@]}"
fi
# What only compute capability 9.0 has, once more without it, each against dense in its own run.
without() { # NAME VARIABLE=VALUE
  local forward=(env -u CUBLAS_WORKSPACE_CONFIG "$2" "$python" -m perfconv bench conv
    --device cuda --no-compile --no-peers --modes forward --output "$folder/$1.jsonl")
  if [ $mode = dry ]; then
    step "$1" 15 "${forward[@]}" --dry-run --filter c64-64-1x30x40-k3-dil1-bfloat16-random0.25
  elif "$python" -c 'import sys, torch; sys.exit(torch.cuda.get_device_capability() != (9, 0))'; then
    step "$1" 15 "${forward[@]}" --filter bfloat16-random0.5
  else
    step "$1" 0 skip:no-compute-capability-9.0
  fi
}
without older-tiles PERFCONV_CUDA_CAPABILITY=80 # wgmma
without no-packs PERFCONV_CUDA_PACK=0           # bulk copies of packed weights
# Layers of few tiles, in a graph and backwards: their parts added in clusters, then in the workspace.
few_tiles() { # NAME VARIABLE=VALUE
  local passes=(env -u CUBLAS_WORKSPACE_CONFIG "$2" "$python" -m perfconv bench conv --quick
    --device cuda --no-peers --modes graph dgrad --dtype bfloat16 --channels 256 --size 30x40
    --density 0.1 0.5 --filter c256-256-1x --pairs 31 --output "$folder/$1.jsonl")
  if [ $mode = dry ]; then
    step "$1" 10 "${passes[@]}" --dry-run --channels 64 --filter c64-64-1x --pairs 2
  elif "$python" -c 'import sys, torch; sys.exit(torch.cuda.get_device_capability() != (9, 0))'; then
    step "$1" 10 "${passes[@]}"
  else
    step "$1" 0 skip:no-compute-capability-9.0
  fi
}
few_tiles few-tiles PERFCONV_CUDA_CLUSTER=1
few_tiles no-clusters PERFCONV_CUDA_CLUSTER=0

# ---- the results file ----------------------------------------------------------------------------

sed -i '/^{"step":/d' "$results" 2> /dev/null
tail -n +2 "$state" | while read -r name status seconds; do
  printf '{"step": "%s", "status": "%s", "seconds": %d}\n' "$name" "$status" "$seconds"
done >> "$results"
echo "===== $results:"
grep '^{"step":' "$results"
if grep -q " failed " "$state"; then
  echo "gpu_check: FAILED; the logs are in $folder"
  exit 1
fi
if [ $mode = gpu ]; then
  kept=$root/benchmarks/results/$(date +%F)-${device,,}.jsonl
  cp "$results" "$kept"
  for name in older-tiles no-packs few-tiles no-clusters; do
    [ ! -f "$folder/$name.jsonl" ] || cp "$folder/$name.jsonl" "${kept%.jsonl}-$name.jsonl"
  done
  echo "gpu_check: passed; commit $kept and what is beside it"
fi
