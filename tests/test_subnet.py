import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.files import sha256_file, write_json
from detofa.imaging import IMAGENET, LITE
from detofa.presets import preset
from detofa.subnet import Figure, PostProcessing, Subnet

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def example(**changes) -> Subnet:
    space = preset("tiny", num_classes=2)
    subnet = Subnet(
        space=space,
        arch=space.smallest,
        preprocessing=IMAGENET,
        postprocessing=PostProcessing(),
        categories=((7, "cat"), (3, "dog")),
        weights_file="best.safetensors",
        weights_sha256="0" * 64,
        supernet_sha256="1" * 64,
        recalibration={"images": 64, "seed": 0, "split": "train"},
        figures={
            "macs": Figure(value=12_345_678, unit="MACs", source="exact"),
            "latency_predicted": Figure(
                value=4.2,
                unit="ms",
                source="predicted",
                conditions={"device": "this", "batch": 1},
                low=4.0,
                high=4.5,
            ),
        },
        device="this",
        table_sha256=None,
        command="detofa search --latency 5ms",
    )
    return replace(subnet, **changes)


def saved(folder: Path) -> Path:
    weights = folder / "best.safetensors"
    weights.write_bytes(b"weights")
    path = folder / "best.json"
    example(weights_sha256=sha256_file(weights)).save(path)
    return path


