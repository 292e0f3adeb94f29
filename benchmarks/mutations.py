"""Shows that each test of tests/pains can fail: the guard that it protects is broken, and it does.

    python -m benchmarks.mutations
    python -m benchmarks.mutations --only budget

Each mutation replaces one text of the package, in a copy of this repository, and runs one test
against that copy. Prints a table; the exit code is 1 if a mutation survives its test.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
_COPIED = ("benchmarks", "detofa", "docs", "latency_tables", "tests", "README.md", "pyproject.toml")
_LIMIT_SECONDS = 600
_PASSED, _FAILED = 0, 1  # exit codes of pytest


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A small fault in the package, and the test that must notice it.

    Attributes:
        test: The test, as `FILE::NAME` below tests/pains.
        file: The file, below detofa.
        old: A text that stands in the file once.
        new: What it becomes.
        words: What is then wrong.
    """

    test: str
    file: str
    old: str
    new: str
    words: str

    @property
    def path(self) -> str:
        """Return the test as pytest is given it."""
        return f"tests/pains/{self.test}"


def _of(file: str, *rows: tuple[str, str, str, str, str]) -> tuple[Mutation, ...]:
    """Return the mutations of one file of tests."""
    return tuple(
        Mutation(test=f"{file}::{test}", file=where, old=old, new=new, words=words)
        for test, where, old, new, words in rows
    )


PROFILING = _of(
    "test_profiling.py",
    (
        "test_a_table_is_made_by_one_command_and_each_row_has_its_percentiles",
        "profiling/measure.py",
        '        "p90_ms": timing.p90_ms,\n',
        "",
        "rows lack their 90th percentile",
    ),
    (
        "test_blocks_that_a_table_lacks_are_named_before_any_search",
        "profiling/table.py",
        "    if lacking:\n",
        "    if False:\n",
        "a table without all blocks is read",
    ),
    (
        "test_a_table_is_json_of_a_known_schema_and_needs_no_other_parser",
        "files.py",
        "    if found != SCHEMA:\n",
        "    if False:\n",
        "any schema is read",
    ),
    (
        "test_a_gpu_is_timed_by_its_events_after_a_wait_for_the_last",
        "runtime/tensorrt/timing.py",
        "        cuda.wait(self._end)\n",
        "",
        "the last event is not waited for",
    ),
    (
        "test_a_gpu_is_timed_by_its_events_after_a_wait_for_the_last",
        "runtime/measuring.py",
        "_RUNS_TO_WARM = 2 ",
        "_RUNS_TO_WARM = 0 ",
        "no runs to warm up",
    ),
    (
        "test_a_winner_is_measured_and_one_over_the_budget_is_none",
        "choose/records.py",
        "        cost, limit = item.measured_ms, budget.limit * (1 - _MEASURING_ERROR)\n",
        "        cost, limit = item.predicted_ms or 0.0, budget.limit\n",
        "the prediction decides, not the measurement",
    ),
    (
        "test_a_winner_is_measured_and_one_over_the_budget_is_none",
        "cli/search.py",
        "                _gap(item),\n",
        '                "-",\n',
        "the gap is not printed",
    ),
    (
        "test_a_table_of_another_governor_or_of_other_cores_is_told",
        "profiling/again.py",
        "    if not differences:\n",
        "    if version == table.runtime_version:\n",
        "only the version of the runtime is compared",
    ),
    (
        "test_nothing_that_is_written_is_a_pickle_and_none_that_is_read_is_run",
        "supernet/import_weights.py",
        "weights_only=True",
        "weights_only=False",
        "checkpoints may run code",
    ),
    (
        "test_every_block_has_a_cost_and_profile_says_how_many_were_seen",
        "profiling/table.py",
        'if entry["role"] == "fit"',
        'if entry["role"] == "held-out"',
        "coverage counts the wrong detectors",
    ),
    (
        "test_spikes_leave_the_median_and_unsteady_rows_are_made_again_and_named",
        "runtime/measuring.py",
        "        if not shaky or not steady or not fits(len(again) / len(names)):\n",
        "        if shaky or not steady or not fits(len(again) / len(names)):\n",
        "unsteady rows are not made again",
    ),
    (
        "test_spikes_leave_the_median_and_unsteady_rows_are_made_again_and_named",
        "runtime/measuring.py",
        "UNSTABLE = 0.02\n",
        "UNSTABLE = 2.0\n",
        "nothing is called unsteady",
    ),
    (
        "test_builds_start_from_kept_timings_and_their_spread_is_told",
        "runtime/tensorrt/make.py",
        "    _keep_timings(plan.timings_path(gpu, best.tensorrt), best.timings)\n",
        "",
        "timings are not kept",
    ),
    (
        "test_builds_start_from_kept_timings_and_their_spread_is_told",
        "runtime/tensorrt/make.py",
        "spread=slowest / best.milliseconds - 1",
        "spread=0.0",
        "no spread is told",
    ),
    (
        "test_a_figure_says_runtime_precision_batch_input_and_device",
        "cli/bench.py",
        "    precision = _precision(model) if engine is None else engine.precision\n",
        '    precision = "fp32"\n',
        "every file is called fp32",
    ),
    (
        "test_a_session_on_another_gpu_than_asked_for_is_refused",
        "runtime/session.py",
        "    if used not in (None, str(device_index)):\n",
        "    if False:\n",
        "nobody asks which GPU is used",
    ),
    (
        "test_a_session_on_another_gpu_than_asked_for_is_refused",
        "runtime/session.py",
        '{"device_id": str(device_index)}',
        '{"device_id": "0"}',
        "the number of the GPU is not passed on",
    ),
    (
        "test_the_gpu_that_is_named_is_set_before_any_other_call_of_cuda",
        "profiling/conditions.py",
        "return TensorRt(index=index, batch=batch)",
        "return TensorRt(batch=batch)",
        "the number of the GPU is not passed on",
    ),
    (
        "test_the_gpu_that_is_named_is_set_before_any_other_call_of_cuda",
        "runtime/cuda.py",
        '        self._call("cudaSetDevice", ctypes.c_int(index))\n',
        "",
        "the GPU is not set",
    ),
    (
        "test_a_fall_back_to_the_processor_is_an_error_and_no_latency",
        "runtime/session.py",
        "    if used[0] != provider:\n",
        "    if False:\n",
        "a fall-back is let through",
    ),
    (
        "test_nodes_left_to_the_processor_are_counted_and_much_of_them_is_no_latency",
        "runtime/runtimes.py",
        "        check_placement(events, self.provider)\n",
        "",
        "nodes are not looked at",
    ),
    (
        "test_nodes_left_to_the_processor_are_counted_and_much_of_them_is_no_latency",
        "runtime/runtimes.py",
        "MOST_ELSEWHERE = 0.01\n",
        "MOST_ELSEWHERE = 0.0\n",
        "what computes shapes is a fault",
    ),
    (
        "test_an_engine_of_another_gpu_is_refused_unread_with_what_rebuilds_it",
        "runtime/tensorrt/session.py",
        "    record.check_fits(cuda.gpu(), version)\n",
        "",
        "engines of any GPU are opened",
    ),
    (
        "test_int8_is_not_said_to_be_faster_and_is_measured_as_itself",
        "cli/export.py",
        '    if exported.manifest.precision == "int8":\n',
        "    if False:\n",
        "int8 goes without a word",
    ),
)

