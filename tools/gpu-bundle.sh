#!/usr/bin/env bash
# Collects what a GPU host without Rust needs into a new folder: `bash tools/gpu-bundle.sh DIR`, copy it there, and run
# `bash DIR/run.sh`, which says how. Built for this machine's glibc, or a newer one. A PyTorch program that times the same
# training steps may be named too; run.sh then runs it in the same minutes, with LENGTHS naming the histogram of lengths.
set -euo pipefail
[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: bash tools/gpu-bundle.sh DIR [PEER.py]" >&2; exit 2; }
peer=${2:+$(realpath "$2")}
limit_mb=60
mkdir -p "$1"
dir=$(cd "$1" && pwd)
[ -z "$(ls -A "$dir")" ] || { echo "$dir is not empty" >&2; exit 2; }
cd "$(dirname "$0")/.."

# A bundle without kernels would test nothing.
export BERT_CUDA=required
messages=$(cargo test --release --locked --no-run --message-format=json-render-diagnostics \
  -p kernels -p launcher --test cuda --bench gpu_ops)
mkdir -p "$dir/bin" "$dir/golden"
for name in cuda gpu_ops launcher; do
  program=$(sed -nE "s|.*\"target\":\{[^}]*\"name\":\"$name\"[^}]*\}.*\"executable\":\"([^\"]+)\".*|\1|p" <<<"$messages")
  [ "$(wc -l <<<"$program")" -eq 1 ] && [ -x "$program" ] || { echo "cargo built no $name: '$program'" >&2; exit 1; }
  strip -o "$dir/bin/$name" "$program"
done
# Three programs with the same kernels inside; run.sh unpacks them.
tar -C "$dir" -czf "$dir/bin.tar.gz" bin
rm -r "$dir/bin"
# What run.sh needs, where the configurations look for it. (The tests of tests/ are not here: they need the repository, and
# their GPU is the emulated one.)
cp tests/golden/*.safetensors "$dir/golden/"
mkdir -p "$dir/configs"
cp configs/quickstart.toml configs/bert-large.toml "$dir/configs/"
cp -r data "$dir/data"
cp engine/src/plan/length_histogram.json "$dir/lengths.json"
[ -z "$peer" ] || cp "$peer" "$dir/peer.py"
cp tools/gpu-run.sh "$dir/run.sh"
{ git describe --always --dirty 2>/dev/null || echo "no git"; rustc --version; uname -srm; } >"$dir/built.txt"
megabytes=$(du -sm "$dir" | cut -f1)
echo "$dir: $megabytes MB"
[ "$megabytes" -le "$limit_mb" ] || { echo "more than $limit_mb MB" >&2; exit 1; }
