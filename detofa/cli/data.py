"""`detofa data`: look at a data set, check it, split it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import print_record, show_table
from detofa.cli.options import Json, Seed, parsed
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.data.check import CheckReport

app = typer.Typer(help="Check and split data sets in COCO, VOC or YOLO layout.")
Folder = Annotated[Path, typer.Argument(help="The data set's folder.", metavar="DIR")]


@app.command("check")
def check(
    folder: Folder,
    strict: Annotated[bool, typer.Option(help="Exit 1 for warnings too.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Draw up to 12 images with their boxes, faulty ones first.", metavar="FILE"
        ),
    ] = None,
    _json: Json = False,
) -> None:
    """Count images and boxes, decode every image, and list every fault; exit 1 on errors."""
    from detofa.data.check import check_dataset, draw_contact_sheet

    report = check_dataset(folder)
    _show_report(report)
    for fault in report.faults:
        print(f"{fault.severity}: {fault}")
    num_warnings = len(report.faults) - report.num_errors
    print(f"{report.num_errors} errors, {num_warnings} warnings")
    if sheet is not None:
        draw_contact_sheet(report, sheet)
        print(f"images drawn in {sheet}, faulty ones first")
    counts = {"num_errors": report.num_errors, "num_warnings": num_warnings}
    print_record("data_check", {**report.to_json(), **counts, "sheet": sheet})
    if report.num_errors or (strict and num_warnings):
        raise typer.Exit(1)


@app.command("split")
def split(
    folder: Folder,
    fractions: Annotated[
        str, typer.Option(help="Shares of train, val and test.")
    ] = "0.7,0.15,0.15",
    seed: Seed = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what is bad.")] = False,
    _json: Json = False,
) -> None:
    """Say which image is in which split, in detofa_splits.json; nothing is moved."""
    shares = parsed(_parse_fractions, fractions, "--fractions")

    from detofa.data.dataset import available_splits, load_dataset
    from detofa.data.split import split_dataset

    path = split_dataset(folder, fractions=shares, seed=seed, skip_bad=skip_bad)
    splits = []
    for name in available_splits(folder):
        dataset = load_dataset(folder, name, skip_bad=True)
        boxes = int(sum(dataset.boxes_per_class()))
        splits.append({"split": name, "images": len(dataset.images), "boxes": boxes})
    show_table("", ["split", "images", "boxes"], [list(map(str, one.values())) for one in splits])
    print(f"wrote {path}")
    print_record("data_split", {"path": path, "splits": splits})


def _show_report(report: "CheckReport") -> None:
    print(f"{report.root}: {report.layout.upper()} layout")
    rows = []
    for part in report.splits:
        sizes = [f"{height}x{width} ({n})" for (height, width), n in part.image_sizes.items()]
        more = f" and {len(sizes) - 2} more" if len(sizes) > 2 else ""
        sides = part.box_side_percentiles
        rows.append(
            [
                part.split,
                str(part.num_images),
                str(part.num_images_without_boxes),
                str(part.num_boxes),
                "-" if sides is None else " ".join(f"{side:.0f}" for side in sides),
                ", ".join(sizes[:2]) + more,
            ]
        )
    columns = ["split", "images", "without boxes", "boxes"]
    columns += ["box side px (p5 p50 p95)", "image sizes (height x width)"]
    show_table("", columns, rows)
    names = list(dict.fromkeys(name for part in report.splits for name in part.boxes_per_class))
    counts = [
        [name, *(str(part.boxes_per_class.get(name, 0)) for part in report.splits)]
        for name in names
    ]
    show_table("", ["class", *(f"boxes in {part.split}" for part in report.splits)], counts)


def _parse_fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"{text!r} is not three shares such as 0.7,0.15,0.15") from None
