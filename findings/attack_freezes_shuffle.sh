#!/usr/bin/env bash
# torchattacks 3.5.1 with torch 2.13.0's DataLoader. Seen 2026-11-29 on CPU, Python 3.11.
#
# A training loop shuffles its data and, after each epoch, measures robust accuracy on a fixed
# validation batch. With PGD every epoch has an order of its own. With APGD, Square or FAB, at
# their defaults, every epoch after the first goes through the data in one and the same order:
# their `seed=0` is given to torch.manual_seed on each call, so the attack leaves the global
# generator in the same state each time, and the DataLoader draws its shuffle from there. Dropout
# masks, augmentation and noise repeat in the same way, and another seed of the run does not help.
#
# Output (different orders in epochs 2 to 5, by the attack that ran between them):
#   PGD 4, APGD 1, Square 1, FAB 1
#   order after APGD is the same for run seeds 1 and 2: True
#
# Expected instead: an attack's seed seeds the attack (a generator of its own, or the global state
# put back), and a measurement leaves the training that it measures alone.
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
from torch.utils.data import DataLoader

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
images = torch.rand(20, 1, 8, 8)
labels = model(images).argmax(1)


def orders(attack, seed):
    torch.manual_seed(seed)
    seen = []
    for _ in range(5):
        seen.append(tuple(int(i) for i in DataLoader(range(50), shuffle=True)))
        attack(images, labels)
    return seen[1:]


attacks = (
    torchattacks.PGD(model),
    torchattacks.APGD(model),
    torchattacks.Square(model, n_queries=20),
    torchattacks.FAB(model, n_classes=3),
)
counts = {attack.attack: len(set(orders(attack, 1))) for attack in attacks}
same = orders(attacks[1], 1) == orders(attacks[1], 2)

print(", ".join(f"{name} {count}" for name, count in counts.items()))
print("order after APGD is the same for run seeds 1 and 2:", same)
if counts != {"PGD": 4, "APGD": 1, "Square": 1, "FAB": 1} or not same:
    sys.exit("The behavior has changed: the attacks no longer reset the global generator.")
PY
