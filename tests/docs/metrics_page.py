"""The tables of all metrics, for docs/reference/metrics.md."""

from __future__ import annotations

from octaskly.metrics.table import GROUPS, METRICS, Metric


def tables() -> str:
    """Return a table for each group."""
    return "\n".join(
        f"## {title}\n\n| Metric | Kind, labels | From | Meaning |\n"
        "| --- | --- | --- | --- |\n"
        + "".join(_row(metric) for metric in METRICS if metric.group == group)
        for group, title in GROUPS.items()
    )


def _row(metric: Metric) -> str:
    labels = "".join(f", `{label}`" for label in metric.labels)
    cells = (f"`{metric.name}`", f"{metric.kind}{labels}", metric.reported_by)
    return f"| {' | '.join((*cells, metric.help_text))} |\n"
