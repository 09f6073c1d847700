"""`ccd export`: one ONNX file that says what `ccd predict` says, without torch."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from stages.command import export, predict
from stages.command.exported import PLACE, Exported, export_of, made_of
from stages.command.predict import images_in
from stages.method.cuts import Cuts
from stages.runtime import machine
from stages.runtime.code import ROOT
from stages.runtime.errors import UserError
from tests.conftest import CHROMIUM, MINI_CLASSES, Project

README = (ROOT / "README.md").read_text()
WITHOUT_TORCH = README.partition("without torch")[2].partition("```py\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def exported(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "classifier.onnx"
    finished.run("ccd", "export", str(place))
    return place


def test_it_says_what_predict_says_of_every_photograph(finished: Project, exported: Path):
    """By the lines of the README, in a process that has no torch."""
    seen = Image.open(finished / "photos/test/00000.jpg").convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize(seen.size))
    seen.save(exported.parent / "seen through.png")
    photos = ("photos", f"{exported.parent}/seen through.png")
    finished.run("ccd", "predict", *photos, "-o", f"{exported.parent}/said.parquet")
    said = pd.read_parquet(exported.parent / "said.parquet")
    said = said[said["status"] == "ok"]
    dump = "\nimport sys; np.save('found.npy', probabilities); assert 'torch' not in sys.modules\n"
    code = WITHOUT_TORCH.replace('["a.jpg", "b.jpg"]', "sys.argv[1:]") + dump
    files = [str(finished / name) for name in said["image"]]
    assert len(files) > 30
    command = [sys.executable, "-c", f"import sys\n{code}", *files]
    done = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(exported.parent / "found.npy")
    assert found.shape == (len(files), len(MINI_CLASSES))
    assert found == pytest.approx(said[list(MINI_CLASSES)].to_numpy(), abs=1e-4)
    named = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert [sorted(names) for names in named] == [sorted(names) for names in said["labels"]]


def test_names_and_cuts_are_inside(finished: Project, exported: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    cuts = pd.read_parquet(finished / "data/thresholds.parquet")
    assert tuple(json.loads(notes["classes"])) == MINI_CLASSES
    assert json.loads(notes["thresholds"]) == pytest.approx(cuts["threshold"], abs=1e-5)
    assert notes["size"] == "64"
    beside = json.loads(exported.with_name("classifier.onnx.json").read_text())
    assert beside == {
        key: value if key == "about" else json.loads(value) for key, value in notes.items()
    }


@pytest.fixture(scope="module")
def served(exported: Path) -> Iterator[str]:
    """The page of the docs, the model and ONNX Runtime's package for browsers, by HTTP."""
    folder = exported.parent
    shutil.copy(ROOT / "docs/browser.html", folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "onnxruntime-web@1.30.0"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True)
    serve = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_a_browser_says_what_predict_says_of_every_photograph(
    finished: Project, exported: Path, served: str, browser: Any
):
    seen = Image.open(finished / "photos/test/00001.jpg")
    made = exported.parent / "photos"
    made.mkdir()
    turned = seen.getexif()
    turned[0x0112] = 6  # a phone held upright
    seen.crop((0, 0, 120, 50)).save(made / "turned.jpg", exif=turned)
    for number, size in enumerate([(50, 120), (120, 65), (90, 90), (64, 90), (70, 40)]):
        seen.resize(size).save(made / f"{number}.png")
    seen.resize((31, 40)).save(made / "small.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"____"), (b"gXYZ", b"rXYZ"), (b"____", b"gXYZ")):
        profile = profile.replace(old, new)  # its red is green: nobody here looks at profiles
    seen.save(made / "profile.jpg", icc_profile=profile)
    clear = seen.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(seen.size).point(lambda v: 255 * (v > 99)))
    clear.save(made / "clear.png")
    for photo in (finished / "photos").rglob("*.jpg"):
        shutil.copy(photo, made / f"{photo.parent.name}-{photo.name}")
    finished.run("ccd", "predict", str(made), "-o", f"{exported.parent}/here.parquet")
    said = pd.read_parquet(exported.parent / "here.parquet")
    said = said[said["status"] == "ok"]
    assert len(said) > 30
    page = browser.new_page()
    page.goto(f"{served}/browser.html")
    page.wait_for_function("window.look !== undefined")
    ask = "async (name) => [...await look(await (await fetch(`photos/${name}`)).blob())]"
    found = [page.evaluate(ask, Path(image).name) for image in said["image"]]
    assert np.array(found) == pytest.approx(said[list(MINI_CLASSES)].to_numpy(), abs=1e-4)
    first = said.iloc[0]
    page.locator("input").set_input_files(first["image"])
    named = ", ".join(name for name in MINI_CLASSES if name in first["labels"]) or "–"
    page.get_by_text(f"{Path(first['image']).name}: {named}").wait_for(timeout=5000)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["data/classifier/student.safetensors"], 2, "its name should end in .onnx"),
        (["photos"], 2, "photos is a folder"),
        (["gone/a.onnx"], 2, "there is no folder gone"),
        (["a.onnx", "--student", "gone.safetensors"], 1, "gone.json is not there"),
        (["--student", "gone.safetensors"], 2, "is not the pipeline's own: name the file to write"),
        (["a.onnx", "--student", "README.md"], 1, "README.json is not there"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(
    finished: Project, words: list[str], code: int, why: str
):
    done = finished.run("ccd", "export", *words, check=False)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (finished / "a.onnx").exists()


def test_predict_asks_an_exported_classifier_as_it_asks_the_student(
    finished: Project, exported: Path
):
    said = {}
    for name, student in (("torch", ()), ("onnx", ("--student", str(exported)))):
        output = exported.parent / f"{name}.parquet"
        finished.run("ccd", "predict", "photos", *student, "-o", str(output))
        said[name] = pd.read_parquet(output)
    theirs, ours = said["torch"], said["onnx"]
    assert len(ours) > 30
    assert list(ours) == list(theirs)
    columns = list(MINI_CLASSES)
    assert ours[columns].to_numpy() == pytest.approx(theirs[columns].to_numpy(), abs=1e-4)
    assert [list(names) for names in ours["labels"]] == [list(names) for names in theirs["labels"]]


ALONE = """
import resource, sys
from stages.command.cli import app
sys.argv = ["ccd", "predict", "photos/test/00000.jpg", *sys.argv[1:]]
try: app()
except SystemExit as end: assert not end.code
used = resource.getrusage(resource.RUSAGE_SELF)
print("torch" in sys.modules, used.ru_utime + used.ru_stime)
"""


def asked_alone(project: Project, *words: str) -> tuple[bool, float, str]:
    """Whether a process wanted torch, its seconds of processor time, and what it warned of."""
    done = project.run(sys.executable, "-c", ALONE, *words)
    assert "photos/test/00000.jpg" in done.stdout
    torch, seconds = done.stdout.splitlines()[-1].split()
    return torch == "True", float(seconds), done.stderr


def test_an_exported_classifier_is_asked_without_torch_and_at_once(
    finished: Project, exported: Path
):
    torch, seconds, _ = asked_alone(finished, "--student", str(exported))
    assert not torch
    assert seconds < 2


def test_what_was_exported_is_asked_in_the_students_place(project: Project):
    project.run("ccd", "predict", "photos", "-o", "torch.parquet")
    project.run("ccd", "export")
    torch, seconds, said = asked_alone(project)
    assert not torch
    assert "ccd:" not in said
    assert seconds < 2
    project.run("ccd", "predict", "photos", "-o", "onnx.parquet")
    theirs, ours = (pd.read_parquet(project / f"{name}.parquet") for name in ("torch", "onnx"))
    columns = list(MINI_CLASSES)
    assert ours[columns].to_numpy() == pytest.approx(theirs[columns].to_numpy(), abs=1e-4)
    assert asked_alone(project, "--no-calibrate")[0]
    assert project.repro() == []
    (project / "data/thresholds.parquet").unlink()
    torch, _, said = asked_alone(project)
    assert torch
    assert "classifier.onnx is of another classifier and not used" in said


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A student and its cuts, as far as digests know them, and their export in its place."""
    monkeypatch.chdir(tmp_path)
    student, cuts = Path("student.safetensors"), Path("cuts")
    student.write_bytes(b"weights")
    cuts.write_bytes(b"cuts")
    student.with_suffix(".json").write_text('{"precision": "float32"}')
    PLACE.parent.mkdir()
    PLACE.write_bytes(model(NOTES | {"made_of": json.dumps(made_of(student, cuts))}))
    return student, cuts


@pytest.mark.parametrize("changed", ["student.safetensors", "student.json", "cuts", PLACE])
def test_what_was_exported_of_another_classifier_is_not_asked(
    left: tuple[Path, Path], capsys: pytest.CaptureFixture[str], changed: str
):
    assert export_of(*left) is not None
    assert capsys.readouterr().err == ""
    path = Path(changed)
    path.write_bytes(model(NOTES) if changed == PLACE else path.read_bytes() + b" ")
    assert export_of(*left) is None
    said = capsys.readouterr().err
    assert f"{PLACE} is of another classifier and not used: `ccd export` writes" in said


def test_an_export_without_cuts_is_of_a_classifier_without(left: tuple[Path, Path]):
    student, _ = left
    assert export_of(student, None) is None
    PLACE.write_bytes(model(NOTES | {"made_of": json.dumps(made_of(student, None))}))
    assert export_of(student, None) is not None
    assert export_of(*left) is None


@pytest.mark.parametrize("fault", ["damaged", "no onnxruntime"])
def test_where_an_export_cannot_be_run_torch_is_asked(
    left: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
):
    if fault == "damaged":
        PLACE.write_bytes(PLACE.read_bytes()[:-40])
    else:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_of(*left) is None
    assert "; torch is asked instead" in capsys.readouterr().err


def test_a_student_in_half_precision_is_not_replaced_by_its_export(left: tuple[Path, Path]):
    student, cuts = left
    student.with_suffix(".json").write_text('{"precision": "bfloat16"}')
    PLACE.write_bytes(model(NOTES | {"made_of": json.dumps(made_of(student, cuts))}))
    assert export_of(student, cuts) is None


def test_a_classifier_that_changes_while_it_is_exported_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)
    weights, thresholds = Path("data/classifier/student.safetensors"), Path("data/cuts.parquet")
    shutil.copy("data/thresholds.parquet", thresholds)
    read = export.cuts_in

    def meanwhile(path: Path) -> Cuts:
        cuts = read(path)
        with path.open("ab") as file:
            file.write(b" ")
        return cuts

    monkeypatch.setattr(export, "cuts_in", meanwhile)
    with pytest.raises(UserError, match="changed meanwhile: export again"):
        export.export(weights, thresholds)


def test_where_there_is_a_gpu_torch_is_asked(
    project: Project, exported: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)
    student, photos = Path("data/classifier/student.safetensors"), images_in([Path("photos/test")])
    PLACE.parent.mkdir(exist_ok=True)
    shutil.copy(exported, PLACE)
    monkeypatch.setattr(predict, "predict", lambda *_: pytest.fail("torch was asked"))
    assert len(predict.predict_with_cuts(photos, student, 10**8, calibrate=True)[0]) == len(photos)
    monkeypatch.setattr(machine, "is_without_gpu", lambda: False)
    with pytest.raises(pytest.fail.Exception, match="torch was asked"):
        predict.predict_with_cuts(photos, student, 10**8, calibrate=True)


def test_a_gpu_is_seen_without_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidiactl")
    monkeypatch.delenv("CCD_DEVICE", raising=False)
    assert not machine.is_without_gpu()
    monkeypatch.setenv("CCD_DEVICE", "cpu")
    assert machine.is_without_gpu()
    monkeypatch.setenv("CCD_DEVICE", "cuda:1")
    assert not machine.is_without_gpu()
    monkeypatch.delenv("CCD_DEVICE")
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert machine.is_without_gpu()


NOTES = {
    "classes": '["a", "b", "c"]', "thresholds": "[0.5, 0.5, 0.5]", "size": "4", "made_of": "{}",
}  # fmt: skip
FOREIGN: dict[str, dict[str, str]] = {
    "no notes": {},
    "no cuts": {key: NOTES[key] for key in ("classes", "size", "made_of")},
    "no JSON": NOTES | {"classes": "a, b, c"},
    "no list of classes": NOTES | {"classes": "3"},
    "cuts that are no numbers": NOTES | {"thresholds": '["x", "y", "z"]'},
    "fewer cuts than classes": NOTES | {"thresholds": "[0.5, 0.5]"},
    "fewer classes than outputs": NOTES | {"classes": '["a", "b"]', "thresholds": "[0.5, 0.5]"},
    "no size": NOTES | {"size": '"four"'},
    "a negative size": NOTES | {"size": "-1"},
    "a size beyond memory": NOTES | {"size": "100000000"},
    "another graph": NOTES,
}


def model(notes: dict[str, str]) -> bytes:
    """Of pictures of four by four pixels it says their mean colours, with these notes."""
    import onnx

    of = onnx.helper
    seen = of.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", 4, 4, 3])
    said = of.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["n", 3])
    cast = of.make_node("Cast", ["images"], ["numbers"], to=onnx.TensorProto.FLOAT)
    mean = of.make_node("ReduceMean", ["numbers"], ["probabilities"], axes=[1, 2], keepdims=0)
    graph = of.make_graph([cast, mean], "g", [seen], [said])
    made = of.make_model(graph, opset_imports=[of.make_opsetid("", 17)], ir_version=9)
    of.set_model_props(made, notes)
    content: bytes = made.SerializeToString()
    return content


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_model_of_somebody_elses_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "some.onnx"
    path.write_bytes(model(FOREIGN[kind]))
    if kind == "another graph":
        path.write_bytes(model(NOTES).replace(b"probabilities", b"probabilitIes"))
    with pytest.raises(UserError, match=r"some\.onnx is not of `ccd export`"):
        Exported(path)


def test_an_exported_classifier_is_one_file_to_the_end(tmp_path: Path):
    path = tmp_path / "some.onnx"
    path.write_bytes(model(NOTES))
    exported = Exported(path)
    path.unlink()
    views = np.full((exported.batch, 4, 4, 3), 7, np.uint8)
    assert (exported.scores(views) == 7).all()
    assert exported.scores(views[:3]).shape == (3, 3)


def test_a_model_that_fails_at_work_is_one_line(tmp_path: Path):
    path = tmp_path / "some.onnx"
    path.write_bytes(model(NOTES))
    exported = Exported(path)
    with pytest.raises(UserError, match=r"some\.onnx: ONNX Runtime fails: "):
        exported.scores(np.zeros((2, 5, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "gone.onnx is not there: `ccd export"),
        (b"no model", "some.onnx is damaged, or no ONNX file"),
        (b"", "some.onnx is damaged, or no ONNX file"),
    ],
)
def test_what_is_no_exported_classifier_is_one_line(
    finished: Project, tmp_path: Path, content: bytes | None, said: str
):
    path = tmp_path / ("gone.onnx" if content is None else "some.onnx")
    if content is not None:
        path.write_bytes(content)
    done = finished.run("ccd", "predict", "photos/test", "--student", str(path), check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_exported_classifiers_calibration_cannot_be_left_out(finished: Project, exported: Path):
    command = ("ccd", "predict", "photos/test", "--no-calibrate", "--student", str(exported))
    done = finished.run(*command, check=False)
    assert done.returncode == 1
    assert "has its calibration inside: leave --no-calibrate out" in done.stderr


def test_photographs_are_decoded_as_for_the_pipeline():
    from stages.images import crops

    assert predict.DETAIL == crops.DETAIL
