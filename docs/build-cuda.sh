#!/bin/sh
# Builds lowrank with the feature `cuda`, on a machine with or without a GPU, with nothing but
# PyPI's wheels of CUDA. docs/cuda.md explains what it does and why.
#
#   docs/build-cuda.sh [TOOLKIT [CARGO ARGUMENTS…]]
#
# TOOLKIT is the folder that the toolkit is installed in (1.2 GB; kept for the next build), by
# default target/cuda-toolkit. CUDA_COMPUTE_CAP is the GPU's generation, by default 90 (H100, H200);
# 80 is A100, 86 and 89 are GeForce 30 and 40, 100 and 120 are Blackwell.
set -eu
cd "$(dirname "$0")/.."
toolkit=${1:-target/cuda-toolkit}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- build --release -p lowrank

if ! ls "$toolkit"/lib/python3.*/site-packages/nvidia/cu13/bin/nvcc >/dev/null 2>&1; then
    python3 -m venv "$toolkit"
    "$toolkit/bin/pip" install --quiet \
        "cuda-toolkit[nvcc,cccl,cudart,curand,cublas,crt,nvvm,nvrtc]==13.0.*"
fi
root=$(cd "$toolkit"/lib/python3.*/site-packages/nvidia/cu13 && pwd)
[ -e "$root/lib64" ] || ln -s lib "$root/lib64"

# The linker finds these in the place of the libraries: they hold nothing, so that the program isn't
# tied to any library of CUDA and starts where there is none; it loads them when a GPU is asked for.
# The runtime's static part is made for that.
links=$(cd "$toolkit" && pwd)/links
mkdir -p "$links"
for name in cuda nvrtc curand cublas cublasLt; do
    echo "/* loaded at run time */" >"$links/lib$name.so"
done
echo "INPUT($root/lib/libcudart_static.a)" >"$links/libcudart.so"

export CUDA_HOME="$root" CUDA_PATH="$root" CUDA_ROOT="$root" CUDA_TOOLKIT_ROOT_DIR="$root"
export PATH="$root/bin:$PATH" CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
# Functions that nothing defines are looked for when they are first called.
unresolved="-C link-arg=-Wl,--unresolved-symbols=ignore-all -C link-arg=-Wl,-z,lazy"
export RUSTFLAGS="-L native=$links -C relro-level=partial $unresolved ${RUSTFLAGS:-}"
cargo "$@" --features cuda
echo "built; at run time LD_LIBRARY_PATH must name $root/lib" >&2
