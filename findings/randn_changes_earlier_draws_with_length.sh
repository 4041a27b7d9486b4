#!/usr/bin/env bash
# torch 2.13.0. Seen 2026-12-01 on an x86-64 CPU, Python 3.11.
#
# With the same seed, `torch.randn(17)` does not begin with the numbers of `torch.randn(16)`: 15 of
# the 16 differ. `torch.rand` does begin with them. So noise that is drawn for a batch under a fixed
# seed changes for the points before when a point is added, by how much depends on the sizes, and a
# randomized model's answers depend on the batch although its seed does not.
# From 16 numbers on, normals are made in blocks of 16; where the length is no multiple of 16, the
# last 16 places are drawn once more, over what stood there.
#
# Output (how many of the first n numbers differ in a draw of n + 1, of normals and of uniforms):
#   n = 8: normal 0, uniform 0
#   n = 15: normal 15, uniform 0
#   n = 16: normal 15, uniform 0
#   n = 90: normal 2, uniform 0
#   n = 784: normal 15, uniform 0
#
# Expected instead: 0 everywhere, as for uniforms and for NumPy's generators.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python -I - <<'PY'
import sys

import torch


def differing(draw, n):
    one = draw(n, generator=torch.Generator().manual_seed(0))
    more = draw(n + 1, generator=torch.Generator().manual_seed(0))
    return int((one != more[:n]).sum())


seen = {n: (differing(torch.randn, n), differing(torch.rand, n)) for n in (8, 15, 16, 90, 784)}
for n, (normal, uniform) in seen.items():
    print(f"n = {n}: normal {normal}, uniform {uniform}")
if any(uniform for _, uniform in seen.values()) or not (seen[16][0] and seen[784][0]):
    sys.exit("The behavior has changed: normals no longer depend on how many follow.")
PY
