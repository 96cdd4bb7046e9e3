"""Curves as inline SVG: a small chart for each family of values."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from dominate import svg
from dominate import tags as h

WIDTH, HEIGHT = 400, 120  # viewBox of a chart, which is stretched to its place
BUCKETS = 200  # maximum number of points of a curve
COLORS = 5  # in page.css

Curve = tuple[Sequence[float], Sequence[float]]


def add_charts(curves: Mapping[str, Curve]) -> None:
    """Add a chart per family of curves, x -> y, on the same x axis from 0. Call it inside a dominate tag.

    Curves whose names are the same up to the first underscore share a chart: cycle_A and cycle_B.
    """
    families: dict[str, dict[str, Curve]] = defaultdict(dict)
    for name, curve in curves.items():
        families[name.partition("_")[0]][name] = curve
    end = max((x[-1] for x, _ in curves.values()), default=0)
    with h.section(cls="charts", aria_label="Curves", data_end=end):
        for family in families.values():
            _add_chart(family, end)


def _add_chart(family: Mapping[str, Curve], end: float) -> None:
    summaries = {name: summarize(*curve, end) for name, curve in family.items()}
    low, high = limits(list(summaries.values()))
    with h.figure(cls="chart"):
        with h.figcaption():
            for number, (name, (_, values)) in enumerate(family.items()):
                h.span(h.b(name), f" {values[-1]:.4g}", cls=f"curve{number % COLORS}")
        with h.div(cls="plot"):
            h.span(f"{high:.3g}", cls="high")
            h.span(f"{low:.3g}", cls="low")
            ends = ", ".join(f"{name} {values[-1]:.4g}" for name, (_, values) in family.items())
            plot = svg.svg(viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img", aria_label=ends)
            for number, (x, mean, minimum, maximum) in enumerate(summaries.values()):
                x = x / max(end, 1) * WIDTH
                mean, minimum, maximum = (HEIGHT - (y - low) / (high - low) * HEIGHT for y in (mean, minimum, maximum))
                band = [*zip(x, maximum, strict=True), *zip(x[::-1], minimum[::-1], strict=True)]
                cls = f"curve{number % COLORS}"
                plot.add(svg.polygon(points=_points(band), cls=f"band {cls}"))
                plot.add(svg.polyline(points=_points(list(zip(x, mean, strict=True))), cls=f"line {cls}"))
            plot.add(svg.line(x1=WIDTH, x2=WIDTH, y1=0, y2=HEIGHT, cls="current"))


def summarize(x: Sequence[float], y: Sequence[float], end: float) -> tuple[np.ndarray, ...]:
    """Reduce the finite points of a curve on [0, end] to at most BUCKETS: x, mean, minimum and maximum of y."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if not len(xs):
        return (xs,) * 4
    bucket = np.minimum(xs / max(end, 1) * BUCKETS, BUCKETS - 1).astype(int)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    counts = np.diff(starts, append=len(xs))
    means = [np.add.reduceat(values, starts) / counts for values in (xs, ys)]
    return (*means, np.minimum.reduceat(ys, starts), np.maximum.reduceat(ys, starts))


def limits(summaries: Sequence[tuple[np.ndarray, ...]]) -> tuple[float, float]:
    """Return the limits of the y axis: all means but the highest 1%, since losses often start high, and a margin."""
    means = np.concatenate([mean for _, mean, _, _ in summaries])
    if not len(means):
        return 0.0, 1.0
    low, high = float(means.min()), float(np.quantile(means, 0.99))
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 0.1
    return (low if low == 0 else low - margin), high + margin


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
