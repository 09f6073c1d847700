"""Every artifact's path and schema: the one table by which the stages know of each other.

A table is parquet (readable by `pandas.read_parquet`), an array store is a zarr group (readable by
`xarray.open_zarr`); `storage/` writes and checks them. Other files are paths alone.
"""

from __future__ import annotations

from pathlib import Path

from stages.storage.arrays import Store
from stages.storage.tables import Table

ID = {"image_id": "string"}
VIEW = ID | {"class": "string", "rank": "int32"}

CHECKED = Path("data/checked")
INDEX = Table(
    Path("data/index.parquet"),
    "ccd.index/1",
    ID | {"path": "string", "split": "string", "width": "int32", "height": "int32"}
    | {"sha256": "string", "status": "string", "error": "string"},
)  # fmt: skip
GROUND_TRUTH = Table(
    Path("data/ground_truth.parquet"), "ccd.ground_truth/1", ID, per_class=True, gaps=True
)
ANSWERS = Table(Path("data/answers.parquet"), "ccd.answers/1", ID, per_class=True, gaps=True)
BIAS = Table(
    Path("data/bias.parquet"),
    "ccd.bias/2",
    # similarity: the class's mean cosine over the training images
    {
        "class": "string",
        "bias": "float32",
        "count": "int64",
        "measured": "bool",
        "similarity": "float32",
    },
)
GLOBAL_SCORES = Table(Path("data/global_scores.parquet"), "ccd.scores/1", ID, per_class=True)
INITIAL_LABELS = Table(Path("data/initial_labels.parquet"), "ccd.labels/1", ID, per_class=True)
CAM_BOXES = Table(
    Path("data/cam_boxes.parquet"),
    "ccd.boxes/2",
    # edges in pixels of the upright original, and of the square that the student saw
    VIEW | {"score": "float32"} | dict.fromkeys(("x0", "y0", "x1", "y1"), "int32")
    | dict.fromkeys(("u0", "v0", "u1", "v1"), "int32"),
    gaps=True,  # views that no class asked for have no score
)  # fmt: skip
LOCAL_SCORES = Table(Path("data/local_scores.parquet"), "ccd.view_scores/1", VIEW, per_class=True)
LOCAL_LABELS = Table(Path("data/local_labels.parquet"), "ccd.labels/1", ID, per_class=True)
PSEUDO_LABELS = Table(Path("data/pseudo_labels.parquet"), "ccd.labels/1", ID, per_class=True)
THRESHOLDS = Table(
    Path("data/thresholds.parquet"),
    "ccd.thresholds/1",
    # of the student's logits: scale and offset; of the probabilities that follow: the cut
    {
        "class": "string",
        "scale": "float32",
        "offset": "float32",
        "threshold": "float32",
        "told_apart": "bool",
    },
)
PREDICTIONS = Table(Path("data/predictions.parquet"), "ccd.predictions/1", ID, per_class=True)

CLASS_TEXT = Store(
    Path("data/class_text.zarr"), "ccd.class_text/1", {"embedding": ("class", "dim")}
)
GLOBAL_CLIP = Store(
    Path("data/global_clip.zarr"),
    "ccd.global_clip/1",
    {"embedding": ("image", "dim")},
    gaps=True,
)
STUDENT_FEATURES = Store(
    Path("data/student_features.zarr"),
    "ccd.student_features/1",
    {"pooled": ("image", "mirrored", "dim")},
    gaps=True,
)
CAM_MAPS = Store(Path("data/cam_maps.zarr"), "ccd.cam_maps/1", {"map": ("view", "y", "x")})
LOCAL_CLIP = Store(Path("data/local_clip.zarr"), "ccd.local_clip/1", {"embedding": ("view", "dim")})

TEACHER = Path("data/weights/teacher")  # an open_clip local-dir
STUDENT_INIT = Path("data/weights/student_init.safetensors")
WARMUP_STUDENT = Path("data/warmup/student.safetensors")
WARMUP_OPTIMISER = Path("data/warmup/optimiser.safetensors")
WARMUP_HISTORY = Path("data/warmup/history.csv")
STUDENT = Path("data/classifier/student.safetensors")
TRAIN_HISTORY = Path("data/classifier/history.csv")
HEADS = Path("data/classifier/heads.csv")
DOUBTS = Path("data/doubts.csv")
RESULTS = Path("results")
REPORT = Path("data/report/index.html")
