"""The report's charts: data frames in, SVG text out, drawn by Vega without browser or network."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import vl_convert

INK, QUIET, GRID = "#1f2933", "#5f6b78", "#e4e7eb"
INITIAL, LOCAL, FUSED, TEACHER = "#9fb3c8", "#f0b429", "#2186eb", "#cbd2d9"
TRUE = "#3ebd93"
CLASS = 24  # pixels that a class takes at least, of a chart of all classes


def ladder(rungs: pd.DataFrame) -> str:
    """Horizontal bars of `mAP` for each `what`, coloured by `split`; in the table's order."""
    base = alt.Chart(rungs).encode(
        y=alt.Y("what:N", sort=list(rungs["what"]), title=None, axis=alt.Axis(labelLimit=420)),
        x=alt.X("mAP:Q", scale=alt.Scale(domain=[0, 100]), title="mean average precision, %"),
    )
    colour = alt.Color(
        "split:N",
        scale=alt.Scale(domain=["train", "test"], range=[LOCAL, FUSED]),
        title="judged on",
    )
    labels = base.mark_text(align="left", dx=4, color=INK).encode(
        text=alt.Text("mAP:Q", format=".1f")
    )
    return svg((base.mark_bar(height=16).encode(color=colour) + labels).properties(width=420))


def bias(table: pd.DataFrame) -> str:
    """Bars of `bias` by `class`, greatest first, pale where not `measured` (Figure 2d)."""
    across = max(560, CLASS * len(table))
    base = alt.Chart(table).encode(
        x=alt.X("class:N", sort="-y", title=None, axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("bias:Q", scale=alt.Scale(domain=[0, 1]), title="mean top-1 probability"),
    )
    solid = alt.condition("datum.measured", alt.value(1), alt.value(0.35))
    bars = base.mark_bar(color=FUSED, width={"band": 0.7}).encode(opacity=solid)
    mean = alt.Chart(table).mark_rule(color=INK, strokeDash=[4, 3]).encode(y="mean(bias):Q")
    text = base.mark_text(dy=-6, color=INK, fontSize=9).encode(
        text=alt.Text("bias:Q", format=".2f")
    )
    return svg((bars + mean + text).properties(width=across, height=200))


def label_counts(table: pd.DataFrame, order: list[str]) -> str:
    """Grouped bars of `share` by `class` and `source`, one colour a source (Figure 10)."""
    colours = [TRUE, TEACHER, INITIAL, FUSED][-len(order) :]
    chart = (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("class:N", sort=None, title=None, axis=alt.Axis(labelAngle=-45)),
            xOffset=alt.XOffset("source:N", sort=order),
            y=alt.Y("share:Q", title="share of all positives", axis=alt.Axis(format="%")),
            color=alt.Color(
                "source:N", sort=order, scale=alt.Scale(range=colours, domain=order), title=None
            ),
        )
    )
    across = max(620, 2 * CLASS * table["class"].nunique())
    return svg(chart.properties(width=across, height=200))


def label_values(table: pd.DataFrame, order: list[str]) -> str:
    """How often each label value occurs: `images` per `value`, one panel a `source`; log scale."""
    chart = (
        alt.Chart(table)
        .mark_bar(color=FUSED)
        .encode(
            x=alt.X(
                "value:Q", bin="binned", title="label value", axis=alt.Axis(values=[0, 0.5, 1])
            ),
            x2="end:Q",
            y=alt.Y("images:Q", scale=alt.Scale(type="symlog"), title="labels (log scale)"),
            column=alt.Column(
                "source:N", sort=order, title=None, header=alt.Header(labelColor=INK)
            ),
        )
    )
    return svg(chart.properties(width=170, height=130))


def training(history: pd.DataFrame) -> str:
    """Losses and training mAP over the epochs; a rule at the epoch that was kept."""
    losses = history.melt(
        ["epoch"], ["label_loss", "consistency_loss"], var_name="loss", value_name="value"
    )
    losses = losses[losses["value"] > 0]
    x = alt.X(
        "epoch:Q", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, padding=12)
    )
    left = (
        alt.Chart(losses)
        .mark_line(point=True)
        .encode(
            x=x,
            y=alt.Y("value:Q", scale=alt.Scale(zero=False), title="loss"),
            color=alt.Color("loss:N", title=None, scale=alt.Scale(range=[LOCAL, FUSED])),
        )
    )
    right = (
        alt.Chart(history)
        .mark_line(point=True, color=TRUE)
        .encode(
            x=x,
            y=alt.Y("train_mAP:Q", scale=alt.Scale(zero=False), title="mAP against the labels, %"),
        )
    )
    kept = history[history["kept"] == 1]
    stop = alt.Chart(kept).mark_rule(color=INK, strokeDash=[4, 3]).encode(x=x)
    update = (
        alt.Chart(history[history["stage"] == "warmup"])
        .mark_rule(color=QUIET)
        .encode(x=alt.X("end:Q", title="epoch"))
        .transform_aggregate(last="max(epoch)")
        .transform_calculate(end="datum.last + 0.5")
    )
    panels = [(part + stop + update).properties(width=300, height=200) for part in (left, right)]
    return svg(alt.hconcat(*panels))


def per_class(table: pd.DataFrame, order: list[str]) -> str:
    """One row a `class`, the last scorer's best first: a dot for the `AP` of each `scorer`."""
    colours = [TEACHER, LOCAL, FUSED]
    last = table[table["scorer"] == order[-1]].sort_values("AP", ascending=False, kind="stable")
    best = list(last["class"])
    base = alt.Chart(table).encode(
        y=alt.Y("class:N", title=None, sort=best),
        x=alt.X("AP:Q", scale=alt.Scale(domain=[0, 100]), title="average precision, %"),
    )
    span = base.mark_line(color=GRID, strokeWidth=3).encode(detail="class:N")
    dots = base.mark_circle(size=90, opacity=1).encode(
        color=alt.Color(
            "scorer:N", sort=order, scale=alt.Scale(domain=order, range=colours), title=None
        )
    )
    return svg((span + dots).properties(width=460, height={"step": 20}))


def precision_recall(curves: pd.DataFrame, order: list[str]) -> str:
    """Precision over recall for each `scorer`, all (image, class) pairs as one ranking."""
    chart = (
        alt.Chart(curves)
        .mark_line()
        .encode(
            x=alt.X("recall:Q", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("precision:Q", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "scorer:N",
                sort=order,
                scale=alt.Scale(domain=order, range=[QUIET, LOCAL, FUSED]),
                title=None,
            ),
            order="recall:Q",
        )
    )
    return svg(chart.properties(width=300, height=220))


def svg(chart: Any) -> str:
    """A chart as SVG text, in the report's style."""
    styled = chart.configure(
        font="system-ui, sans-serif",
        background="transparent",
        axis=alt.AxisConfig(
            gridColor=GRID, domainColor=QUIET, tickColor=QUIET, labelColor=INK, titleColor=QUIET
        ),
        legend=alt.LegendConfig(
            orient="top", columnPadding=24, labelLimit=0, labelColor=INK, titleColor=QUIET
        ),
        view=alt.ViewConfig(stroke=None),
    )
    text: str = vl_convert.vegalite_to_svg(styled.to_dict(validate=False))
    return text
