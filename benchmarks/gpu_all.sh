#!/usr/bin/env bash
# What is open about GPUs, answered in ten minutes on a machine with one, the most important first.
#
#   benchmarks/gpu_all.sh [--out FOLDER] [--seconds N] [--device cuda:1] [--real MODEL] [--wheels FOLDER] [--small]
#
# --out      where reports, logs and tables go, bench/gpu by default; written as they come
# --seconds  for everything, 600 by default; a step has its share of it, the last what is left, and is stopped then
# --real     an exported, trained model, for whether its states are right; without it random weights serve
# --wheels   packages for this run, beside those that $PYTHON has (python3 by default); no network is needed. Made by
#            pip wheel -w FOLDER '.[export,gpu]' flash-maxsim late-interaction-kernels
# --small    small sizes; with --device cpu all of it runs without a GPU, and every rate is «not measured»
#
# A step that fails does not stop the others. FOLDER then holds of each its report (JSON, Markdown) and its log;
# devices.md and gpu-retrieval.md, the tables of the pages of that name in docs; gpu_all.md, all of it. Exit status 1
# when a step failed or found a problem.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) || exit

out=bench/gpu seconds=600 device=cuda real='' wheels='' small=''
while [ $# -gt 0 ]; do
  case $1 in
    --small) small=1; shift; continue ;;
    --out | --seconds | --device | --real | --wheels) [ $# -gt 1 ] || { echo "$1: a value is missing" >&2; exit 2; } ;;
    *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
  esac
  declare "${1#--}=$2"
  shift 2
done
[ -z "$wheels" ] || [ -d "$wheels" ] || { echo "--wheels $wheels: no such folder" >&2; exit 2; }
mkdir -p "$out" || exit 2
rm -f "$out"/steps.tsv "$out"/{wheels,first_ten_minutes,seqsim_gpu,extraction_gpu}.{json,md,log}
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3} status=0 all=$seconds

# step NAME PERCENT COMMAND…: its share of the time, or what is left; NAME.log; a line in steps.tsv; tables made anew.
step() {
  local name=$1 limit=$((all * $2 / 100)) begin=$SECONDS left=$((all - SECONDS)) end result
  shift 2
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 1 ]; then
    result='not reached'
    status=1
  else
    echo "$begin s: $name, at most $limit s" >&2
    # a script begins no section when most of its time is over, and so ends by itself
    timeout --kill-after=10 "$limit" "${@//LIMIT/$((limit * 8 / 10))}" > "$out/$name.log" 2>&1
    end=$?
    case $end in
      0) result=done ;;
      124 | 137) result="stopped after $limit s" ;;
      *) result="exit status $end: $(tail -n 1 "$out/$name.log" | tr '\t' ' ')" ;;
    esac
    [ $end -eq 0 ] || status=1
  fi
  printf '%s\t%s\t%s\n' "$name" "$((SECONDS - begin))" "$result" >> "$out/steps.tsv"
  echo "$SECONDS s: $name: $result" >&2
  "$python" "$root/benchmarks/gpu_tables.py" "$out" || status=1
}

if [ -n "$wheels" ]; then
  made=$(mktemp -d "${TMPDIR:-/tmp}/voxstrata-gpu.XXXXXX")
  trap 'rm -rf "$made"' EXIT
  # In a folder of their own, not in an environment: what $PYTHON has already serves too, and torch for CUDA is large.
  step wheels 20 "$python" -m pip install --quiet --no-index --no-deps --target "$made" "$wheels"/*.whl
  PYTHONPATH=$PYTHONPATH:$made
fi
sizes=(--device "$device") where=(--device "$device")
[ -z "$small" ] || sizes+=(--small)
[ "$device" != cpu ] || where=(--tiny)
step first_ten_minutes 30 "$python" "$root/benchmarks/first_ten_minutes.py" --out "$out" --seconds LIMIT "${sizes[@]}" \
  ${real:+--real "$real"}
step seqsim_gpu 27 "$python" "$root/benchmarks/seqsim_gpu.py" --out "$out" --seconds LIMIT "${where[@]}"
step extraction_gpu 100 "$python" "$root/benchmarks/extraction_gpu.py" --out "$out" --seconds LIMIT "${sizes[@]}"
cat "$out/gpu_all.md"
exit $status
