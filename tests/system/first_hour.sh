#!/usr/bin/env bash
# The user's first hour, from a fresh shell in a bare clone: the commands of the documents, as typed.
#
#   tests/system/first_hour.sh          README.md and the guide to a new method, on small data and
#                                       by the Python that PY names, which has the tests' packages
#                                       (FORKS names one of tests/system/forks.py that runs already)
#   tests/system/first_hour.sh --full   all documents, as it stands in them, environment included
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PY=${PY:-$ROOT/.venv/bin/python}
FULL=${1:-}
WORK=$(mktemp -d)
SERVER=
trap '[[ $SERVER ]] && kill "$SERVER"; rm -rf "$WORK"' EXIT
CLONE=$WORK/rml
unset VIRTUAL_ENV PYTHONPATH
PATH=$(tr : '\n' <<<"$PATH" | grep -v '/\.venv/' | paste -sd :)

step() { # TITLE COMMAND...: runs it in this shell; one line with its seconds, or what it printed
  local start=$SECONDS
  "${@:2}" >"$WORK/log" 2>&1 </dev/null || {
    local code=$?
    printf 'FAILED (%s)  %s\n' "$code" "$1"
    tail -25 "$WORK/log"
    exit 1
  }
  printf '%4d s  %s\n' $((SECONDS - start)) "$1"
}

document() { # FILE: runs the commands of a document
  local command
  while IFS= read -r -d '' -u 3 command; do
    step "${command%%$'\n'*}" eval "$command"
  done 3< <("$PY" -m tests.system.commands ${FULL:+--full} "$1")
}

clone() { # The tracked files as they are now, and those that would be.
  mkdir "$CLONE"
  cd "$ROOT"
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [[ -e $file ]] && printf '%s\0' "$file"
  done | tar --create --null --files-from=- | tar --extract --directory="$CLONE"
  cd "$CLONE"
}

borrow_environment() { # The Python that is here, started once, and configs that take seconds.
  mkdir -p .venv/bin
  echo "PATH=$CLONE/.venv/bin:\$PATH" >.venv/bin/activate
  if [[ ${FORKS:-} ]]; then
    ln -s "$FORKS" .venv/bin/python
  else
    "$PY" -m tests.system.forks "$WORK/socket" "$CLONE/.venv/bin/python" &
    SERVER=$!
    until [[ -x .venv/bin/python ]]; do
      kill -0 $SERVER
      sleep 0.1
    done
  fi
  touch .venv/demo .venv/test
  local name
  for name in configs/contrastive/simclr_{mnist5k,digits}.py; do
    cat >>"$name" <<'SHORT'


as_it_stands = get_config


def get_config() -> ConfigDict:
    config = as_it_stands()
    config.data.name, config.data.image_shape = "digits", (8, 8, 1)
    # The sweep's splits, so that it finds all programs but its steps compiled.
    config.data.train, config.data.test = "train[:80%]", "train[80%:]"
    config.model = dict(name="mlp", hidden=(16,), features=64)
    config.head = dict(hidden=16, features=8)
    config.optimizer.warmup_steps = 1
    config.train.update(steps=2, batch_size=16, log_every=1, eval_every=2, checkpoint_every=2)
    return config
SHORT
  done
}

own_data() { # Pictures of all sizes, without labels, and arrays.
  mkdir -p images path/to mine
  "$PY" - <<'PYTHON'
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for number in range(400):  # 320 of them to train on: more than a batch
    size = (*rng.integers(10, 40, 2), 3)
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(f"images/{number}.png")
for name in ("photo.jpg", "scan.png"):
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(name)
with open("mine/pairs.jsonl", "w") as pairs:
    for number in range(100):
        print(f'{{"image": "images/{number}.png", "text": "picture {number}"}}', file=pairs)
np.savez("own.npz", image=rng.integers(0, 256, (400, 8, 8, 1), np.uint8))
PYTHON
  ln -s ../../images path/to/images
  ln -s ../images mine/images
  ln -s ../../docs path/to/folder
}

own_arrays() {
  python -m experiments.run --config=configs/contrastive/simclr_digits.py --workdir=runs/own \
    --config.data.name=npz:own.npz
}

register() { # The three edits of docs/guides/method.md: import, `__all__` and the entry.
  python - <<'PYTHON'
import re
from pathlib import Path

guide = Path("docs/guides/method.md").read_text()
line = re.search(r"^from rml\.contrastive\.\w+ import \w+$", guide, re.M)[0]
room = Path("rml/contrastive/__init__.py")
text = room.read_text().replace("__all__ = [", '__all__ = [\n    "align_uniform",', 1)
room.write_text(f"{text}\n{line}\n")
with open("systems.toml", "a") as rows:
    rows.write("\n" + re.search(r"```toml\n(.*?)```", guide, re.S)[1])
PYTHON
}

what_there_is() { # What the steps have left behind.
  python - <<'PYTHON'
import json
from pathlib import Path

import numpy as np

runs = {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("*/summary.json")}
assert {"simclr", "warm", "images", "own", "align_uniform"} <= set(runs), sorted(runs)
assert Path("runs/warm/config.history.jsonl").exists()  # it was extended
assert len(list(Path("runs/sweep").glob("*/seed*/summary.json"))) == 4
assert Path("runs/sweep/sweep.png").exists()
assert len(runs["align_uniform"]["claims"]) == 4, runs["align_uniform"]["claims"]
from experiments.systems import read_systems

assert read_systems()["align_uniform"].built
lines = [json.loads(line) for line in Path("runs/align_uniform/metrics.jsonl").open()]
losses = [line["train/loss"] for line in lines if "train/loss" in line]
assert losses, lines
assert np.isfinite(losses).all(), losses
features = np.load("images.npz")
rows = {name: features[name].shape for name in features.files}
assert any(shape and shape[0] == len(list(Path("images").iterdir())) for shape in rows.values()), rows
assert Path("encoder.stablehlo").stat().st_size > 0
page = Path("runs/report.html").read_text()
assert all(name in page for name in ("warm", "images", "sweep")), len(page)
PYTHON
}

step "clone" clone
[[ $FULL ]] || step "borrow the environment of $PY" borrow_environment
step "own pictures and arrays" own_data
document README.md
step "train on arrays without labels" own_arrays
if [[ $FULL ]]; then
  step "make test: environment for developing" make .venv/test
  for name in docs/guides/*.md docs/areas/*.md WORKSPACE.md docs/index.md tpu/README.md; do
    [[ $name == */method.md ]] || document "$name"
  done
fi
step "register the method" register
document docs/guides/method.md
step "what there is" what_there_is
printf '%4d s  in all\n' $SECONDS
