#!/usr/bin/env bash
# Check and measure prompt_jax on one GPU, against its CPU and against PEFT, in at most 8 minutes.
#
#     tools/gpu.sh [--tiny] [FOLDER]       # PYTHON=/path/to/python3 chooses the interpreter
#
# It prints one table and writes FOLDER/gpu.json (by default in a new temporary folder). A part that fails or reaches its
# time limit does not stop the others; the table names it, and the exit status is 1. --tiny runs small shapes, also on a
# CPU. It needs jax (with CUDA), flax, optax, torch, transformers and peft, and downloads nothing.

set -u
tiny=()
if [ "${1:-}" = --tiny ]; then
    tiny=(--tiny)
    shift
fi
case ${1:-} in -*)
    echo "usage: tools/gpu.sh [--tiny] [FOLDER]" >&2
    exit 2
    ;;
esac
folder=${1:-$(mktemp -d)}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# torch and JAX run one after another, each in its own process, so either may take nearly all memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
if [ ${#tiny[@]} = 0 ]; then
    export JAX_PLATFORMS=cuda,cpu # an error without a GPU; the checks compare with the CPU
fi

# Parts and their limits in seconds. What a part does not use is left for the others. GPU_SECONDS limits them all.
whole=${GPU_SECONDS:-465}
for name in check jax-t5 peft-t5 jax-llama peft-llama; do
    rm -f "$folder/$name".{jsonl,status,log}
done
for part in check:110 jax-t5:170 peft-t5:100 jax-llama:110 peft-llama:80; do
    name=${part%:*} limit=${part#*:}
    left=$((whole - SECONDS))
    [ ${#tiny[@]} = 0 ] || limit=$left
    [ "$left" -gt 0 ] || continue # the report says so
    timeout --kill-after=5 $((limit < left ? limit : left)) \
        "$python" -m tools.gpu "$name" "$folder" "${tiny[@]}" 2>&1 | tee "$folder/$name.log" >&2
    echo "${PIPESTATUS[0]}" >"$folder/$name.status"
done

echo
JAX_PLATFORMS=cpu "$python" -m tools.gpu report "$folder"
status=$?
echo "results: $folder/gpu.json, after $SECONDS s"
exit $status
