#!/usr/bin/env bash
# On a GPU host, from the folder that tools/gpu-bundle.sh made: everything that needs a GPU, then a table of what passed.
#
#   bash run.sh                       all steps; logs, bench tables and the summary go to ./results
#   OUT=DIR bash run.sh               to another folder
#   ONLY="tests benches" bash run.sh  some parts: doctor tests verify bits sanitizers quickstart benches speed
#   TRAIN="--set KEY=VALUE" bash ...  more arguments for each training, to try this script at small sizes
#
# Exits with 1 if a step failed, or could not be done.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/results}
only=${ONLY:-doctor tests verify bits sanitizers quickstart benches speed}
read -ra more <<<"${TRAIN:-}"
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
[ -z "$(ls -A "$out")" ] || { echo "$out is not empty: name another folder by OUT=" >&2; exit 2; }
# The quickstart's configuration names files from here.
cd "$here" || exit 1
[ -d bin ] || tar -xzf bin.tar.gz || exit 1
export RUST_BACKTRACE=1 REQUIRE_GPU=1

summary=$out/summary.md
failed=0
row() {
  printf '| %s | %s | %s | %s |\n' "$@" >>"$summary"
  printf '%-28s %-7s %5s s  %s\n' "$@"
  [ "$2" = passed ] || failed=1
}

# step NAME COMMAND...: runs it with its output in NAME.txt; the note is the output's last line that has something to say.
step() {
  local name=$1 begin=$SECONDS result=passed note
  shift
  "$@" >"$out/$name.txt" 2>&1 </dev/null || result=FAILED
  note=$(grep -vE '^[[:space:]]*$' "$out/$name.txt" | tail -n 1 | tr '|\r' '/ ' | cut -c 1-100)
  row "$name" "$result" $((SECONDS - begin)) "$note"
}

wanted() {
  case " $only " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

describe() {
  echo "bundle: $(tr '\n' ' ' <"$here/built.txt")"
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null ||
    echo "no nvidia-smi"
}

# Every tool runs every op test, one after another.
sanitizer() {
  timeout 3600 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 bin/cuda --test-threads 1
}

# train RUN ARGUMENTS...: the quickstart's model and text.
train() {
  local run=$out/$1
  shift
  echo "== $run: $*"
  bin/launcher --config configs/quickstart.toml --run "$run" --set data.dir="$out/data" "${more[@]}" "$@"
}

# What must change no bit of the weights changes none.
bits() {
  local steps=40 half=20 run status=0
  short() { train "bits-$1" --device cuda --set train.steps=$steps --set train.checkpoint_every=$half "${@:2}"; }
  short plain && short again && short graph --set train.graph=true && short recompute --set train.recompute=layer &&
    short resumed || return 1
  # as if it had ended half-way
  rm -r "$out/bits-resumed/checkpoints/step-$(printf %08d "$steps")" "$out/bits-resumed/model" || return 1
  short resumed --resume || return 1
  for run in again graph recompute resumed; do
    if cmp "$out/bits-plain/model/model.safetensors" "$out/bits-$run/model/model.safetensors"; then
      echo "$run: the same bits"
    else
      echo "$run: OTHER bits"
      status=1
    fi
  done
  return $status
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
  local device status=0
  for device in cpu cuda; do
    train "quickstart-$device" --device "$device" || return 1
  done
  join <(curve "$out/quickstart-cpu/metrics.jsonl" | sort -k 1b,1) <(curve "$out/quickstart-cuda/metrics.jsonl" | sort -k 1b,1) |
    band "loss" 0.05 || status=1
  join <(evaluations "$out/quickstart-cpu/metrics.jsonl" | sort -k 1b,1) \
    <(evaluations "$out/quickstart-cuda/metrics.jsonl" | sort -k 1b,1) | band "held-out MLM loss" 0.05 || status=1
  return $status
}

# Whole training steps of BERT-large.
speed() {
  bin/launcher bench --config configs/bert-large.toml --device cuda "$@"
}

{ echo "# $(date -u '+%Y-%m-%d %H:%M UTC'), $(hostname)" && describe | sed 's/^/    /' && echo; } >"$summary"
describe
printf '| step | result | seconds | last line |\n| --- | --- | ---: | --- |\n' >>"$summary"
wanted doctor && step doctor bin/launcher doctor --kernels
wanted tests && step op-tests bin/cuda
if wanted verify; then
  step verify-f32 bin/launcher verify golden/*.safetensors --device cuda --precision f32
  step verify-bf16 bin/launcher verify golden/*.safetensors --device cuda --precision bf16
fi
wanted bits && step bits bits
if wanted sanitizers; then
  PATH=$PATH:/usr/local/cuda/bin
  for tool in memcheck racecheck initcheck synccheck; do step "sanitizer-$tool" sanitizer "$tool"; done
fi
wanted quickstart && step quickstart quickstart
if wanted benches; then
  step benches bin/gpu_ops --bench
  grep -q '^no GPU:' "$out/benches.txt" && row benches-table FAILED 0 "$(grep '^no GPU:' "$out/benches.txt")"
  { echo && sed -n '/^GPU /,$p' "$out/benches.txt"; } >"$out/benches.md"
fi
if wanted speed; then
  step speed-full speed --batch 32 --profile
  step speed-mlperf speed --batch 128 --lengths mlperf --profile
fi
[ ! -e "$out/benches.md" ] || cat "$out/benches.md" >>"$summary"
for name in speed-full speed-mlperf; do
  [ ! -e "$out/$name.txt" ] || { echo && sed 's/^/    /' "$out/$name.txt"; } >>"$summary"
done
echo "summary: $summary"
exit $failed
