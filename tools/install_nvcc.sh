#!/usr/bin/env bash
# A CUDA compiler for a machine without a toolkit: nvcc and what it needs, from Python packages.
#   PATH="$(tools/install_nvcc.sh FOLDER):$PATH"
# Installs into FOLDER (270 MB) and prints the folder of nvcc. No GPU and no driver are needed.
set -euo pipefail
folder=$1
version='13.0.*'
toolkit="$folder/nvidia/cu13"
if [ ! -x "$toolkit/bin/nvcc" ]; then
  "${PYTHON:-python3}" -m pip install --quiet --target "$folder" \
    "nvidia-cuda-nvcc==$version" "nvidia-cuda-crt==$version" "nvidia-nvvm==$version" \
    "nvidia-cuda-runtime==$version" "nvidia-cuda-cccl==$version" >&2
  ln -sfn lib "$toolkit/lib64"  # where nvcc looks for the CUDA runtime
fi
cd "$toolkit/bin" && pwd