SUPERNET = _of(
    "test_supernet.py",
    (
        "test_statistics_of_a_subnet_depend_on_no_start_and_on_no_other_subnet",
        "supernet/recalibrate.py",
        "            norm.momentum = 1.0 ",
        "            norm.momentum = 0.5 ",
        "the start counts for half",
    ),
    (
        "test_statistics_of_a_subnet_depend_on_no_start_and_on_no_other_subnet",
        "supernet/sharing.py",
        "else buffer.clone()",
        "else buffer",
        "a subnet writes into the supernet",
    ),
    (
        "test_a_detector_left_in_evaluation_mode_is_recalibrated_too",
        "supernet/recalibrate.py",
        "    detector.train()\n    try:",
        "    try:",
        "the mode stays as it was",
    ),
    (
        "test_search_and_eval_find_the_same_ap_in_the_same_subnet",
        "cli/models.py",
        "        result, _ = evaluate_detector(detector, dataset, ranks=ranks)\n",
        "        own = dataclasses.replace(detector.postprocessing, nms_threshold=0.1)\n"
        "        detector = dataclasses.replace(detector, postprocessing=own)\n"
        "        result, _ = evaluate_detector(detector, dataset, ranks=ranks)\n",
        "eval has settings of its own",
    ),
    (
        "test_two_subnets_have_figures_of_their_own_that_say_whose_they_are",
        "train/evaluate.py",
        "extract_recalibrated(supernet, arch, recalibration)\n        fuse",
        "extract_recalibrated(supernet, archs[0], recalibration)\n        fuse",
        "the first arch stands for all",
    ),
    (
        "test_two_subnets_have_figures_of_their_own_that_say_whose_they_are",
        "cli/models.py",
        '"weights_sha256": weights}',
        '"weights_sha256": None}',
        "figures do not say of which weights",
    ),
    (
        "test_an_arch_outside_its_space_is_named_with_what_is_allowed",
        "subnet.py",
        "        self.space.check(self.arch)\n",
        "",
        "the arch is not checked",
    ),
    (
        "test_a_budget_out_of_reach_is_answered_with_the_least_that_is_possible",
        "search.py",
        "        if found.low > limit.limit:\n",
        "        if False:\n",
        "the reachable range is not looked at",
    ),
    (
        "test_a_budget_prices_all_of_the_exported_graph_at_its_real_size",
        "profiling/cost.py",
        "            yield from _head_convolutions(block)\n",
        "",
        "the head is free",
    ),
    (
        "test_a_loss_that_explodes_changes_no_weight_and_training_goes_on",
        "train/loss_guard.py",
        "        finite = math.isfinite(loss) and math.isfinite(gradient_norm)\n",
        "        finite = True\n",
        "any loss counts",
    ),
    (
        "test_the_whole_loop_ships_and_each_step_names_the_next",
        "cli/search.py",
        '        print(f"next: `detofa export {output}`")\n',
        "",
        "search does not say what comes next",
    ),
    (
        "test_every_documented_command_exists_and_every_dependency_has_its_least_version",
        "cli/measure.py",
        '"--from", metavar',
        '"--results", metavar',
        "a documented option is renamed",
    ),
    (
        "test_macs_are_half_the_flops_that_torch_counts_in_any_kind_of_convolution",
        "profiling/cost.py",
        "    after = (block.height // block.stride) * (block.width // block.stride)\n",
        "    after = positions\n",
        "strides are not counted",
    ),
)

