"""The pipeline, in the order of the data; `dvc.yaml` says what each stage reads and writes.

    check: before whatever reads the user's files
    source ── index ────┬─ global_clip ─┬─ bias ─ warmup ─ cam_boxes ─ local_clip ─ fuse_labels
                        ├─ student_features ───────┘                                       │
    weights ────────────┤               │                                              │
    class_text ─────────┴───────────────┘                                              │
    answers ── fuse_labels, thresholds, evaluate
    labels ── ground_truth ────────────────── report ─ evaluate ─ thresholds ─ train ──┘

One stage, one file of the same name, beside `artifacts.py`, the table of all that they exchange.

The rule: a file is in `runtime/` if and only if it cannot change a byte of a result. Nothing there
is a dependency of a stage, so that an edit of it reruns nothing. All else decides: `method/` (the
paper's formulas), `models/`, `images/`, `training/`, `sources/` (data sets), `storage/` (how
artifacts are written), `page/` (the report's). `command/` is for people: the `ccd` command.
docs/architecture.md is the map.
"""

import os
import signal
import sys

# torch's threads spin while they wait for each other, which on a busy machine takes several times
# as long as the work itself (docs/performance.md)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # a stage imports for seconds before it begins: until `main` takes over, Ctrl-C just ends it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
