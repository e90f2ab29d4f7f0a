#!/usr/bin/env bash
# Builds, tests and measures the kernels on a machine with a CUDA device, in four calls of at most 9 minutes each.
#
#     benchmarks/gpu_suite.sh tests|sanitize|bench ops|bench steps [FOLDER] [--dry-run]
#
# Takes what the machine's Python has: torch built for CUDA, triton, pybind11, pytest; nvcc; no network, nothing is
# installed. Writes to FOLDER/CALL, else to $OUT/CALL, else to gpu-results/CALL: summary.tsv and summary.json (part,
# status, seconds, limit), logs/ and results/<device>/*.json. A part that fails or runs out of time is recorded, and the
# rest goes on. Exit status: 0 where every part did its work or had nothing to do here, else 1.
#
# The build and the kernels that triton compiled stay in $SUITE_WORK for the next call, build/gpu-suite of the
# repository otherwise. --dry-run runs nothing: it says what would run and for how long at most, and fails where that is
# more than the call has.
#
# Environment: PYTHON, the interpreter; SUITE_SECONDS, the time of the call (520); SUITE_PROCESSES, among which tests are
# dealt (12).
set -u

usage() {
  sed -n '3,5p' "$0" | sed 's/^# \{0,1\}//' >&2
  exit 2
}

dry= call= folder=
for argument in "$@"; do
  case $argument in
    --dry-run) dry=1 ;;
    tests | sanitize) [[ -z $call ]] || usage && call=$argument ;;
    bench) [[ -z $call ]] || usage && call=bench ;;
    ops | steps) [[ $call == bench ]] || usage && call=bench-$argument ;;
    -*) usage ;;
    *) [[ -n $call && -z $folder ]] || usage && folder=$argument ;;
  esac
done
[[ $call == tests || $call == sanitize || $call == bench-* ]] || usage

repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
folder=${folder:-${OUT:-gpu-results}}/$call
out=$(mkdir -p "$folder" && cd "$folder" && pwd) || exit 1
store=${SUITE_WORK:-$repository/build/gpu-suite}
store=$(mkdir -p "$store" && cd "$store" && pwd) || exit 1
processes=${SUITE_PROCESSES:-12}
budget=${SUITE_SECONDS:-520}
deadline=$((SECONDS + budget))
planned=0
failed=0
mkdir -p "$out/logs" "$out/results"
printf 'part\tstatus\tseconds\tlimit\n' >"$out/summary.tsv"

record() { # name status seconds limit
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/summary.tsv"
}

# part NAME SECONDS COMMAND...: runs it for at most that long and never past the end of the call; its output goes to
# logs/NAME.log
part() {
  local name=$1 limit=$2 start=$SECONDS left=$((deadline - SECONDS)) status=0
  shift 2
  planned=$((planned + limit))
  if [[ -n $dry ]]; then
    record "$name" planned 0 "$limit"
    return 0
  fi
  if ((left < 10)); then
    record "$name" "no time left" 0 "$limit"
    failed=1
    return 1
  fi
  timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$out/logs/$name.log" 2>&1 || status=$?
  ((status == 124 || status == 137)) && status="out of time"
  [[ $status == 0 ]] || failed=1
  record "$name" "$status" $((SECONDS - start)) "$limit"
  [[ $status == 0 ]]
}

skip() { # name reason
  record "$1" "skipped: $2" 0 0
}

# The summary as JSON and on one screen: every part, and the last lines of the logs of those that failed.
finish() {
  awk -F '\t' -v call="$call" '
    function quoted(text) { gsub(/\\/, "\\\\", text); gsub(/"/, "\\\"", text); return "\"" text "\"" }
    NR == 1 { printf "{\"call\": %s, \"parts\": [", quoted(call); next }
    { printf "%s\n  {\"part\": %s, \"status\": %s, \"seconds\": %s, \"limit\": %s}", (NR > 2 ? "," : ""),
      quoted($1), quoted($2), $3, $4 }
    END { print "\n]}" }' "$out/summary.tsv" >"$out/summary.json"
  awk -F '\t' '{ printf "%-26s %-44s %8s %6s\n", $1, substr($2, 1, 44), $3, $4 }' "$out/summary.tsv"
  awk -F '\t' 'NR > 1 && $2 != "0" && $2 !~ /^(skipped|planned)/ { print $1 }' "$out/summary.tsv" | head -n 4 |
    while read -r name; do
      [[ -s $out/logs/$name.log ]] && echo "-- $name" && tail -n 4 "$out/logs/$name.log" | cut -c1-160
    done
  if [[ -n $dry ]]; then
    echo "at most $planned of $budget seconds"
    ((planned <= budget)) || { echo "the parts of $call take longer than the call has" >&2 && exit 1; }
  fi
  echo "results in $out"
  exit $failed
}

# outside of the repository, whose pgm_fast/ has no compiled kernels and would be found first
cd "$store" || exit 1
export PYTHONPATH="$store/lib" PGM_FAST_RESULTS="$out/results" PYTHONUNBUFFERED=1 TRITON_CACHE_DIR="$store/triton"