EXPORT = _of(
    "test_export.py",
    (
        "test_export_gives_the_chosen_subnet_with_statistics_of_its_own",
        "choose/chooser.py",
        "extract_recalibrated(self.supernet, winner.arch, self.recalibration)\n",
        "extract_recalibrated(\n            self.supernet,\n            winner.arch,\n"
        "            dataclasses.replace(self.recalibration, count=1, _images={}),\n        )\n",
        "statistics are those of one image",
    ),
    (
        "test_a_precision_that_costs_average_precision_is_rejected",
        "runtime/gates.py",
        "    if -bar.ap_loss <= found - reference <= bar.ap_gain:\n",
        "    if True:\n",
        "any average precision will do",
    ),
    (
        "test_one_value_that_is_not_finite_rejects_the_very_engine",
        "runtime/matching.py",
        "    if not all(np.isfinite(values).all() for values in got):\n        return None\n",
        "",
        "outputs may be anything",
    ),
    (
        "test_an_engine_that_silently_stayed_fp32_is_not_taken_for_fp16",
        "runtime/tensorrt/make.py",
        '    faults = [*faults_of_share(share, precision), *verified["faults"]]\n',
        '    faults = [*verified["faults"]]\n',
        "the precision of layers is not looked at",
    ),
    (
        "test_an_image_without_objects_is_padding_and_no_failure",
        "export/in_graph.py",
        '    made.add("Where", valid, labels, made.integers(-1), name=found_labels)\n',
        '    made.add("Identity", labels, name=found_labels)\n',
        "padding has labels",
    ),
    (
        "test_any_batch_size_runs_and_was_tried_before_the_file_got_its_name",
        "export/to_onnx.py",
        "        dynamic_batch=batch is None,\n",
        "        dynamic_batch=False,\n",
        "the batch of the trace is baked in",
    ),
    (
        "test_any_batch_size_runs_and_was_tried_before_the_file_got_its_name",
        "runtime/matching.py",
        "BATCH_SIZES = (1, 2, 5)\n",
        "BATCH_SIZES = (1,)\n",
        "only single images are tried",
    ),
    (
        "test_suppression_in_the_graph_keeps_the_images_of_a_batch_apart",
        "runtime/session.py",
        "            for row, count in enumerate(counts)\n",
        "            for row, count in enumerate(counts[::-1])\n",
        "images have each other's counts",
    ),
    (
        "test_no_box_is_dropped_by_a_cap_that_nobody_stated",
        "runtime/postprocess.py",
        "    for start in range(0, len(order), _NMS_CHUNK):\n",
        "    for start in range(0, min(len(order), 5000), _NMS_CHUNK):\n",
        "5000 boxes are looked at",
    ),
    (
        "test_no_box_is_dropped_by_a_cap_that_nobody_stated",
        "runtime/postprocess.py",
        "    groups = labels if postprocessing.class_aware_nms else np.zeros_like(labels)\n",
        "    groups = np.zeros_like(labels)\n",
        "classes suppress each other",
    ),
    (
        "test_photos_of_other_shapes_have_the_same_ap_before_and_after_export",
        "runtime/detector.py",
        "self.session.image_size, self.preprocessing.fill)",
        "self.session.image_size, 0 if hasattr(self.session, 'provider') else 114)",
        "exported files are padded with black",
    ),
    (
        "test_height_and_width_keep_their_places",
        "supernet/decode.py",
        '        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")\n',
        '        grid_x, grid_y = torch.meshgrid(xs, ys, indexing="ij")\n',
        "anchors run down the columns",
    ),
    (
        "test_height_and_width_keep_their_places",
        "runtime/session.py",
        "        height, width = port.shape[1:3] if self.takes_pixels else port.shape[2:]\n",
        "        width, height = port.shape[1:3] if self.takes_pixels else port.shape[2:]\n",
        "the sides of the input are swapped",
    ),
    (
        "test_int8_is_calibrated_through_the_loader_that_runs_and_names_its_images",
        "export/export.py",
        "    placed = [letterbox(one, subnet.arch.image_size, preprocessing.fill)[0] for one in "
        "images]\n",
        "    placed = [resize(one, subnet.arch.image_size) for one in images]\n",
        "images to calibrate on are stretched",
    ),
)

