#!/usr/bin/env bash
# Installs what the peer benchmarks and the reference checks need, on Debian 12, as root: PyTorch 1.13 for the CPU with
# OpenBLAS, transformers, tokenizers. Tests and training need none of it.
#   tools/peer_setup.sh [VENV]      (default: .venv, about 650 MB with the Debian packages)
#   .venv/bin/python benches/peers/pytorch_cpu.py
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-torch libopenblas0-pthread python3-venv
/usr/bin/python3 -m venv --system-site-packages "$venv"
"$venv/bin/pip" install --quiet 'numpy<2' 'transformers==4.48.3' tokenizers safetensors
"$venv/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
