#!/bin/sh
# Sets up what the tests need and runs them: `sh tests/run.sh` for all, `sh tests/run.sh unit`
# without the real frameworks, `sh tests/run.sh interop` with nothing else.
#
# PYTHON                 the interpreter that the environments are made with (3.11 or newer)
# RESHARD_INTEROP_VENV   an environment with the frameworks; made there if it does not exist
set -eu
cd "$(dirname "$0")/.."

part=${1:-all}
case $part in
all | unit | interop) ;;
*)
    echo "usage: sh tests/run.sh [all|unit|interop]" >&2
    exit 2
    ;;
esac

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "tests/run.sh: Python 3.11 or newer is needed; $python is $("$python" -V 2>&1)" >&2
    exit 1
}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-ci}"
unset PYTHONPATH

say() {
    printf '\n== %s\n' "$*"
}

# fingerprint FILE...: a digest of the interpreter's version and of some files.
fingerprint() {
    "$python" -c 'import hashlib, sys
digest = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    digest.update(open(name, "rb").read())
print(digest.hexdigest()[:16])' "$@"
}

# The project and its tools. Editable, so that only a change of the requirements installs again.
stamp=.venv/reshard-stamp
wanted=$(fingerprint constraints.txt pyproject.toml)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "installing reshard and the test tools into .venv"
    [ -x .venv/bin/python ] || "$python" -m venv --clear .venv
    .venv/bin/python -m pip install -qq -c constraints.txt -e '.[test]'
    echo "$wanted" >"$stamp"
fi

if [ "$part" != interop ]; then
    say "ruff"
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    say "mypy"
    .venv/bin/mypy
    say "lint-imports"
    .venv/bin/lint-imports --no-logo
    say "pytest"
    .venv/bin/pytest -q -n auto
fi

[ "$part" = unit ] && exit 0

# The real frameworks: more than a gigabyte, so they are kept outside the checkout.
requirements() {
    .venv/bin/python -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"]["interop"]))'
}
requirements >.venv/interop-requirements.txt
if [ -n "${RESHARD_INTEROP_VENV:-}" ]; then
    venv=$RESHARD_INTEROP_VENV
    complete=$venv/bin/python
else
    kept=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/reshard
    venv=$kept/interop-$(fingerprint constraints.txt .venv/interop-requirements.txt)
    complete=$venv/reshard-stamp # written last: without it the environment is half made
fi
if [ ! -e "$complete" ]; then
    say "installing the real frameworks into $venv (once; some minutes)"
    mkdir -p "$(dirname "$venv")"
    "$python" -m venv --clear "$venv"
    # torch first: DeepSpeed's build looks at it. Nothing is compiled, only its Python is used.
    export DS_ACCELERATOR=cpu DS_BUILD_OPS=0
    "$venv/bin/python" -m pip install -qq -c constraints.txt torch setuptools
    "$venv/bin/python" -m pip install -qq -c constraints.txt -r .venv/interop-requirements.txt
    # The one extension that DeepSpeed needs, for ranks on a CPU. Tests take a copy.
    TORCH_EXTENSIONS_DIR=$venv/torch_extensions PATH=$venv/bin:$PATH "$venv/bin/python" -c '
import accelerate, deepspeed, torch, transformers
deepspeed.get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)'
    [ "$complete" = "$venv/bin/python" ] || : >"$complete"
fi
# Other releases, and frameworks that ask for much that the tests do not use: each list in a folder
# that comes before the environment's packages. They are Python alone, so the wheel of any version
# will do; Megatron-core 0.19 has one for Python 3.12 only.
for list in tests/interop/beside/*.txt; do
    folder=$venv/beside/$(basename "$list" .txt)
    wanted=$(fingerprint "$list")
    [ "$(cat "$folder/reshard-stamp" 2>/dev/null)" = "$wanted" ] && continue
    say "installing $(basename "$list" .txt) beside them"
    rm -rf "$folder"
    "$venv/bin/python" -m pip install -qq --no-deps --only-binary :all: --python-version 3.12 \
        --ignore-requires-python --target "$folder" -r "$list"
    echo "$wanted" >"$folder/reshard-stamp"
done
say "pytest -m interop, with the frameworks of $venv"
RESHARD_INTEROP_VENV=$venv .venv/bin/pytest -q -n 2 --dist loadfile -m interop \
    --interop-table build/interop.md
