#!/usr/bin/env bash
# On a GPU host, from the folder that tools/gpu-bundle.sh made: everything that needs a GPU, what matters most first.
#
#   bash run.sh                            all steps, in ./results: summary.md (what passed), tables.md (speeds), log.txt (the rest)
#   OUT=DIR bash run.sh                    in another folder
#   ONLY="verify tests" bash run.sh        some parts: doctor verify tests benches speed peer bits ranks quickstart sanitizers
#   FILTER="layernorm rows" bash run.sh    tests, also under sanitizers, whose names contain one of these
#   TOOLS="memcheck synccheck" ...         sanitizers: memcheck racecheck initcheck synccheck
#   LIMIT=570 bash run.sh                  all in as many seconds: the step that is under way then is cut, later ones are not begun
#   TRAIN="--set KEY=VALUE" ...            more arguments for each training
#   PEER="ceil tuned" ...                  arguments of peer.py, where the bundle has one
#   TINY=1 bash run.sh                     sizes for an emulated GPU, to try this script
#
# Every step has a limit of its own, and the results are complete up to wherever this ends. What the host lacks (PyTorch,
# compute-sanitizer, or leave for it to run) is skipped and says so. Exits with 1 if a step failed, was cut or was not begun.
set -uo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
here=$(dirname "$self")
export TINY=${TINY:-} TRAIN=${TRAIN:-} PEER=${PEER:-ceil attn tuned} FILTER=${FILTER:-} RUST_BACKTRACE=1 REQUIRE_GPU=1
[ -z "$TINY" ] || export BENCH_TINY=1
# Bytes of a step's output that are kept.
most_output=1400000
skip=77

describe() {
  echo "bundle: $(tr '\n' ' ' <"$here/built.txt")"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null ||
    echo "no nvidia-smi"
}

tests() {
  # shellcheck disable=SC2086
  bin/cuda $FILTER
}

verify() {
  bin/launcher verify golden/*.safetensors --device cuda --precision "$1"
}

# One tool over the op tests, one after another. Hosts whose kernel does not let the tool in refuse every program.
sanitizer() {
  local run=(compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20) probe=poison_stays code
  PATH=$PATH:/usr/local/cuda/bin
  command -v compute-sanitizer || { echo "this host has no compute-sanitizer" && return $skip; }
  bin/cuda "$probe" || return 1
  "${run[@]}" bin/cuda "$probe"
  code=$?
  [ $code -eq 0 ] || [ $code -eq 9 ] || { echo "this host lets no compute-sanitizer run (exit code $code)" && return $skip; }
  # shellcheck disable=SC2086
  "${run[@]}" bin/cuda --test-threads 1 $FILTER
}

# A PyTorch program that prints its own figures.
peer() {
  [ -e peer.py ] || { echo "the bundle has no peer.py" && return $skip; }
  python3 -c 'import torch; assert torch.cuda.is_available()' || { echo "python3 has no PyTorch that sees a GPU" && return $skip; }
  # shellcheck disable=SC2086
  LENGTHS=lengths.json python3 peer.py $PEER
}

# train RUN ARGUMENTS...: the quickstart's model and text.
train() {
  local run=$work/$1 more
  read -ra more <<<"$TRAIN"
  shift
  echo "== $run: $*"
  [ -z "$TINY" ] || more+=(--set model.layers=1 --set model.hidden=64 --set model.heads=1 --set model.intermediate=128
    --set train.steps=8 --set train.batch_sequences=4 --set train.eval_every=16)
  bin/launcher --config configs/quickstart.toml --run "$run" --set data.dir="$work/data" "${more[@]}" "$@"
}

# What must change no bit of the weights changes none.
bits() {
  local steps=40 half=20 run status=0
  [ -z "$TINY" ] || { steps=4 && half=2; }
  short() { train "bits-$1" --device cuda --set train.steps=$steps --set train.checkpoint_every=$half "${@:2}"; }
  short plain && short again && short graph --set train.graph=true && short recompute --set train.recompute=layer &&
    short resumed || return 1
  # as if it had ended half-way
  rm -r "$work/bits-resumed/checkpoints/step-$(printf %08d "$steps")" "$work/bits-resumed/model" || return 1
  short resumed --resume || return 1
  for run in again graph recompute resumed; do
    if cmp "$work/bits-plain/model/model.safetensors" "$work/bits-$run/model/model.safetensors"; then
      echo "$run: the same bits"
    else
      echo "$run: OTHER bits"
      status=1
    fi
  done
  return $status
}

# Two ranks compute what one does, with NCCL between them: on two GPUs, or on one where NCCL (2.30 or newer) takes that.
ranks() {
  local status=0
  has_nccl || return $skip
  bin/cuda nccl:: || return 1
  short() {
    train "ranks-$1" --set train.precision=f32 --set train.steps=10 --set train.log_every=1 --set train.eval_every=1000 "${@:2}"
  }
  short one --gpus 1 && short two --gpus 2 && short whole --gpus 2 --set ranks.shard_optimizer=false || return 1
  join <(curve "$work/ranks-one/metrics.jsonl" | sort -k 1b,1) <(curve "$work/ranks-two/metrics.jsonl" | sort -k 1b,1) |
    band "loss of two ranks" 0.00001 || status=1
  if cmp "$work/ranks-two/model/model.safetensors" "$work/ranks-whole/model/model.safetensors"; then
    echo "sharded and whole: the same bits"
  else
    echo "sharded and whole: OTHER bits"
    status=1
  fi
  return $status
}

ranks_speed() {
  has_nccl || return $skip
  speed --batch 16 --gpus 2 --profile
}

has_nccl() {
  export NCCL_MULTI_RANK_GPU_ENABLE=1
  bin/launcher doctor | grep -E '^NCCL +[0-9]' || { echo "this host has no NCCL" && return 1; }
}

# curve FILE: step and loss of each record of training.
curve() {
  sed -nE 's/^\{"step":([0-9]+),"loss":([0-9.eE+-]+),.*/\1 \2/p' "$1"
}

