#!/usr/bin/env bash
# safetensors 0.8.0. Seen 2026-12-01, Python 3.11.
#
# Saving the same tensors with the same metadata gives other bytes in another process: the entries
# of `__metadata__` are written in an order that is drawn anew in each process (tensors are sorted).
# With one entry, or none, the bytes are equal. A digest of a checkpoint file, a build cache or a
# rule "the training is reproducible if the file is" fails for weights that are bit-equal.
#
# Output (distinct files of 24 processes, by the number of entries in the metadata):
#   1 entries: 1 distinct files
#   4 entries: 14 distinct files (of at most 24, another number each time)
#
# Expected instead: one file, as for the tensors, whose order does not depend on the process.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$folder"
cat > save.py <<'PY'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

entries = {"data": "cifar10", "epochs": "17", "net": "preact_resnet", "seed": "0"}
metadata = dict(list(entries.items())[: int(sys.argv[1])])
tensors = {"weight": np.zeros((2, 2), np.float32), "bias": np.ones(2, np.float32)}
print(hashlib.sha256(save(tensors, metadata=metadata)).hexdigest())
PY
for entries in 1 4; do
  for _ in $(seq 24); do venv/bin/python -I save.py "$entries"; done | sort -u > "seen$entries"
  echo "$entries entries: $(wc -l < "seen$entries") distinct files"
done
if [ "$(wc -l < seen1)" != 1 ] || [ "$(wc -l < seen4)" = 1 ]; then
  echo "The behavior has changed: the order of the metadata no longer depends on the process." >&2
  exit 1
fi
