"""What moved in a sensitivity study, as lines for the person at the terminal."""

from collections.abc import Iterator, Mapping, Sequence

from jobs.stability import Result


def lines(results: Sequence[Result]) -> Iterator[str]:
    """The results for the person at the terminal: percent and points, one decimal."""
    for each in results:
        where = f"{each['dataset']}/{each['split']}"
        yield f"{each['model']} on {where}: {each['attribute']}, viewed in {each['view']}"
        gaps = [by for by, moved in each["gaps"].items() if moved is not None]
        header = (
            "variant",
            "n",
            "accuracy %",
            *(f"gap by {by}, points" for by in gaps),
            "other answers %",
        )
        yield from _aligned([header, *(_cells(variant, gaps) for variant in each["variants"])])
        for what, moved in (("accuracy", each["accuracy"]), *_named(each["gaps"])):
            if moved is not None:
                yield (
                    f"{what}: mean {_points(moved['mean'])}, from {_points(moved['low'])} to "
                    f"{_points(moved['high'])}"
                )
        if each["mean_flip_rate"] is not None:
            yield f"two variants differ in {_points(each['mean_flip_rate'])} % of the rows"
        for repeat in each["again"]:
            yield _again_line(repeat)
        yield ""


def _cells(variant: Result, gaps: Sequence[str]) -> tuple[str, ...]:
    return (
        variant["protocol"],
        "-" if variant["n"] is None else f"{variant['n']:,}",
        _percent(variant["accuracy"]),
        *(_points(variant["gaps"].get(by)) for by in gaps),
        "-" if variant["flips"] is None else _percent(variant["flips"]["rate"]),
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _named(gaps: Mapping[str, Result | None]) -> Iterator[tuple[str, Result | None]]:
    for by, moved in gaps.items():
        yield f"gap by {by}", moved


def _again_line(repeat: Result) -> str:
    flipped, margins = repeat["flips"], repeat["margins"]
    if flipped is None:
        return f"again ({repeat['differs']}): no row in common"
    line = (
        f"again ({repeat['differs']}): {flipped['flipped']:,} of {flipped['rows']:,} answers "
        f"differ, {_percent(flipped['rate'])} %"
    )
    if margins is not None and margins["flipped"]["rows"]:
        line += (
            f"; median margin {margins['flipped']['median']:.2f} nats where they do, "
            f"{margins['all']['median']:.2f} overall"
        )
    return line


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _percent(interval: Mapping[str, float | None]) -> str:
    bounds = f"{_points(interval['ci_low'])}-{_points(interval['ci_high'])}"
    return "-" if interval["value"] is None else f"{_points(interval['value'])} [{bounds}]"
