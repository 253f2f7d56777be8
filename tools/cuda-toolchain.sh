#!/usr/bin/env bash
# Puts NVIDIA's compiler into .cuda/ without root, a driver or a GPU: `bash tools/cuda-toolchain.sh`, then build as always.
# The wheels come from PyPI (or the index that pip is set to), about 105 MB; with their tools for looking into binaries 15 MB more.
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0
wheels=()
for part in cuda-nvcc nvvm cuda-crt cuda-runtime cuda-cccl; do wheels+=("nvidia-$part==$version.*"); done
# Of these there is no 13.0.
wheels+=("nvidia-cuda-cuobjdump==13.2.*" "nvidia-cuda-nvdisasm==13.2.*")
target=.cuda

if [ -x "$target/bin/nvcc" ] && "$target/bin/nvcc" --version | grep -q "release $version"; then
  echo "$target holds nvcc $version already"
  exit 0
fi

staging=$(mktemp -d .cuda.XXXXXX.tmp)
trap 'rm -rf "$staging"' EXIT
python=python3
if ! "$python" -m pip --version >/dev/null 2>&1; then
  python3 -m venv "$staging/venv" || { echo "python3 with pip or venv is needed to fetch the compiler" >&2; exit 1; }
  python="$staging/venv/bin/python"
fi
"$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$staging/wheels" "${wheels[@]}"
python3 - "$staging" <<'PYTHON'
import pathlib, sys, zipfile
staging = pathlib.Path(sys.argv[1])
for wheel in sorted((staging / "wheels").glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(staging / "unpacked")
PYTHON
# Every wheel has its part of one tree, nvidia/cu13.
root=$(find "$staging/unpacked/nvidia" -mindepth 1 -maxdepth 1 -type d -name 'cu*')
chmod +x "$root"/bin/* "$root"/nvvm/bin/*
[ -e "$root/lib64" ] || ln -s lib "$root/lib64"
rm -rf "$target"
mv "$root" "$target"
"$target/bin/nvcc" --version | tail -n 2