DATA = _of(
    "test_data.py",
    (
        "test_sparse_category_ids_become_labels_in_order_and_come_out_as_they_were",
        "data/coco.py",
        "    return tuple(sorted(kept, key=lambda category: category.id))\n",
        "    return tuple(kept)\n",
        "labels are in the order of the file",
    ),
    (
        "test_sparse_category_ids_become_labels_in_order_and_come_out_as_they_were",
        "data/evaluation.py",
        '                    "category_id": dataset.categories[int(label)].id,\n'
        '                    "bbox": [float(value) for value in box],\n',
        '                    "category_id": int(label) + 1,\n'
        '                    "bbox": [float(value) for value in box],\n',
        "results have ids from 1",
    ),
    (
        "test_splits_with_categories_in_another_order_agree_and_other_ids_stop",
        "data/dataset.py",
        "    if wanted != found:\n",
        "    if False:\n",
        "any categories will do",
    ),
    (
        "test_a_turned_photo_is_upright_in_the_reader_and_in_the_check_of_its_size",
        "imaging.py",
        "    if orientation in _TRANSPOSE_OF_ORIENTATION:\n",
        "    if False:\n",
        "the reader does not turn photos",
    ),
    (
        "test_a_turned_photo_is_upright_in_the_reader_and_in_the_check_of_its_size",
        "imaging.py",
        "        swapped = _orientation(image) in (5, 6, 7, 8)\n",
        "        swapped = False\n",
        "sizes are those of the file",
    ),
    (
        "test_images_without_boxes_give_every_weight_a_finite_gradient",
        "supernet/loss.py",
        "normaliser=weight.sum().clamp_min(1.0)",
        "normaliser=weight.sum()",
        "the loss is divided by no boxes",
    ),
    (
        "test_a_rank_whose_images_have_no_boxes_takes_part_in_every_sum",
        "train/ranks.py",
        "torch.zeros_like(parameter) if gradient is None else gradient\n",
        "torch.zeros(0) if gradient is None else gradient\n",
        "a rank leaves out what it lacks",
    ),
    (
        "test_a_rank_that_waits_long_for_another_says_so_once_and_waits_on",
        "train/ranks.py",
        "        timer.start()\n",
        "",
        "nobody looks how long it takes",
    ),
    (
        "test_a_run_that_is_stopped_and_resumed_equals_a_straight_one",
        "train/checkpoint.py",
        '        averaged.load_state_dict(_under(tensors, "averaged/"))\n',
        "",
        "averages begin anew",
    ),
    (
        "test_one_bad_image_is_counted_and_named_and_can_be_left_out",
        "data/dataset.py",
        "    if errors and not skip_bad:\n",
        "    if False:\n",
        "bad images are left out silently",
    ),
    (
        "test_boxes_outside_or_without_area_are_clipped_or_dropped_and_counted",
        "data/records.py",
        "    clipped = np.clip(box, 0, limits)\n",
        "    clipped = box\n",
        "boxes stay as they are",
    ),
    (
        "test_boxes_outside_or_without_area_are_clipped_or_dropped_and_counted",
        "data/records.py",
        "            faults.append(fault)\n",
        "            pass\n",
        "nothing is reported",
    ),
    (
        "test_a_wrong_folder_is_named_with_what_is_there_instead",
        "data/dataset.py",
        '        found = f"it holds {num_files} files and {num_folders} folders: '
        '{first_names(names)}"\n',
        '        found = "no annotations"\n',
        "what is there is not said",
    ),
    (
        "test_average_precision_is_that_of_pycocotools_with_crowds_caps_and_areas",
        "data/evaluation.py",
        '                    "iscrowd": int(image.crowd[index]),\n',
        '                    "iscrowd": 0,\n',
        "crowds are objects",
    ),
    (
        "test_average_precision_is_that_of_pycocotools_with_crowds_caps_and_areas",
        "data/evaluation.py",
        '                    "area": float(image.areas[index]),\n',
        '                    "area": 1.0,\n',
        "all objects are small",
    ),
)