# evaluations FILE: step and loss of each evaluation.
evaluations() {
  sed -nE 's/^\{"step":([0-9]+),.*"eval_mlm_loss":([0-9.eE+-]+),.*/\1 \2/p' "$1"
}

# band NAME MOST: of two curves, on standard input as `step loss loss`; their mean distance is at most MOST.
band() {
  awk -v name="$1" -v most="$2" '
    { d = $2 - $3; total += d < 0 ? -d : d; n++ }
    END {
      if (n == 0) { print name ": nothing to compare"; exit 1 }
      printf "%s: mean distance %.4f over %d records, at most %s\n", name, total / n, n, most
      exit !(total / n <= most)
    }'
}

# The CPU's run is the reference: the same seed draws the same batches and masks, so the curves differ by rounding alone,
# which grows over a thousand steps.
quickstart() {
  local device status=0 cpu=$work/quickstart-cpu/metrics.jsonl cuda=$work/quickstart-cuda/metrics.jsonl
  for device in cpu cuda; do
    train "quickstart-$device" --device "$device" --set train.log_every="$([ -z "$TINY" ] && echo 10 || echo 1)" || return 1
  done
  join <(curve "$cpu" | sort -k 1b,1) <(curve "$cuda" | sort -k 1b,1) | band "loss" 0.05 || status=1
  join <(evaluations "$cpu" | sort -k 1b,1) <(evaluations "$cuda" | sort -k 1b,1) | band "held-out MLM loss" 0.05 || status=1
  return $status
}

# Whole training steps of BERT-large.
speed() {
  local tiny=()
  [ -z "$TINY" ] || tiny=(--set model.layers=2 --set model.hidden=64 --set model.heads=1 --set model.intermediate=128
    --set model.vocab_size=300 --batch 2 --steps 2 --ceiling 64)
  # a later --batch would be refused
  [ -z "$TINY" ] || set -- "${@:3}"
  bin/launcher bench --config configs/bert-large.toml --device cuda "$@" "${tiny[@]}"
}

# Each step runs in a process of its own, which a limit can end: run.sh --step FUNCTION ARGUMENTS...
if [ "${1:-}" = --step ]; then
  cd "$here" || exit 1
  "${@:2}"
  exit
fi

