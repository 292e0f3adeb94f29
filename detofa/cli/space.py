"""`detofa space`: what a search space holds."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from detofa.cli.display import print_record, show_table
from detofa.cli.options import ImageSizes, Json, image_sizes
from detofa.units import format_count

if TYPE_CHECKING:
    from detofa.space import SearchSpace

app = typer.Typer(help="Look at search spaces.")


@app.callback()
def _space() -> None:
    """Look at search spaces."""


@app.command("show")
def show(
    name: Annotated[str | None, typer.Argument(help="A space; all that ship if left out.")] = None,
    image_size: ImageSizes = None,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the data.")] = 80,
    _json: Json = False,
) -> None:
    """Show a space's exact size, its choices, and the range of compute and parameters."""
    sizes = image_sizes(image_size)

    from detofa.presets import PRESETS, preset

    if name is None:
        spaces = [preset(each, num_classes=num_classes, image_sizes=sizes) for each in PRESETS]
        print_record("spaces", {"spaces": [_summary(space) for space in spaces]})
        columns = ["space", "detectors", "input sizes", "MACs", "parameters"]
        show_table("", columns, [_row(space) for space in spaces])
        print("`detofa space show NAME` shows the choices of one")
        return
    space = preset(name, num_classes=num_classes, image_sizes=sizes)
    print_record("space", {**_summary(space), "space": space.to_json()})
    _, _, sizes_text, macs, params = _row(space)
    print(f"{space.name}: {space.size:,} detectors, {num_classes} classes, input {sizes_text}")
    print(f"smallest to largest: {macs} MACs, {params} parameters")
    rows = [
        [
            f"stage {index}",
            str(stage.channels),
            str(stage.stride),
            _options(stage.depths),
            _options(stage.kernel_sizes),
            _options(stage.expand_ratios),
            stage.activation + (", squeeze-excite" if stage.squeeze_excite else ""),
        ]
        for index, stage in enumerate(space.stages)
    ]
    columns = ["", "channels", "stride", "depth", "kernel", "expand", "activation"]
    show_table("", columns, rows)
    _show_parts(space)
    print(f"neck width: {_options(space.neck_widths)}")
    print(f"head width: {_options(space.head_widths)}; depth: {_options(space.head_depths)}")


def _show_parts(space: "SearchSpace") -> None:
    """Show the exact compute and parameters of each part of both ends of a space."""
    from detofa.profiling.cost import macs_cost, num_params_cost

    macs, params = (cost(space).per_part(space.ends) for cost in (macs_cost, num_params_cost))
    rows = [
        [part.replace("_", " and ")]
        + [format_count(float(values[part][end])) for end in (0, 1) for values in (macs, params)]
        for part in macs
    ]
    columns = ["", "MACs of the smallest", "parameters", "MACs of the largest", "parameters"]
    show_table("", columns, rows)


def _summary(space: "SearchSpace") -> dict[str, Any]:
    from detofa.profiling.cost import arch_macs, arch_num_params

    ends = (space.smallest, space.largest)
    return {
        "name": space.name,
        "detectors": space.size,
        "num_classes": space.num_classes,
        "image_sizes": space.image_sizes,
        "macs": [arch_macs(space, arch) for arch in ends],
        "num_params": [arch_num_params(space, arch) for arch in ends],
    }


def _row(space: "SearchSpace") -> list[str]:
    summary = _summary(space)
    sizes = ", ".join(f"{height}x{width}" for height, width in space.image_sizes)
    ranges = [" to ".join(map(format_count, summary[cost])) for cost in ("macs", "num_params")]
    return [space.name, f"{space.size:.3g}", sizes, *ranges]


def _options(values: tuple[int, ...]) -> str:
    return " or ".join(str(value) for value in values)
