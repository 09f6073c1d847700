"""The files of `ccd review`, each in a form that its own tool reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.command.review import Asked, Review
from stages.sources.answer_table import FORMULA, NOT_ANSWERED
from stages.sources.photograph import is_formula

LOCAL_FILES = "/data/local-files/?d="  # where Label Studio serves the files of its document root
Files = dict[Path, bytes]


def files_of(review: Review, form: str, output: Path, blind: bool) -> Files:
    """What to write, the file `output` first. form: csv, labelstudio, coco or huggingface.

    blind: without what the student says, so that nobody just follows it.
    """
    if form == "labelstudio":
        tasks = json.dumps([task(one, review.student, blind) for one in review.asked], indent=1)
        config = config_of(review.classes)
        return {output: tasks.encode(), output.with_suffix(".xml"): config.encode()}
    writers = {"csv": as_csv, "coco": as_coco, "huggingface": as_hugging_face}
    return {output: writers[form](review, blind)}


def as_csv(review: Review, blind: bool) -> bytes:
    """A line an image, with an empty cell a class: for 1, 0, or nothing where nobody looked."""
    lines = []
    for one in review.asked:
        line = {"image_id": as_text(one.image_id)}
        if not blind:
            says = "; ".join(f"{name} {p:.2f}" for name, p in one.says.items())
            line |= {"why": f"{one.why}: {one.about}", "says": says}
        lines.append(line | dict.fromkeys(review.classes, ""))
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")).encode()


def as_text(image_id: str) -> str:
    """An id that no spreadsheet takes for a formula or a number: the same path."""
    number = image_id.replace(".", "").replace("e", "").isdecimal()
    return f"{FORMULA}{image_id}" if number or is_formula(image_id) else image_id


def task(one: Asked, student: str, blind: bool) -> dict[str, object]:
    """A task of Label Studio's, with what the student says as its prediction."""
    data = {"image": f"{LOCAL_FILES}{quote(one.place)}", "image_id": one.image_id}
    if blind:
        return {"data": data}
    chosen = {
        "from_name": "classes",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(one.says)},
    }
    prediction = {"model_version": student, "score": one.sure, "result": [chosen]}
    return {"data": data | {"why": f"{one.why}: {one.about}"}, "predictions": [prediction]}


def config_of(classes: list[str]) -> str:
    """The labelling interface that belongs to the tasks, for Label Studio's settings."""
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="classes" toName="image" choice="multiple">\n{choices}  </Choices>\n'
        "</View>\n"
    )


def as_coco(review: Review, blind: bool) -> bytes:
    """COCO's form, an annotation a class that the student calls, its box the whole image."""
    number = {name: place for place, name in enumerate(review.classes, 1)}
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image, one in enumerate(review.asked, 1):
        size = {"width": one.width, "height": one.height}
        images.append({"id": image, "file_name": one.image_id} | size)
        for name, p in ({} if blind else one.says).items():
            place = {"bbox": [0, 0, one.width, one.height], "area": one.width * one.height}
            what = {"id": len(annotations) + 1, "image_id": image, "category_id": number[name]}
            annotations.append(what | place | {"iscrowd": 0, "score": p})
    categories = [{"id": place, "name": name} for name, place in number.items()]
    content = {"info": NOT_ANSWERED, "images": images}
    content |= {"annotations": annotations, "categories": categories}
    return json.dumps(content, indent=1).encode()


def as_hugging_face(review: Review, blind: bool) -> bytes:
    """A parquet file that `datasets` reads with its pictures, which stay where they are.

    `labels` is for the answers: null, until somebody looked; then a list, empty for no class.
    """
    number = {name: place for place, name in enumerate(review.classes)}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    several = pa.list_(pa.int64())
    columns = {
        "image": pa.array([{"bytes": None, "path": _absolute(one)} for one in review.asked], image),
        "image_id": pa.array([one.image_id for one in review.asked], pa.string()),
        "labels": pa.nulls(len(review.asked), several),
    }
    names = {"feature": {"names": review.classes, "_type": "ClassLabel"}, "_type": "List"}
    text = {"dtype": "string", "_type": "Value"}
    features: dict[str, object] = {"image": {"_type": "Image"}, "image_id": text, "labels": names}
    if not blind:
        said = [[number[name] for name in one.says] for one in review.asked]
        columns["says"] = pa.array(said, several)
        columns["why"] = pa.array([f"{one.why}: {one.about}" for one in review.asked], pa.string())
        features |= {"says": names, "why": text}
    note = json.dumps({"info": {"features": features}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": note})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _absolute(one: Asked) -> str:
    return str(Path(one.path).absolute())
