"""The experiments' charts, in the style of the report's: tidy lines in, SVG text out."""

from __future__ import annotations

import altair as alt
import pandas as pd

from stages.page.charts import FUSED, GRID, INK, TEACHER, svg

STUDENT = "mean average precision of the student, %"


def bars(lines: pd.DataFrame, order: list[str], title: str = STUDENT) -> str:
    """Bars of the mean `mAP` of each `row`, which is written beside, and a dot a seed."""
    base = alt.Chart(lines).encode(
        y=alt.Y("row:N", sort=order, title=None, axis=alt.Axis(labelLimit=320)),
    )
    mean = base.mark_bar(color=TEACHER, height={"band": 0.6}).encode(
        x=alt.X("mean(mAP):Q", title=title)
    )
    text = base.mark_text(align="left", dx=8, color=INK).encode(
        x="max(mAP):Q", text=alt.Text("mean(mAP):Q", format=".1f")
    )
    seeds = base.mark_circle(size=40, color=FUSED, opacity=1).encode(x="mAP:Q")
    return svg((mean + seeds + text).properties(width=420, height={"step": 26}))


def curve(lines: pd.DataFrame, axis: str) -> str:
    """The mean `mAP` over the values of `row`, as a line, and a dot a seed."""
    x = alt.X("row:Q", title=axis, scale=alt.Scale(zero=False, padding=12))
    scale = alt.Scale(zero=False, padding=8)
    base = alt.Chart(lines.astype({"row": float}))
    mean = base.mark_line(color=FUSED).encode(x=x, y=alt.Y("mean(mAP):Q", title=STUDENT))
    seeds = base.mark_circle(size=50, opacity=0.8).encode(
        x=x,
        y=alt.Y("mAP:Q", title=STUDENT, scale=scale),
        color=alt.Color("seed:N", scale=alt.Scale(scheme="tableau10")),
    )
    return svg((mean + seeds).properties(width=380, height=240))


def dumbbells(lines: pd.DataFrame, order: list[str]) -> str:
    """A row a `class`, the most biased first: a dot for the mean `student_AP` of each `row`."""
    classes = lines.groupby("class")["bias"].mean().sort_values().index
    means = lines.groupby(["class", "row"], as_index=False)["student_AP"].mean()
    base = alt.Chart(means).encode(
        y=alt.Y("class:N", title="by bias, the least probable class first", sort=list(classes)),
        x=alt.X("student_AP:Q", title="average precision, %", scale=alt.Scale(zero=False)),
    )
    span = base.mark_line(color=GRID, strokeWidth=3).encode(detail="class:N")
    dots = base.mark_circle(size=90, opacity=1).encode(
        color=alt.Color(
            "row:N", sort=order, scale=alt.Scale(domain=order, range=[TEACHER, FUSED]), title=None
        )
    )
    return svg((span + dots).properties(width=420, height={"step": 20}))


def togetherness(pairs: pd.DataFrame) -> str:
    """A dot a pair of classes: how often seen `together`, how similar their maps, in `images`."""
    chart = (
        alt.Chart(pairs)
        .mark_circle(color=FUSED, opacity=0.8)
        .encode(
            x=alt.X("together:Q", title="share of images with one that have both"),
            y=alt.Y("similarity:Q", title="mean correlation of their maps"),
            size=alt.Size("images:Q", title="images with both maps"),
        )
    )
    return svg(chart.properties(width=380, height=240))


def reliability(bins: pd.DataFrame) -> str:
    """The share that is `true` over the probability that was `said`, a line a seed and kind."""
    x = alt.X("said:Q", title="probability", scale=alt.Scale(domain=[0, 1]))
    lines = (
        alt.Chart(bins)
        .mark_line(point=True)
        .encode(
            x=x,
            y=alt.Y("true:Q", title="share that is true", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("probabilities:N", scale=alt.Scale(range=[FUSED, TEACHER]), title=None),
            detail="seed:N",
        )
    )
    ends = pd.DataFrame({"said": [0, 1], "true": [0, 1]})
    even = alt.Chart(ends).mark_line(color=GRID, strokeDash=[4, 3]).encode(x=x, y="true:Q")
    return svg((even + lines).properties(width=300, height=300))