MUTATIONS = (*PROFILING, *SUPERNET, *EXPORT, *DATA)


def mutated(mutation: Mutation, text: str) -> str:
    """Return the text of a file with the fault in it.

    Raises:
        SystemExit: what should be replaced does not stand there once.
    """
    count = text.count(mutation.old)
    if count != 1:
        raise SystemExit(
            f"error: the mutation of {mutation.test} ({mutation.words}): detofa/{mutation.file} "
            f"has the text {mutation.old!r} {count} times, not once; bring it up to date"
        )
    return text.replace(mutation.old, mutation.new)


def copied(target: Path) -> None:
    """Copy what a test needs of this repository."""
    for name in _COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "results")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)


def run_tests(place: Path, *tests: str) -> tuple[int | None, str]:
    """Run tests against a copy; return pytest's exit code, None if it took too long, and its words.

    Args:
        place: The copy.
        tests: As pytest is given them.
    """
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS * len(tests),
        )
    except subprocess.TimeoutExpired:
        return None, "it took too long"
    return done.returncode, done.stdout + done.stderr


def check_whole(place: Path, tests: list[str]) -> None:
    """Check that all tests pass while nothing is broken, in the copy.

    Raises:
        SystemExit: one fails, or is skipped, which says nothing of its mutations.
    """
    code, said = run_tests(place, *tests)
    if code != _PASSED or "skipped" in said.splitlines()[-1]:
        last = "\n".join(said.splitlines()[-30:])
        raise SystemExit(f"error: not all tests pass as it is (is DETOFA_DATA set?)\n{last}")


def verdict_on(mutation: Mutation, place: Path) -> str:
    """Break the copy, run the test, mend the copy; return how it came out.

    Raises:
        SystemExit: the test could not be run.
    """
    path = place / "detofa" / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutated(mutation, whole), encoding="utf-8")
    try:
        code, said = run_tests(place, mutation.path)
    finally:
        path.write_text(whole, encoding="utf-8")
    if code == _PASSED:
        return "SURVIVED"
    if code not in (None, _FAILED):
        last = "\n".join(said.splitlines()[-10:])
        raise SystemExit(f"error: {mutation.path} could not be run\n{last}")
    return "failed" if " failed" in said.splitlines()[-1] else "failed before it began"


def main() -> None:
    """Run all mutations, or some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="only tests whose names hold this text")
    parser.add_argument("--as-it-is", action="store_true", help="do not first run all tests")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS if options.only in one.test]
    for mutation in chosen:
        path = REPOSITORY / "detofa" / mutation.file
        mutated(mutation, path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        copied(place)
        if not options.as_it_is:
            check_whole(place, list(dict.fromkeys(mutation.path for mutation in chosen)))
        print("| test | what was broken | the test then |\n| --- | --- | --- |", flush=True)
        verdicts = []
        for mutation in chosen:
            verdicts.append(verdict_on(mutation, place))
            print(f"| {mutation.test} | {mutation.words} | {verdicts[-1]} |", flush=True)
    survived = verdicts.count("SURVIVED")
    print(f"{len(chosen)} mutations, {survived} survived")
    sys.exit(int(survived > 0))


if __name__ == "__main__":
    main()
