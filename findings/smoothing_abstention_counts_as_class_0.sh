#!/usr/bin/env bash
# adversarial-robustness-toolbox 1.20.1. Seen 2026-11-30 on CPU with torch 2.13.0, Python 3.11.
#
# An attacker moves images to where the draws of a smoothed classifier are split evenly between two
# classes, so that it abstains at every one. ART's `PyTorchRandomizedSmoothing.predict` then returns
# rows of zeros, as its documentation says, and ART's own `compute_success` takes their argmax, which
# is class 0: of images of class 1 every attack succeeded, of images of class 0 none did, although the
# classifier is the same for both but for the names of its classes. (`compute_accuracy` leaves rows
# of zeros out, and `certify` returns -1.)
#
# Output (share of attacked images at which it abstains, success of the attack, by class):
#   class 0: abstained 1.00, attack success 0.00
#   class 1: abstained 1.00, attack success 1.00
#
# Expected instead: abstention counts alike for every class, as a success or as an answer of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 \
  scikit-learn==1.9.1 six==1.17.0 tqdm==4.70.1 packaging==26.4
"$folder/venv/bin/pip" install --quiet --no-deps adversarial-robustness-toolbox==1.20.1
cd "$folder"
venv/bin/python -I - <<'PY'
import sys

import numpy as np
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.utils import compute_success
from torch import nn

torch.manual_seed(0)
np.random.seed(0)

# The sign of the first feature decides between classes 0 and 1; at 0 the noise decides.
net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
nn.init.zeros_(net[1].bias)
net[1].weight.data = torch.tensor([[50.0, 0, 0, 0], [-50.0, 0, 0, 0]])
smoothed = PyTorchRandomizedSmoothing(
    net,
    nn.CrossEntropyLoss(),
    (1, 2, 2),
    2,
    clip_values=(-9, 9),
    sample_size=50,
    scale=1.0,
    alpha=1e-6,
)
attacked = np.zeros((20, 1, 2, 2), np.float32)
seen = []
for label, feature in ((0, 5.0), (1, -5.0)):
    images = attacked.copy()
    images[:, 0, 0, 0] = feature
    labels = np.eye(2, dtype=np.float32)[np.full(20, label)]
    if not (smoothed.predict(images).argmax(1) == label).all():
        sys.exit("The clean images are not classified as they should be.")
    abstained = float((smoothed.predict(attacked).sum(1) == 0).mean())
    success = float(compute_success(smoothed, images, labels, attacked))
    print(f"class {label}: abstained {abstained:.2f}, attack success {success:.2f}")
    seen.append((abstained, success))
if seen != [(1, 0), (1, 1)]:
    sys.exit("The behavior has changed: abstention no longer counts as class 0.")
PY
