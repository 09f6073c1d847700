"""The commands of a project: `ccd init`, `doctor`, `status`, `compare`, `inspect`, …"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stages.command.ending import fail, one_line, place_for
from stages.runtime.errors import clean

SECONDS = 10.0  # that a measurement takes


def init(
    place: Annotated[Path, typer.Argument(help="A new folder, for the project.")],
    images: Annotated[Path, typer.Option(help="The folder of your photographs; it stays there.")],
    classes: Annotated[str, typer.Option(help="A text file, one a line; or names by comma.")],
    labels: Annotated[
        Path | None, typer.Option(help="For evaluation alone: a .csv, .txt or .json.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="recommended (default), laptop, instant (no training), paper (its text), official."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter: key=value. Repeatable.")
    ] = None,
    examined: Annotated[
        bool, typer.Option("--doctor/--no-doctor", help="Then do what `ccd doctor` does there.")
    ] = True,
) -> None:
    """Make a project for a folder of photographs, beside which nothing is written."""
    from stages.command.init import init as make

    with one_line():
        found, params = make(place, images, classes, labels, recipe, settings or [])
    held_out = params.source.test_folder
    typer.echo(clean(f"{place}: {found} photographs (those below {held_out}/ are for testing)."))
    typer.echo(clean(f"params.yaml there has every setting. Now `cd {place} && dvc repro`."))
    if examined:
        os.chdir(place)
        with suppress(typer.Exit):  # the project is made, whatever is said of it
            _say_what_speaks_against_it(SECONDS)


def update() -> None:
    """Take up the installed version in a project that `ccd init` made; say what will run again."""
    from stages.command.init import update as take_up

    with one_line():
        changed = take_up()
    rerun = f"the code of {', '.join(changed)} is another" if changed else "no stage's code changed"
    typer.echo(f"code.yaml is of the installed version: {rerun}. `dvc status` has what that means.")


def status() -> None:
    """Say which stages `dvc repro` would run and why, and how large what they made is."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from stages.command.status import standings

    table = Table("stage", "dvc repro", "because", "artifacts", box=None)
    with one_line():
        for standing in standings():
            runs = {True: "runs it", False: "", None: "may run it"}[standing.runs]
            size = decimal(standing.size) if standing.size else ""
            table.add_row(standing.stage, runs, clean(standing.because), size)
    Console(width=None if sys.stdout.isatty() else 140).print(table, markup=False)


def compare(
    revision: Annotated[str, typer.Argument(help="A branch, tag or commit, with its results/.")],
    page: Annotated[
        Path | None, typer.Option("--page", help="A .html file, for the same as a page.")
    ] = None,
) -> None:
    """Show parameters and results here beside those committed at another revision."""
    from rich.console import Console
    from rich.table import Table

    from stages.command.compare import JUDGED, OF_CLASS, grid, said
    from stages.command.compare import compare as beside
    from stages.runtime.publishing import write_whole

    if page and page.suffix.lower() not in (".html", ".htm"):
        fail(f"--page {page}: its name should end with .html", 2)
    if page:
        place_for(page)
    with one_line():
        found = beside(revision)
        if page:
            from stages.command.compare_page import page as page_of

            write_whole(page, page_of(found, revision).encode())
    console = Console(width=None if sys.stdout.isatty() else 140)
    params = Table("parameter", revision, "here", box=None)
    for key, values in found.params.items():
        params.add_row(key, *(clean(said(value)) for value in values))
    if found.params:
        console.print(params, markup=False)
    else:
        typer.echo(f"The parameters are those of {revision}.")
    for table, names in ((found.ladder, JUDGED), (found.classes, OF_CLASS)):
        beside_each = grid(table, names)
        heads = [head for name in beside_each.figures for head in (name, "here", "change")]
        shown = Table(*beside_each.first, *heads, box=None)
        for row in beside_each.rows:
            shown.add_row(*map(clean, row))
        console.print(shown, markup=False)
    if page:
        typer.echo(f"{page} has it as a page.")


