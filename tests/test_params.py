"""`params.yaml`: what is wrong is named with its place and the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.runtime.code import ROOT
from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.runtime.params_file import parse_params, read_yaml
from tests.conftest import edit_params
from tests.declarations import leaves


def load(path: Path) -> Params:
    return parse_params(read_yaml(path), path)


def written(tmp_path: Path, text: str | None = None, **changes) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text() if text is None else text)
    edit_params(path, {k.replace("__", "."): v for k, v in changes.items()}) if changes else None
    return path


def problem(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value)


def test_the_projects_own_file_is_valid_and_frozen():
    params = load(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 1


def test_a_misspelt_key_is_named_with_the_nearest_valid_one(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("  entropy_limit:", "  entropy_limt:")
    message = problem(written(tmp_path, text))
    assert "`bias.entropy_limt` is no parameter; did you mean `bias.entropy_limit`?" in message
    assert "`bias.entropy_limit` is missing" in message


def test_a_misspelt_section_is_named_with_the_nearest_valid_one(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("warmup:", "warmpu:")
    assert "`warmpu` is no parameter; did you mean `warmup`?" in problem(written(tmp_path, text))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train__epochs": "five"}, "`train.epochs` is 'five'"),
        ({"train__epochs": -1}, "`train.epochs` is -1"),
        ({"fuse_labels__alpha": 1.5}, "`fuse_labels.alpha` is 1.5"),
        ({"fuse_labels__alpha": float("nan")}, "`fuse_labels.alpha` is nan"),
        ({"optimiser__lr": float("inf")}, "`optimiser.lr` is inf"),
        ({"bias__entropy_unit": "bits"}, "`bias.entropy_unit` is 'bits'"),
        ({"labels__temperature": "learnt"}, "`labels.temperature` is 'learnt'"),
        ({"class_text__templates": ["a photo"]}, "needs one {}"),
        ({"teacher__checkpoint": "data/none"}, "`teacher`: give either"),
        (
            {"global_clip__engine": "onnxruntime", "global_clip__precision": "bfloat16"},
            "`global_clip`: `engine: onnxruntime` computes in `precision: float32` alone",
        ),
        ({"student__arch": "resnet50"}, "`student`: `weights: teacher` wants"),
        ({"train__jitter": [0.5]}, "`train.jitter.3` is missing"),
        ({"train__jitter": [0.5, 0.5, 0.5, 0.8]}, "`train.jitter.3` is 0.8"),
        ({"train__jitter": [-0.5, 0.5, 0.5, 0.5]}, "`train.jitter.0` is -0.5"),
        ({"student__input_size": 31}, "`student.input_size` is 31"),
        ({"student__output_stride": 32, "student__input_size": 48}, "must be twice"),
        ({"student__arch": "resnet18", "student__weights": "IMAGENET1K_V2"}, "no IMAGENET1K_V2 of"),
        ({"source__kind": "voc2012"}, "`source`: voc2012 says itself what is for testing"),
        ({"source__difficult": "ignore"}, "`source`: folder knows no difficult objects"),
        ({"teacher__sha256": "abc"}, "`teacher.sha256` is 'abc'"),
        ({"student__arch": "vit_b_16", "student__weights": "teacher"}, "wants `arch: teacher_tow"),
        (
            {"student__arch": "vit_b_32", "student__weights": "random"},
            "the `output_stride` of vit_b_32 is 32",
        ),
        (
            {
                "student__arch": "vit_b_16",
                "student__weights": "random",
                "student__input_size": 100,
            },
            "vit_b_16 wants multiples of 16",
        ),
        (
            {
                "student__arch": "vit_b_16",
                "student__weights": "random",
                "cam_boxes__input_size": 90,
            },
            "`cam_boxes.input_size` is no multiple of the student's 16",
        ),
        ({"cam_boxes__views": "file"}, "`views: file` and `boxes` other than data/none go toget"),
        ({"cam_boxes__boxes": "b.csv"}, "`views: file` and `boxes` other than data/none go toget"),
        ({"cam_boxes__views": "grid"}, "`mean_views` must be 1, 4, 9, 16"),
        (
            {"cam_boxes__views": "windows"},
            "`views: windows` are 4 (2 x 2), 9 (3 x 3), 13 (both) or 29",
        ),
        (
            {"cam_boxes__views": "random", "cam_boxes__mean_views": 2.5},
            "`mean_views` must be whole",
        ),
        (
            {"student__weights": "classifier", "student__checkpoint": "data/classifier"},
            "data/classifier is made by the pipeline itself: copy it elsewhere",
        ),
        ({"cam_boxes__selection": "search", "cam_boxes__mean_views": 1}, "mean_views ± 1"),
        (
            {"local_clip__aspect": "square", "local_clip__rounding": "pixel"},
            "there is nothing to round",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, change, expected):
    message = problem(written(tmp_path, **change))
    assert expected in message
    assert "params.yaml: " in message


def test_a_classifier_whose_folder_only_begins_like_a_made_one_is_taken(tmp_path):
    changes = {"student__weights": "classifier", "student__checkpoint": "data/classifier_of_may"}
    assert load(written(tmp_path, **changes)).student.checkpoint == "data/classifier_of_may"


def test_a_number_in_scientific_notation_is_a_number(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("lr: 6.0e-4", "lr: 6e-4")
    assert load(written(tmp_path, text)).optimiser.lr == 6e-4


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "seed: [1\n", "seed: 1\nseed: 2\n", "seed: \x07\n"]
)
def test_a_file_that_is_no_tree_of_keys_is_refused_in_words(tmp_path, text):
    assert "params.yaml" in problem(written(tmp_path, text))


def test_a_missing_file_says_where_to_stand(tmp_path):
    assert "run from the project's root" in problem(tmp_path / "params.yaml")


def test_the_tree_has_exactly_the_keys_of_the_file():
    content = YAML(typ="safe").load(ROOT / "params.yaml")

    def keys(tree, prefix=""):
        for name, value in tree.items():
            yield from (
                keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
            )

    assert set(keys(content)) == leaves()
    assert list(content) == list(Params.model_fields)
