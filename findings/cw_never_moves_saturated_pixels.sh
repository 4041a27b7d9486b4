#!/usr/bin/env bash
# torchattacks 3.5.1, CW. Seen 2026-11-29 on CPU with torch 2.13.0, Python 3.11.
#
# CW searches in w with x = (tanh(w) + 1) / 2 and starts at w = atanh(2x - 1). For a pixel of
# exactly 0 or 1 that start is infinite, where the slope of tanh is zero: the pixel never moves,
# whatever c, steps and lr are. On black-and-white images the attack returns its input and leaves
# a robust accuracy of 100%. Drawn in by 2% the same images all fall, at the same settings; and
# PGDL2 of the same library breaks nearly all of the black-and-white ones within L2 1.25.
#
# Output (robust accuracy, c=10, steps=200, lr=0.01; share of pixels that moved):
#   CW, pixels 0 and 1: 1.00, moved 0.00
#   CW, pixels 0.02 and 0.98: 0.00, moved 1.00
#   PGDL2 with eps=1.25, pixels 0 and 1: 0.07
#
# Expected instead: every pixel can move (the change of variables needs a start well inside the
# box), or a warning. Digits and line drawings are mostly 0 and 1: there CW searches only the gray
# pixels, and nothing says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 tqdm==4.70.1
# --no-deps: it also asks for torchvision and an old requests, neither of which it imports.
"$folder/venv/bin/pip" install --quiet --no-deps torchattacks==3.5.1
cd "$folder"
venv/bin/python -I - <<'PY'
import sys

import torch
import torchattacks
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
with torch.no_grad():
    model[1].bias.add_(5.0)  # positive logits: the attack's objective is flat at negative ones
binary = (torch.rand(100, 1, 8, 8) > 0.5).float()


def robust(attack, x):
    y = model(x).argmax(1)
    found = attack(x, y)
    return (model(found).argmax(1) == y).float().mean().item(), (found != x).float().mean().item()


cw = torchattacks.CW(model, c=10, steps=200, lr=0.01)
stuck, still = robust(cw, binary)
free, moved = robust(cw, 0.02 + 0.96 * binary)
pgd, _ = robust(torchattacks.PGDL2(model, eps=1.25, alpha=0.1, steps=100), binary)

print(f"CW, pixels 0 and 1: {stuck:.2f}, moved {still:.2f}")
print(f"CW, pixels 0.02 and 0.98: {free:.2f}, moved {moved:.2f}")
print(f"PGDL2 with eps=1.25, pixels 0 and 1: {pgd:.2f}")
if (stuck, still) != (1.0, 0.0) or free > 0.1 or pgd > 0.1:
    sys.exit("The behavior has changed: CW no longer stops at pixels of exactly 0 and 1.")
PY
