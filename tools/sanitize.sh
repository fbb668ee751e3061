#!/usr/bin/env bash
# Builds the CPU library with AddressSanitizer and UndefinedBehaviorSanitizer into build/sanitize and
# runs tests of the operators on it. Arguments go to pytest; PYTHON is an environment with perfconv's
# test packages; TESTS are the files to run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
PYTHON=${PYTHON:-python3}
TESTS=${TESTS:-tests/ops}

PERFCONV_CUDA=0 PERFCONV_BUILD_DIR=build/sanitize/cmake \
  CMAKE_ARGS="-DPERFCONV_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O1" \
  "$PYTHON" setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib

mkdir -p build/outside && cd build/outside
# Python itself is not instrumented: its own leaks would drown ours.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$root/build/sanitize/lib
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
"$PYTHON" -c "import perfconv; assert 'sanitize' in perfconv.__file__, perfconv.__file__"
for isa in portable avx2 avx512 avx512_bf16; do  # one that the processor lacks falls back
  echo "self-test, PERFCONV_ISA=$isa"
  PERFCONV_ISA=$isa "$PYTHON" -c "import sys; from perfconv.cli import main; sys.exit(main(['check']))" |
    grep -E "FAIL|^OK|CPU kernels"
done
for tests in $TESTS; do set -- "$@" "$root/$tests"; done
# Tests that start a compiler or other processes would run those under the sanitizer as well; the
# instruction sets had their turn above.
exec "$PYTHON" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider \
  -m "not slow" --deselect tests/ops/test_isa.py \
  -k "not compile and not export and not inductor and not ddp" "$@"
