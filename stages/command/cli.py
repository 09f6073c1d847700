"""The `ccd` command: what people do with the pipeline beside `dvc repro`."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.command import cli_project
from stages.command.ending import fail, one_line, place_for
from stages.runtime.errors import clean
from stages.runtime.publishing import write_all_whole, write_whole

PUBLISHED = ("voc07", "voc12", "coco", "nuswide")
WRONG_USE: Any = typer.BadParameter.__base__  # of a command; typer itself names this kind alone
STUDENT = Path("data/classifier/student.safetensors")
app = typer.Typer(
    help="Annotation-free multi-label image classification. `dvc repro` runs the pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


for command in (
    cli_project.init,
    cli_project.doctor,
    cli_project.status,
    cli_project.compare,
    cli_project.inspect,
    cli_project.review,
    cli_project.update,
):
    app.command()(command)


class Format(StrEnum):
    """What `ccd predict` writes."""

    text = "text"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"ccd {version('ccd-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """What stands before the verbs."""


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead.")
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            help="text, json, csv or parquet; by default what --output ends with, text on a "
            "terminal, or json.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Name a class this probable, instead of at its own cut."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Name so many, the likeliest, however probable.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Make the student's scores probabilities; else as it says them, named from 1/2 on."
        ),
    ] = True,
    student: Annotated[
        Path,
        typer.Option(
            help="The classifier's weights, their .json beside them; or their folder; or what "
            "`ccd export` wrote, which answers sooner."
        ),
    ] = STUDENT,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="An image with more is not looked at, for want of memory.")
    ] = 100_000_000,
) -> None:
    """Name what is on images, with the trained student alone."""
    form = form or _format_of(output)
    if form is Format.parquet and output is None:
        fail("parquet cannot be printed: give --output", code=2)
    if top is not None and threshold is not None:
        fail("--top and --threshold: give one of them", code=2)
    if output is not None:
        place_for(output)
    with one_line():
        from stages.command.predict import images_in, named, predict_with_cuts
        from stages.command.predict_files import content

        table, own = predict_with_cuts(images_in(paths), student, max_pixels, calibrate)
        table.insert(3, "labels", named(table, own if threshold is None else threshold, top or 0))
        if output is None:
            sys.stdout.write(content(table, form).decode())
        else:
            write_whole(output, content(table, form))
    failed = table["status"] != "ok"
    for row in table[failed].itertuples():
        typer.echo(clean(f"ccd: {row.image}: {row.status} ({row.error})"), err=True)
    raise typer.Exit(int(failed.any()))


@app.command()
def export(
    output: Annotated[
        Path | None,
        typer.Argument(help="The file to write; none: where `ccd predict` asks it from then on."),
    ] = None,
    student: Annotated[
        Path, typer.Option(help="Its weights, their .json beside them, or the folder.")
    ] = STUDENT,
) -> None:
    """Write the classifier as an ONNX file, with its names, cuts and normalisation inside."""
    if output is not None:
        place_for(output)
        if output.suffix.lower() != ".onnx":
            fail(f"{output}: its name should end in .onnx", code=2)
    with one_line():
        from stages.command.exported import PLACE, SUFFIX, notes_beside
        from stages.command.predict import must_be_a_student, thresholds_for, weights_in

        student = weights_in(student)
        if student.suffix.lower() == SUFFIX:
            fail(f"{student} is exported already: name the weights that it was made of", 2)
        if output is None and student != STUDENT:
            fail(f"{student} is not the pipeline's own: name the file to write", 2)
        must_be_a_student(student)
        from stages.command.export import export as exported

        content, notes = exported(student, thresholds_for(student))
        place = output or PLACE
        place.parent.mkdir(exist_ok=True)
        write_all_whole({place: content, notes_beside(place): notes})
    typer.echo(clean(f"{place}: `images` in, `probabilities` out, the rest in its properties"))
    typer.echo(clean(f"{notes_beside(place)}: the same, for engines that do not give those out"))


@app.command()
def preset(
    dataset: Annotated[
        str,
        typer.Argument(
            help="voc12, voc07, coco, nuswide, nuswide_official, folder (yours), photographs "
            "(docs/photographs.md), demo."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="paper (its text), official (its script), recommended (default), laptop, instant"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead.")
    ] = None,
) -> None:
    """Print a params.yaml: `ccd preset voc12 --recipe paper -o params.yaml`."""
    from stages.command.preset import preset as text_of

    if output is not None:
        place_for(output)
    with one_line(code=2):
        text = text_of(dataset, recipe)
        if output is None:
            sys.stdout.write(text)
        else:
            write_whole(output, text.encode())


@app.command()
def fetch(
    dataset: Annotated[str, typer.Argument(help="voc07, voc12, coco or nuswide.")],
    yes: Annotated[bool, typer.Option("--yes", help="Download it.")] = False,
) -> None:
    """Say what a published data set is, where from and under what terms; with --yes, get it."""
    if dataset not in PUBLISHED:
        fail(f"nothing is known of {dataset!r}, but of {', '.join(PUBLISHED)}", 2)
    from stages.command.fetch import DATA_SETS, description
    from stages.command.fetch import fetch as fetch_data_set

    with one_line():
        typer.echo(description(dataset))
        if yes:
            fetch_data_set(dataset, typer.echo)
        elif DATA_SETS[dataset].archives:
            typer.echo(f"Nothing was downloaded. `ccd fetch {dataset} --yes` does it.")


@app.command()
def ladder() -> None:
    """Show the last evaluation: every label and classifier, from the teacher to the student."""
    from rich.console import Console
    from rich.table import Table

    from stages.artifacts import DOUBTS, REPORT, RESULTS
    from stages.storage.tables import read_csv

    with one_line():
        rungs = read_csv(RESULTS / "ladder.csv")
        doubts = read_csv(DOUBTS)
    table = Table("judged on", "images", "what", "mAP", "micro-AP", box=None)
    for rung in rungs.to_dict("records"):
        figures = [
            f"{rung[key]:.1f}" if rung[key] == rung[key] else "–" for key in ("mAP", "micro_AP")
        ]
        table.add_row(rung["split"], str(rung["images"]), rung["what"], *figures)
    Console(width=110).print(table)
    if not rungs["images"].any():
        typer.echo("There is no ground truth; results/metrics.json has what can be said without.")
    for line in _doubts(doubts):
        typer.echo(line)
    typer.echo(f"Report: {REPORT}")


@app.command()
def check() -> None:
    """Say what speaks against the last run, without any label; exit 1 if something does."""
    from stages.artifacts import DOUBTS
    from stages.storage.tables import read_csv

    with one_line():
        doubts = read_csv(DOUBTS)
    for line in _doubts(doubts):
        typer.echo(line)
    if len(doubts):
        raise typer.Exit(1)
    typer.echo("Nothing speaks against this run. How good it is, only labels can tell.")


@app.command()
def again() -> None:
    """Let the next `dvc repro` update the labels once more, by the classifier of the last run."""
    from stages.command.again import again as begin_again

    with one_line():
        place = begin_again()
    typer.echo(f"The last run's classifier is kept in {place}, and params.yaml begins with it: its")
    typer.echo("maps say where to look, and the training goes on from it. Now run `dvc repro`.")


def _doubts(table: Any) -> list[str]:
    """A line a doubt, with what to do."""
    return [clean(f"Doubt: {row.doubt}. What to do: {row.remedy}.") for row in table.itertuples()]


def _format_of(output: Path | None) -> Format:
    if output is None:
        return Format.text if sys.stdout.isatty() else Format.json
    known = {f".{form}": form for form in Format} | {".txt": Format.text}
    if output.suffix.lower() not in known:
        names = ".json, .csv, .parquet or .txt"
        fail(f"{output}: give --format, or a name that ends in {names}", code=2)
    return known[output.suffix.lower()]


def main() -> None:
    """The command; a wrong use of it ends with one line and 2, as all else that is wrong."""
    try:
        sys.exit(app(standalone_mode=False))
    except WRONG_USE as error:
        said = " ".join(error.format_message().split())
        if said:  # nothing where the help was shown
            command = error.ctx.command_path if error.ctx else "ccd"
            typer.echo(clean(f"ccd: {said} (see `{command} --help`)"), err=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("ccd: stopped", err=True)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
