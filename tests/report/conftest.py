"""A run of seconds that has all that a report shows, with names that would do harm unescaped."""

import dataclasses
import json
import math

import pytest

from detofa.choose.chooser import Chooser
from detofa.choose.records import Budget
from detofa.profiling.device import this_cpu
from detofa.report.source import Source
from detofa.train.config import FilterPlan
from detofa.train.method import train_by_method
from detofa.train.run import RunFolder
from tests.samples import Quiet, config_of, trainer_of
from tests.test_cli import fake_table, write_dataset

HOSTILE = ("</script><script>window.harmed = 1</script>", '"><img src=x onerror="harmed=1">')
"""Names of the two classes."""


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Give the files of a run that was trained by detofa, profiled and searched twice."""
    folder = tmp_path_factory.mktemp("report")
    data = folder / "<b>squares"
    write_dataset(data)
    for path in (data / "annotations").glob("*.json"):
        record = json.loads(path.read_text())
        for category, name in zip(record["categories"], HOSTILE, strict=True):
            category["name"] = name
        path.write_text(json.dumps(record))
    config = config_of(
        data,
        method="detofa",
        steps=4,
        evaluations=2,
        recalibration_images=4,
        filter=FilterPlan(bins=2, labels_per_bin=4, label_images=4, prune="always"),
    )
    trainer = trainer_of(config, folder / "runs" / "a <i>run")
    assert train_by_method(trainer, Quiet(), lambda: False)
    run: RunFolder = trainer.run
    config.save(run.config)
    run.write_environment("detofa train --data '<b>squares'")
    table = fake_table(trainer.space, dataclasses.replace(this_cpu(), name="A <u>device"))
    chooser = Chooser(run, table=table, labels=4)
    chooser.front(count=4, command="detofa search --pareto")
    chooser.choose(
        Budget(kind="macs", limit=math.ceil(chooser.macs(chooser.space.ends).mean())),
        run.subnets / "macs-<s>half.json",
        top_k=2,
        command="detofa search --macs half",
    )
    return Source.of(run, [table], data)