out=${OUT:-$here/results}
only=${ONLY:-doctor verify tests benches speed peer bits ranks quickstart sanitizers}
limit=${LIMIT:-1000000}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
[ -z "$(ls -A "$out")" ] || { echo "$out is not empty: name another folder by OUT=" >&2; exit 2; }
# Runs, data and caches stay out of the results.
work=$(mktemp -d) || exit 1
export work XDG_CACHE_HOME=$work/caches CARGO_TARGET_DIR=$work/target
cd "$here" || exit 1
[ -d bin ] || tar -xzf bin.tar.gz || exit 1
summary=$out/summary.md tables=$out/tables.md log=$out/log.txt
failed=0

row() {
  printf '| %s | %s | %s | %s |\n' "$@" >>"$summary"
  printf '%-20s %-9s %5s s  %s\n' "$@"
  case $2 in passed | skipped) ;; *) failed=1 ;; esac
}

# last FILE: the last line that has something to say.
last() {
  grep -avE '^[[:space:]]*$' "$1" | tail -n 1 | tr '|\r' '/ ' | cut -c 1-110
}

# step NAME SECONDS COMMAND...: with its output in $work/NAME.txt and the log.
step() {
  local name=$1 most=$2 begin=$SECONDS left=$((limit - SECONDS)) code result
  shift 2
  # an emulated GPU is slow at any size
  [ -z "$TINY" ] || most=$((5 * most))
  if [ $left -lt 10 ]; then
    row "$name" "not begun" 0 "LIMIT=$limit was over"
    return
  fi
  [ "$most" -lt $((left - 5)) ] || most=$((left - 5))
  printf '\n===== %s, at most %s s: %s\n' "$name" "$most" "$*" >>"$log"
  timeout -k 5 "$most" bash "$self" --step "$@" 2>&1 </dev/null |
    { stdbuf -o0 head -c $most_output; cat >/dev/null; } | tee -a "$log" >"$work/$name.txt"
  code=${PIPESTATUS[0]}
  case $code in
    0) result=passed ;;
    "$skip") result=skipped ;;
    124 | 137) result=CUT ;;
    *) result=FAILED ;;
  esac
  row "$name" "$result" $((SECONDS - begin)) "$(last "$work/$name.txt")"
}

# table NAME: what the step printed is a table of speeds.
table() {
  [ ! -e "$work/$1.txt" ] || { printf '\n## %s\n\n' "$1" && sed 's/^/    /' "$work/$1.txt"; } >>"$tables"
}

ends() {
  rm -rf "$work"
}
interrupted() {
  row "run.sh" "CUT" "$SECONDS" "interrupted"
  exit 1
}
trap ends EXIT
trap interrupted INT TERM

part() {
  case $1 in
    doctor) step doctor 60 bin/launcher doctor ;;
    verify)
      step verify-f32 120 verify f32
      step verify-bf16 120 verify bf16
      ;;
    tests) step op-tests 300 tests ;;
    benches)
      step benches 300 bin/gpu_ops --bench
      [ -e "$work/benches.txt" ] || return
      ! grep -q '^no GPU:' "$work/benches.txt" || row benches-table FAILED 0 "$(grep '^no GPU:' "$work/benches.txt")"
      sed -n '/^GPU /,$p' "$work/benches.txt" >>"$tables"
      ;;
    speed)
      step speed-full 120 speed --batch 32 --profile && table speed-full
      step speed-mlperf 120 speed --batch 128 --lengths mlperf --profile && table speed-mlperf
      step speed-graph 90 speed --batch 32 --set train.graph=true && table speed-graph
      ;;
    peer) step peer 420 peer && table peer ;;
    bits) step bits 240 bits ;;
    ranks)
      step ranks 240 ranks
      step ranks-speed 120 ranks_speed && table ranks-speed
      ;;
    quickstart) step quickstart 420 quickstart ;;
    sanitizers) for tool in ${TOOLS:-memcheck racecheck initcheck synccheck}; do step "sanitizer-$tool" 420 sanitizer "$tool"; done ;;
    *)
      row "$1" FAILED 0 "no such part"
      ;;
  esac
}

{ echo "# $(date -u '+%Y-%m-%d %H:%M UTC'), $(hostname)" && describe | sed 's/^/    /' && echo; } | tee "$summary" >"$tables"
describe
printf '| step | result | seconds | last line |\n| --- | --- | ---: | --- |\n' >>"$summary"
for name in $only; do part "$name"; done
echo "summary: $summary"
exit $failed
