#!/usr/bin/env bash
# torchattacks 3.5.1 (DeepFool, SparseFool) and foolbox 3.3.4 (NewtonFool). Seen 2026-11-29 on CPU
# with torch 2.13.0, Python 3.11.
#
# A classifier that ignores its input cannot be attacked: its robust accuracy is 100%. These three
# attacks bring it to 0%. Where the gradient is zero they divide zero by zero; the image becomes
# NaN, the logits become NaN, and argmax of NaNs is class 0, which is not the label. Clipping to
# [0, 1] and to the eps ball lets NaN through, so Foolbox returns `success=True` at eps = 0.01.
# With label 0 the very same NaN images count as robust.
#
# Output (robust accuracy of the constant classifier, by its constant class; NaN in all images):
#   torchattacks.DeepFool: class 1: 0.00, class 0: 1.00, all NaN: True
#   torchattacks.SparseFool: class 1: 0.00, class 0: 1.00, all NaN: True
#   foolbox.NewtonFoolAttack: class 1: 0.00, class 0: 1.00, all NaN: True
#
# Expected instead: a zero gradient ends the search without a result, and an image outside the box
# (NaN is in no box) is no success. Models that round their input have such a gradient everywhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 tqdm==4.70.1 \
  foolbox==3.3.4
# --no-deps: it also asks for torchvision and an old requests, neither of which it imports.
"$folder/venv/bin/pip" install --quiet --no-deps torchattacks==3.5.1
cd "$folder"
venv/bin/python -I - <<'PY'
import sys

import foolbox
import torch
import torchattacks
from torch import nn

torch.manual_seed(0)
images = torch.rand(10, 1, 8, 8)


def attacked(library, attack, label):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = nn.functional.one_hot(torch.tensor(label), 3).float()
    y = torch.full((10,), label)
    if library == "torchattacks":
        found = attack(model)(images, y)
        robust = model(found).argmax(1) == y
    else:
        shown = foolbox.PyTorchModel(model, bounds=(0, 1))
        _, found, success = attack()(shown, images, y, epsilons=0.01)
        robust = ~success
    return robust.float().mean().item(), bool(found.isnan().all())


for library, attack in (
    ("torchattacks", torchattacks.DeepFool),
    ("torchattacks", torchattacks.SparseFool),
    ("foolbox", foolbox.attacks.NewtonFoolAttack),
):
    name = f"{library}.{attack.__name__}"
    (one, nan), (zero, _) = attacked(library, attack, 1), attacked(library, attack, 0)
    print(f"{name}: class 1: {one:.2f}, class 0: {zero:.2f}, all NaN: {nan}")
    if (one, zero, nan) != (0.0, 1.0, True):
        sys.exit(f"The behavior has changed: {name} no longer takes a NaN image for a success.")
PY
