#!/usr/bin/env bash
# Time to train on the CPU: launcher against PyTorch, from the same weights, on the same batches, to the same accuracy.
#   benches/race.sh [SEED...]       (default: 1 2 3; from the root of the repository, after cargo build --release)
# Settings: PYTHON (default .venv/bin/python, from tools/peer_setup.sh), THREADS (2), DIR (runs/race), SVG (a plot in DIR).
# What DIR has already is not run again. Prints the table of benches/results/race_cpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python} threads=${THREADS:-2} dir=${DIR:-runs/race}
launcher=target/release/launcher race=benches/peers/race.py
[ $# -gt 0 ] || set -- 1 2 3
steps=$(sed -n 's/^steps = //p' configs/race.toml)
mkdir -p "$dir"

ours() {
  "$launcher" --config configs/race.toml --data "$dir/data" --set "train.threads=$threads" "$@" >>"$dir/log.txt" 2>&1
}

# The weights of a seed and its batches. The first step's learning rate is 0, so one step leaves the weights as they began;
# its evaluation and the first thirty losses are what the peers are checked against.
start() {
  local seed=$1 init="$dir/init-$1"
  [ -d "$init/model" ] || ours --seed "$seed" --run "$init" --steps 1
  [ -f "$dir/batches-$seed" ] || "$launcher" inspect "$init" --batches "$steps" --out "$dir/batches-$seed"
  [ -d "$dir/check-$seed/model" ] ||
    ours --seed "$seed" --run "$dir/check-$seed" --steps 30 --set "model.init_from=$init/model" --set train.log_every=1
  "$python" "$race" check --run "$init" --batches "$dir/batches-$seed" --ours "$dir/check-$seed" --threads "$threads"
}

# One race of one side.
side() {
  local name=$1-$2 init="$dir/init-$2"
  [ -f "$dir/$name.timed" ] && return
  rm -rf "${dir:?}/$name"
  echo "$name, load $(cut -d' ' -f1 /proc/loadavg)" >&2
  if [ "$1" = launcher ]; then
    "$python" "$race" timed "$dir/$name.timed" "$launcher" --config configs/race.toml --data "$dir/data" --run "$dir/$name" \
      --seed "$2" --set "model.init_from=$init/model" --set "train.threads=$threads" >>"$dir/log.txt" 2>&1
  else
    "$python" "$race" timed "$dir/$name.timed" "$python" "$race" train --side "$1" --run "$init" \
      --batches "$dir/batches-$2" --out "$dir/$name.jsonl" --threads "$threads" >>"$dir/log.txt" 2>&1
  fi
}

for seed; do start "$seed"; done
for seed; do side launcher "$seed" && side tuned "$seed"; done
for seed; do side plain "$seed"; done
"$python" "$race" report "$dir" --svg "${SVG:-$dir/race.svg}"