def inspect(
    image: Annotated[str, typer.Argument(help="Its id in data/index.parquet, or its path.")],
    drawn: Annotated[
        Path | None, typer.Option("--picture", help="A .png or .jpg, for the views drawn into it.")
    ] = None,
) -> None:
    """Show all that the last run knows of one image, stage by stage."""
    from rich.console import Console
    from rich.table import Table

    from stages.command.inspect import known_of, picture
    from stages.runtime.publishing import write_whole

    form = drawn and {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}.get(drawn.suffix.lower())
    if drawn and not form:
        fail(f"--picture {drawn}: its name should end with .png or .jpg", 2)
    if drawn:
        place_for(drawn)
    with one_line():
        known = known_of(image)
        row = known.row
        lines = [f"{row['image_id']}: {row['split']}, {row['width']} x {row['height']} pixels"]
        if row["status"] != "ok":
            if drawn:
                fail(f"--picture: {row['image_id']} is {row['status']}: {row['error']}")
            lines = [f"{row['image_id']}: {row['status']}, left out: {row['error']}"]
        elif drawn and form:
            write_whole(drawn, picture(known, form))
            lines.append(f"{drawn} has its {len(known.views)} views.")
    labels = Table("class", *known.labels, box=None)
    for name, values in known.labels.iterrows():
        labels.add_row(clean(str(name)), *(f"{v:.2f}" if v == v else "" for v in values))
    views = Table("view", "class", "x0", "y0", "x1", "y1", "says", box=None)
    for number, view in enumerate(known.views.itertuples(index=False), 1):
        views.add_row(str(number), *(clean(str(value)) for value in view))
    console = Console(width=None if sys.stdout.isatty() else 140)
    for line in lines:
        typer.echo(clean(line))
    for table in (labels, views):
        if table.row_count:
            console.print(table, markup=False)


class Form(StrEnum):
    """What `ccd review` writes."""

    csv = "csv"
    labelstudio = "labelstudio"
    coco = "coco"
    huggingface = "huggingface"


class Split(StrEnum):
    """Which images are asked about."""

    all = "all"
    train = "train"
    test = "test"


def review(
    output: Annotated[Path, typer.Argument(help="The file to write: .csv, .json or .parquet.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 100,
    split: Annotated[Split, typer.Option(help="Of which images.")] = Split.all,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format", help="By default csv, labelstudio (.json), huggingface (.parquet)."
        ),
    ] = None,
    anything: Annotated[
        bool, typer.Option("--random", help="Any images, instead of the most doubtful.")
    ] = False,
    blind: Annotated[
        bool, typer.Option("--blind", help="Leave out what the student says.")
    ] = False,
) -> None:
    """Write down which images somebody should look at; `source.answers` takes the answers."""
    from stages.runtime.params_file import PARAMS_FILE, read_yaml
    from stages.runtime.publishing import write_all_whole

    of_name = {".csv": Form.csv, ".json": Form.labelstudio, ".parquet": Form.huggingface}
    suffix_of = {form: suffix for suffix, form in of_name.items()} | {Form.coco: ".json"}
    suffix = output.suffix.lower()
    chosen = form or of_name.get(suffix)
    if chosen is None:
        fail(f"{output}: its name should end in .csv, .json or .parquet", 2)
    if suffix != suffix_of[chosen]:
        fail(f"{output}: the name of a file for {chosen} should end in {suffix_of[chosen]}", 2)
    place_for(output)
    taken = "is there already, perhaps with answers: name another file"
    if output.exists():
        fail(f"{output} {taken}")
    with one_line():
        read_yaml(PARAMS_FILE)  # or refuse, before what takes long is imported
        from stages.command.review import Wish
        from stages.command.review import review as images_to_ask
        from stages.command.review_files import files_of

        asked = images_to_ask(Wish(count, split, anything))
        files = files_of(asked, chosen, output, blind)
        for path in files:
            if path.exists():
                fail(f"{path} {taken}")
        write_all_whole(files)
    names = " and ".join(map(str, files))
    typer.echo(clean(f"{names}: {len(asked.asked)} images. Answered, name it as source.answers in"))
    typer.echo("params.yaml, and run `dvc repro`: docs/tasks.md has more.")


def doctor(
    seconds: Annotated[
        float, typer.Option(min=0, help="To measure in how long a run would take; 0: not at all.")
    ] = SECONDS,
) -> None:
    """Say whether a run can work here, and how long it would take; exit 1 if something is wrong."""
    raise typer.Exit(int(_say_what_speaks_against_it(seconds)))


def _say_what_speaks_against_it(seconds: float) -> bool:
    """A line a finding; whether there is something to do."""
    from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml

    wrong = False
    with one_line():
        params = parse_params(read_yaml(PARAMS_FILE))
        from stages.command.doctor import examine

        for finding in examine(params, seconds):
            line = f"{'!' if finding.remedy else ' '} {finding.what}: {finding.found}"
            typer.echo(clean(line))
            if finding.remedy:
                typer.echo(clean(f"    {finding.remedy}"))
                wrong = True
    return wrong
