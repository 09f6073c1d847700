"""The page of `ccd compare --page`: parameters and results beside others, as the report looks."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import pandas as pd
from jinja2 import Environment, StrictUndefined

from stages import page as report
from stages.command.compare import JUDGED, OF_CLASS, Comparison, grid, said
from stages.page.charts import FUSED, GRID, INITIAL, svg

HERE = "this folder"
TEMPLATE = Path(__file__).parent / "compare.html"
STYLE = Path(report.__file__).parent / "page.css"


def page(of: Comparison, revision: str) -> str:
    """The whole page, as HTML."""
    engine = Environment(autoescape=True, undefined=StrictUndefined)
    return engine.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        style=STYLE.read_text(encoding="utf-8"),
        revision=revision,
        params=[(key, *map(said, values)) for key, values in of.params.items()],
        ladder=grid(of.ladder, JUDGED),
        ladder_chart=apart(of.ladder, "what", "mAP", revision),
        classes=grid(of.classes, OF_CLASS),
        classes_chart=apart(of.classes, "class", "student_AP", revision),
    )


def apart(table: pd.DataFrame, what: str, figure: str, revision: str) -> str:
    """A line for each `what`, from the figure there to the one here; nothing if there is none."""
    names = {f"{figure} there": revision, f"{figure} here": HERE}
    seen = table[[what, *names]].dropna()
    if seen.empty:
        return ""
    dots = seen.rename(columns={what: "what"}).melt("what", var_name="of", value_name="percent")
    dots["of"] = dots["of"].map(names)
    y = alt.Y("what:N", sort=list(seen[what]), title=None, axis=alt.Axis(labelLimit=320))
    x = alt.X("percent:Q", title="average precision, %", scale=alt.Scale(zero=False, padding=12))
    line = alt.Chart(dots).mark_line(color=GRID, strokeWidth=3).encode(y=y, x=x, detail="what:N")
    colours = alt.Scale(domain=list(names.values()), range=[INITIAL, FUSED])
    colour = alt.Color("of:N", scale=colours, title=None)
    points = alt.Chart(dots).mark_circle(size=70, opacity=1).encode(y=y, x=x, color=colour)
    # the fonts that browsers take are wider than those that the labels were measured by
    room = {"left": 48, "right": 8, "top": 4, "bottom": 4}
    return svg((line + points).properties(width=420, height={"step": 24}, padding=room))
