#!/usr/bin/env bash
# torch 2.13.0, nn.TransformerEncoderLayer. Seen 2026-11-29 on CPU, Python 3.11.
#
# A defense bounds the activations of an encoder layer: `layer.linear1` is replaced by a subclass
# of nn.Linear whose forward clamps its output. In eval mode the layer then computes two different
# functions. With gradients recorded, as in an attack, the subclass runs. Under torch.no_grad(), as
# in an evaluation, the fused fast path reads `linear1.weight` and `linear1.bias` and never calls
# the subclass: the answer is bit for bit that of the undefended layer. No warning is given.
# A forward hook that does nothing turns the fast path off, so looking at the layer brings the
# defense back; so does torch.backends.mha.set_fastpath_enabled(False).
#
# Output:
#   classes that differ between the gradient pass and the no_grad pass: 27 of 200
#   no_grad pass equal to the layer without the defense: True
#   no_grad pass with an empty hook within 1e-5 of the gradient pass: True
#
# Expected instead: no_grad() decides whether a graph is recorded, never which function is
# computed, and a replaced submodule is called, or the fast path refuses its type. An attack
# searches one function here and is judged on another.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python -I - <<'PY'
import copy
import sys

import torch
from torch import nn


class Bounded(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-0.2, 0.2)


torch.manual_seed(0)
plain = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True).eval()
head = nn.Linear(16, 10)
defended = copy.deepcopy(plain)
defended.linear1 = Bounded(16, 64)
defended.linear1.load_state_dict(plain.linear1.state_dict())
defended.eval()
x = torch.randn(200, 4, 16)

recorded = defended(x).detach()
with torch.no_grad():
    judged, undefended = defended(x), plain(x)
    classes = [head(out.mean(1)).argmax(1) for out in (recorded, judged)]
    differ = int((classes[0] != classes[1]).sum())
    defended.linear1.register_forward_hook(lambda *_: None)
    watched = defended(x)
same = torch.equal(judged, undefended)
close = torch.allclose(watched, recorded, rtol=0, atol=1e-5)

print("classes that differ between the gradient pass and the no_grad pass:", differ, "of 200")
print("no_grad pass equal to the layer without the defense:", same)
print("no_grad pass with an empty hook within 1e-5 of the gradient pass:", close)
if not (differ and same and close):
    sys.exit("The behavior has changed: the no_grad pass no longer leaves the subclass out.")
PY
