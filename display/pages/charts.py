"""Curves as inline SVG: a small chart for each family of values."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from dominate import svg
from dominate import tags as h

from training.meter import figure

WIDTH, HEIGHT = 400, 120  # viewBox of a chart, which is stretched to its place
BUCKETS = 200  # maximum number of points of a curve
COLORS = 5  # in page.css

Curve = tuple[Sequence[float], Sequence[float]]


def add_charts(curves: Mapping[str, Curve], metrics: Mapping[str, Curve] = MappingProxyType({})) -> None:
    """Add a chart per family of curves, x -> y, on the same x axis from 0. Call it inside a dominate tag.

    Curves whose names are the same up to the first underscore share a chart: cycle_A and cycle_B.

    Args:
        curves: name -> curve.
        metrics: shown first, with the best point of each marked.
    """
    end = max((x[-1] for x, _ in (*curves.values(), *metrics.values())), default=0)
    with h.section(cls="charts", aria_label="Curves", data_end=end):
        for family in _families(metrics):
            _add_chart(family, end, are_metrics=True)
        for family in _families(curves):
            _add_chart(family, end)


def _families(curves: Mapping[str, Curve]) -> list[dict[str, Curve]]:
    families: dict[str, dict[str, Curve]] = defaultdict(dict)
    for name, curve in curves.items():
        families[name.partition("_")[0]][name] = curve
    return list(families.values())


def best_point(name: str, curve: Curve) -> tuple[float, float] | None:
    """Return the best finite point (x, y) of the figure `name`, the first of equal ones; None if there is none."""
    points = [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)]
    sign = -1 if figure(name).higher else 1
    return min(points, key=lambda point: sign * point[1], default=None)


def _add_chart(family: Mapping[str, Curve], end: float, *, are_metrics: bool = False) -> None:
    summaries = {name: summarize(*curve, end) for name, curve in family.items()}
    low, high = limits(list(summaries.values()))
    titles = {name: figure(name).title if are_metrics else name for name in family}
    points = {name: best_point(name, curve) for name, curve in family.items()} if are_metrics else {}
    best = {name: point for name, point in points.items() if point}
    with h.figure(cls="chart measured" if are_metrics else "chart"):
        with h.figcaption():
            for number, (name, (_, values)) in enumerate(family.items()):
                label = h.span(h.b(titles[name]), f" {values[-1]:.4g}", cls=f"curve{number % COLORS}")
                if name in best:
                    label.add(h.span(f", best {best[name][1]:.4g} at {best[name][0]:,.0f} images", cls="best"))
        with h.div(cls="plot"):
            h.span(f"{high:.3g}", cls="high")
            h.span(f"{low:.3g}", cls="low")
            ends = ", ".join(f"{titles[name]} {values[-1]:.4g}" for name, (_, values) in family.items())
            plot = svg.svg(viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img", aria_label=ends)
            for number, (name, (x, mean, minimum, maximum)) in enumerate(summaries.items()):
                x = x / max(end, 1) * WIDTH
                mean, minimum, maximum = (HEIGHT - (y - low) / (high - low) * HEIGHT for y in (mean, minimum, maximum))
                band = [*zip(x, maximum, strict=True), *zip(x[::-1], minimum[::-1], strict=True)]
                cls = f"curve{number % COLORS}"
                plot.add(svg.polygon(points=_points(band), cls=f"band {cls}"))
                plot.add(svg.polyline(points=_points(list(zip(x, mean, strict=True))), cls=f"line {cls}"))
                if name in best:
                    at = best[name][0] / max(end, 1) * WIDTH, HEIGHT - (best[name][1] - low) / (high - low) * HEIGHT
                    # a line without length has round ends alone: a dot that stretching the chart leaves round
                    plot.add(svg.polyline(points=_points([at, at]), cls=f"dot {cls}"))
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
