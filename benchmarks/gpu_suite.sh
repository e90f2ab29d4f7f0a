#!/usr/bin/env bash
# Builds, tests and measures the kernels on a machine with a CUDA device, in at most 8 minutes.
#
#     benchmarks/gpu_suite.sh [FOLDER]
#
# Takes what the machine's Python has: torch built for CUDA, triton, pybind11, pytest; nvcc; no network, nothing is
# installed. Writes to FOLDER, else to $OUT, else to gpu-results/: summary.tsv (part, exit status, seconds), logs/ and
# results/<device>/*.json. A part that fails or runs out of time is recorded, and the rest goes on. Exit status: 0 where
# every part did its work or had nothing to do here, else 1.
#
# Environment: PYTHON, the interpreter; SUITE_SECONDS, the time for everything (480), with which the time of each part
# grows; SUITE_FAST=1 measures nothing.
set -u

repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=$(mkdir -p "${1:-${OUT:-gpu-results}}" && cd "${1:-${OUT:-gpu-results}}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
budget=${SUITE_SECONDS:-480}
deadline=$((SECONDS + budget))
failed=0
mkdir -p "$out/logs" "$out/results"
printf 'part\tstatus\tseconds\n' >"$out/summary.tsv"

record() { # name status seconds
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" | tee -a "$out/summary.tsv"
}

# part NAME SECONDS COMMAND...: runs it for at most that long, of 480, and never past the end; its output goes to
# logs/NAME.log
part() {
  local name=$1 limit=$(($2 * budget / 480)) start=$SECONDS left=$((deadline - SECONDS)) status=0
  shift 2
  if ((left < 10)); then
    record "$name" "no time left" 0
    failed=1
    return 1
  fi
  timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$out/logs/$name.log" 2>&1 || status=$?
  ((status == 124 || status == 137)) && status="out of time"
  [[ $status == 0 ]] || { failed=1 && tail -n 5 "$out/logs/$name.log"; }
  record "$name" "$status" $((SECONDS - start))
  [[ $status == 0 ]]
}

skip() { # name reason
  record "$1" "skipped: $2" 0
}

# outside of the repository, whose pgm_fast/ has no compiled kernels and would be found first
cd "$work" || exit 1
export PYTHONPATH="$work/lib" PGM_FAST_RESULTS="$out/results" PYTHONUNBUFFERED=1

capability=$("$python" -c '
import torch
if torch.cuda.is_available():
    print("%d.%d" % torch.cuda.get_device_capability())
' 2>"$out/logs/device.log") || capability=
[[ -n $capability ]] && export TORCH_CUDA_ARCH_LIST="$capability"

# kernels that were built elsewhere, for an editable installation, are not these
export repository work python
part build 150 bash -c 'cd "$repository" && "$python" setup.py -q egg_info --egg-base "$work" \
  build --build-base "$work/build" --build-lib "$work/lib" && cd "$work" &&
  "$python" -c "import os, pgm_fast as p; assert p.__file__.startswith(os.environ[\"PYTHONPATH\"]), p.__file__"'
if ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; then
  skip cuda_kernels "torch is not built for CUDA"
elif ! command -v nvcc >/dev/null; then
  skip cuda_kernels "nvcc is not on the PATH"
else
  part cuda_kernels 10 "$python" -c 'import pgm_fast._cuda as c; print("built for", c.architectures, "in", c.__file__)'
fi
part doctor 30 "$python" -c 'import json; from pgm_fast import env; print(json.dumps(env.doctor(), indent=1))' &&
  cp "$out/logs/doctor.log" "$out/doctor.json"

# a cache of its own: the repository may be read-only
tests=("$python" -m pytest -c "$repository/pyproject.toml" --rootdir "$repository" -p no:cacheprovider -q -rs)
part tests 100 "${tests[@]}" "$repository/tests/gpu"

if [[ -z $capability ]]; then
  skip memcheck "no CUDA device"
  skip racecheck "no CUDA device"
elif ! command -v compute-sanitizer >/dev/null; then
  skip memcheck "no compute-sanitizer"
  skip racecheck "no compute-sanitizer"
else
  # few tests: it slows every launch down. Every tensor gets memory of its own, or torch's cache hides what is past its end.
  for tool in memcheck racecheck; do
    part $tool 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 \
      "${tests[@]}" -x -k "native and (bitwise or nan)" "$repository/tests/gpu"
  done
fi

# the most important first, then whatever else measures devices
declare -A limits=([partition]=90 [partitioned_linear]=50 [reconstruction]=50 [step]=80 [multi_rate]=50 [duc_loss]=50)
benches=(partition partitioned_linear reconstruction step multi_rate duc_loss)
for script in "$repository"/benchmarks/bench_*.py; do
  bench=$(basename "$script" .py)
  [[ -n ${limits[${bench#bench_}]:-} ]] || benches+=("${bench#bench_}")
done
for bench in "${benches[@]}"; do
  script=$repository/benchmarks/bench_$bench.py
  if [[ ${SUITE_FAST:-} == 1 ]]; then
    skip "bench_$bench" "SUITE_FAST"
  elif [[ -z $capability ]]; then
    skip "bench_$bench" "no CUDA device"
  elif ! grep -q -- --device "$script"; then
    skip "bench_$bench" "does not measure devices"
  else
    part "bench_$bench" "${limits[$bench]:-30}" "$python" "$script" --device cuda
  fi
done
command -v nvidia-smi >/dev/null && nvidia-smi -q -d CLOCK,POWER,PERFORMANCE >"$out/logs/nvidia-smi.log" 2>&1

echo "results in $out"
exit $failed