def places(value, path=()):
    """Yield the place of every value in a JSON object: a tuple of keys and indices."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict | list):
        for key, inner in items:
            yield from (
                places(inner, (*path, key)) if isinstance(inner, dict | list) else [(*path, key)]
            )


def holder_of(record, path):
    for key in path[:-1]:
        record = record[key]
    return record


RECORD = json.loads(json.dumps(example().to_json()))
FREE = {"recalibration", "conditions"}  # holds whatever was written
PLACES = [path for path in places(RECORD) if not FREE & set(path[:-1])]


def test_a_saved_subnet_is_read_back_equal(tmp_path):
    path = saved(tmp_path)
    subnet = Subnet.load(path)
    assert subnet == example(weights_sha256=sha256_file(tmp_path / "best.safetensors"))
    assert subnet.class_names == ("cat", "dog")
    assert subnet.categories == ((7, "cat"), (3, "dog"))
    assert json.loads(path.read_text())["schema"] == 1


def test_numbers_survive_the_json_exactly():
    figure = Figure(value=0.1 + 0.2, unit="AP", source="measured")
    subnet = example(figures={"ap_val": figure}, preprocessing=LITE)
    again = Subnet.from_json(json.loads(json.dumps(subnet.to_json())))
    assert again == subnet
    assert again.figures["ap_val"].value == 0.1 + 0.2


@pytest.mark.parametrize("field", sorted(RECORD))
def test_nothing_can_be_left_out(field):
    for path in PLACES:
        if path[0] != field or (field == "figures" and len(path) == 2):
            continue
        record = copy.deepcopy(RECORD)
        del holder_of(record, path)[path[-1]]
        with pytest.raises(UserError):
            Subnet.from_json(record)


@pytest.mark.parametrize("field", sorted(RECORD))
def test_nothing_takes_a_value_of_another_kind(field):
    for path in PLACES:
        for value in ([None], {"a": 1}, True, float("nan"), "1", -1):
            record = copy.deepcopy(RECORD)
            if path[0] != field or takes(path[-1], value, holder_of(record, path)[path[-1]]):
                continue
            holder_of(record, path)[path[-1]] = value
            with pytest.raises(UserError):
                Subnet.from_json(record)


def takes(name, value, before):
    """Tell whether a value is fine in this place."""
    numbers = {"id", "value", "low", "high", 0, 1, 2}  # 0 to 2: the mean of the preprocessing
    return (
        (name in FREE and isinstance(value, dict))
        or (name in numbers and not isinstance(before, dict | list) and type(value) is int)
        or (isinstance(value, str) and (isinstance(before, str) or name == "table_sha256"))
        or (value is True and before is True)
    )


@pytest.mark.parametrize("owner", [(), ("postprocessing",), ("figures", "macs"), ("categories", 0)])
def test_unknown_fields_are_named(owner):
    record = copy.deepcopy(RECORD)
    holder_of(record, (*owner, "extra"))["extra"] = 1
    with pytest.raises(UserError, match=r"unknown fields \['extra'\].*detofa search"):
        Subnet.from_json(record)


@given(st.sampled_from([(), *PLACES]), JSON)
@settings(max_examples=300)
def test_any_json_in_any_place_is_read_or_refused_plainly(path, value):
    record = copy.deepcopy(RECORD)
    if path:
        holder_of(record, path)[path[-1]] = value
    else:
        record = value
    try:
        subnet = Subnet.from_json(record)
    except UserError:
        return
    assert Subnet.from_json(subnet.to_json()) == subnet or value != value  # NaN in a free value
    subnet.space.check(subnet.arch)


def test_an_arch_outside_its_space_is_named_with_what_is_allowed():
    record = copy.deepcopy(RECORD)
    record["arch"]["kernel_sizes"][2] = [9]
    with pytest.raises(UserError, match=r"kernel_sizes of stage 2 is 9.*\[3, 5\]"):
        Subnet.from_json(record)
    with pytest.raises(UserError, match=r"image_size is \(320, 320\)"):
        example(arch=replace(example().arch, image_size=(320, 320)))


def test_an_edited_space_is_refused_although_it_is_valid():
    record = copy.deepcopy(RECORD)
    record["space"]["neck_widths"] = [32, 64]
    with pytest.raises(UserError, match=r"the space was edited; make the file again"):
        Subnet.from_json(record)


def test_categories_must_match_the_classes_and_have_their_own_ids():
    for categories in [((1, "cat"),), ((1, "cat"), (1, "dog")), ()]:
        with pytest.raises(UserError, match="categories should be 2"):
            example(categories=categories)


@pytest.mark.parametrize("name", ["", ".", "..", "../best.safetensors", "/etc/passwd", "a/b", "a/"])
def test_weights_lie_in_the_same_folder(name):
    with pytest.raises(UserError, match="name in the same folder"):
        example(weights_file=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold should be a number from 0 to 1, got 1.5"),
        ({"nms_threshold": float("nan")}, "nms_threshold"),
        ({"top_k": 0}, "top_k should be a whole number, at least 1"),
        ({"max_detections": 2.0}, "max_detections"),
        ({"class_aware_nms": 1}, "class_aware_nms should be true or false"),
    ],
)
def test_postprocessing_out_of_range_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        PostProcessing(**changes)


def test_a_figure_says_where_it_came_from():
    with pytest.raises(UserError, match="predicted, measured, exact, got 'guessed'"):
        Figure(value=1.0, unit="ms", source="guessed")
    with pytest.raises(UserError, match="finite number, got nan"):
        Figure(value=float("nan"), unit="ms", source="measured")


# ---- files ------------------------------------------------------------------------------------


def test_missing_weights_are_named(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(UserError, match=r"needs .*best\.safetensors, which does not exist"):
        Subnet.load(path)


def test_other_weights_are_refused_with_both_hashes(tmp_path):
    path = saved(tmp_path)
    weights = tmp_path / "best.safetensors"
    before = sha256_file(weights)
    weights.write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        Subnet.load(path)
    assert before[:12] in str(caught.value)
    assert sha256_file(weights)[:12] in str(caught.value)
    assert "detofa search" in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path)
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(UserError, match="truncated"):
        Subnet.load(path)


def test_another_kind_another_schema_and_no_file_are_refused(tmp_path):
    path = tmp_path / "best.json"
    with pytest.raises(UserError, match="does not exist; make it with `detofa search`"):
        Subnet.load(path)
    write_json(path, "latency_table", RECORD)
    with pytest.raises(UserError, match="should be a subnet file"):
        Subnet.load(path)
    path.write_text(json.dumps({**RECORD, "kind": "subnet", "schema": 2}))
    with pytest.raises(UserError, match="schema 2"):
        Subnet.load(path)


def test_a_message_names_the_file(tmp_path):
    path = saved(tmp_path)
    record = json.loads(path.read_text())
    record["arch"]["neck_width"] = 33
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"best\.json: neck_width is 33; .*\[32, 48\]"):
        Subnet.load(path)


@pytest.mark.parametrize("depth", [500, 5000])
@pytest.mark.parametrize("name", ["space", "arch", "figures", "categories", "preprocessing"])
def test_deep_nesting_is_refused_plainly(tmp_path, depth, name):
    path = saved(tmp_path)
    record = json.dumps(json.loads(path.read_text()) | {name: "HERE"})
    path.write_text(record.replace('"HERE"', "[" * depth + "]" * depth))
    with pytest.raises(UserError):
        Subnet.load(path)
