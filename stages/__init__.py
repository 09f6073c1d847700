"""The pipeline, in the order of the data; `dvc.yaml` says what each stage reads and writes.

    source ── index ────┬─ global_clip ─┬─ bias ─ warmup ─ cam_boxes ─ local_clip ─ fuse_labels
    weights ────────────┤               │                                              │
    class_text ─────────┴───────────────┘                                              │
    labels ── ground_truth ─────────────────────────────── report ─ evaluate ─ train ──┘

One stage, one file of the same name. Around them: `method/` (the paper's formulas), `models/`,
`images/`, `sources/` (data sets, and how to get them), `presets/`, and `artifacts.py` (every file
the stages exchange), `params.py`, `job.py` (what every stage's run has in common), `embedding.py`
and `training.py` (what two stages share), `resume.py`, `machine.py`, `progress.py`; `cli.py` and
`predict.py` for people.
"""
