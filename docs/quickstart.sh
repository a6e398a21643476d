#!/bin/sh
# The main job on a real DeepSpeed checkpoint: `sh docs/quickstart.sh`.
#
# Makes .venv with reshard in it (once), then works in build/quickstart, which it makes anew.
set -eu
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/reshard ]; then
    echo '$ python3 -m venv .venv'
    "${PYTHON:-python3}" -m venv .venv
    echo '$ .venv/bin/pip install -c constraints.txt -e .'
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
    echo
fi

run() {
    echo "\$ reshard $*"
    .venv/bin/reshard "$@"
    echo
}

source=fixtures/z1_bf16_dp4_tied/ckpt # ZeRO-1, bf16, 4 ranks, tied embeddings
out=build/quickstart
rm -rf "$out"
mkdir -p "$out"

run inspect "$source"
run convert "$source" "$out/universal" --to universal
run verify "$out/universal"
run convert "$out/universal" "$out/zero2-dp2" --to deepspeed:zero=2,dp=2
run verify "$source" "$out/zero2-dp2"