capability=
[[ -n $dry ]] || capability=$("$python" -c '
import torch
if torch.cuda.is_available():
    print("%d.%d" % torch.cuda.get_device_capability())
' 2>"$out/logs/device.log") || capability=
[[ -n $capability ]] && export TORCH_CUDA_ARCH_LIST="$capability"
available=${dry:-$capability}

# kernels that were built elsewhere, for an editable installation, are not these
export repository store python
build() {
  local sources
  sources=$(cd "$repository" && find csrc kernels pgm_fast setup.py pyproject.toml -type f -not -name '*.pyc' \
    -not -name '*.so' -exec cksum {} + | sort -k 3 | cksum)
  if [[ -z $dry && $(cat "$store/built" 2>/dev/null) == "$sources $capability" ]]; then
    record build 0 0 150
    return
  fi
  part build 150 bash -c 'cd "$repository" && "$python" setup.py -q egg_info --egg-base "$store" \
    build --build-base "$store/build" --build-lib "$store/lib" && cd "$store" &&
    "$python" -c "import os, pgm_fast as p; assert p.__file__.startswith(os.environ[\"PYTHONPATH\"]), p.__file__"' &&
    [[ -z $dry ]] && printf '%s' "$sources $capability" >"$store/built"
}

# a cache of its own: the repository may be read-only
pytest=("$python" -m pytest -c "$repository/pyproject.toml" --rootdir "$repository" -p no:cacheprovider -q -rs)

build
case $call in
  tests)
    if [[ -z $dry ]] && ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; then
      skip cuda_kernels "torch is not built for CUDA"
    elif [[ -z $dry ]] && ! command -v nvcc >/dev/null; then
      skip cuda_kernels "nvcc is not on the PATH"
    else
      part cuda_kernels 15 "$python" -c 'import pgm_fast._cuda as c; print("built for", c.architectures, c.__file__)'
    fi
    # every process takes every twelfth test, so that each compiles a twelfth of the kernels
    export processes folder_of_logs="$out/logs"
    part tests 310 bash -c '
      status=0 running=()
      for ((i = 0; i < processes; i++)); do
        PGM_FAST_SHARE="$i/$processes" "$@" >"$folder_of_logs/tests-$i.log" 2>&1 &
        running+=($!)
      done
      # 5: no test fell to this process
      for one in "${running[@]}"; do wait "$one" || [[ $? == 5 ]] || status=1; done
      tail -qn 1 "$folder_of_logs"/tests-*.log
      grep -hE "^(FAILED|ERROR)" "$folder_of_logs"/tests-*.log | cut -c1-160
      exit $status' tests "${pytest[@]}" "$repository/tests/gpu"
    # last: it tells which kernels could not be started
    part doctor 30 "$python" -c 'import json; from pgm_fast import env; print(json.dumps(env.doctor(), indent=1))' &&
      [[ -z $dry ]] && cp "$out/logs/doctor.log" "$out/doctor.json"
    ;;
  sanitize)
    sanitizer=(compute-sanitizer --error-exitcode 9)
    if [[ -z $available ]]; then
      reason="no CUDA device"
    elif [[ -z $dry ]] && ! command -v compute-sanitizer >/dev/null; then
      reason="no compute-sanitizer"
    elif [[ -z $dry ]] && ! timeout 60 "${sanitizer[@]}" "$python" -c 'import torch; torch.zeros(1).cuda()' \
      >"$out/logs/sanitizer.log" 2>&1; then
      reason="compute-sanitizer is refused here: $(grep -m 1 -iE 'error|fail|denied' "$out/logs/sanitizer.log" | cut -c1-120)"
    else
      reason=
    fi
    # our compiled kernels alone, few tests: it slows every launch down. Every tensor gets memory of its own, or torch's
    # cache hides what is past its end.
    for tool in memcheck racecheck; do
      if [[ -n $reason ]]; then
        skip $tool "$reason"
      else
        part $tool 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" --tool $tool --kernel-regex kns=pgm_fast \
          "${pytest[@]}" -x -k "native and (bitwise or nan or any_address)" "$repository/tests/gpu"
      fi
    done
    ;;
  bench-*)
    # the most important first
    steps=(step multi_rate)
    declare -A limits=([step]=200 [multi_rate]=90 [partition]=90 [partitioned_linear]=60
      [reconstruction]=60 [duc_loss]=40)
    ops=(partition partitioned_linear reconstruction duc_loss)
    for script in "$repository"/benchmarks/bench_*.py; do
      name=$(basename "$script" .py)
      name=${name#bench_}
      # whatever else measures devices
      grep -q -- --device "$script" && [[ -z ${limits[$name]:-} ]] && ops+=("$name")
    done
    [[ $call == bench-steps ]] && benches=("${steps[@]}") || benches=("${ops[@]}")
    for name in "${benches[@]}"; do
      if [[ -z $available ]]; then
        skip "bench_$name" "no CUDA device"
      else
        part "bench_$name" "${limits[$name]:-30}" "$python" "$repository/benchmarks/bench_$name.py" --device cuda
      fi
    done
    [[ -z $dry ]] && command -v nvidia-smi >/dev/null &&
      nvidia-smi -q -d CLOCK,POWER,PERFORMANCE >"$out/logs/nvidia-smi.log" 2>&1
    ;;
esac
finish
