"""Files that were once answered with another exception, or not at all."""

import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.fuzz.datasets import image_bytes, tar_of
from tests.fuzz.reader import Files, Reader

Change = bytes | Callable[[bytes], bytes]
"""What a file holds, or how it follows from the valid one."""


def _instead(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(valid: bytes) -> bytes:
        assert old.encode() in valid, (old, valid[:500])
        return valid.replace(old.encode(), new.encode())

    return change


def _with(text: str) -> Callable[[bytes], bytes]:
    return lambda valid: valid + text.encode()


def _passes(*samples: str) -> Callable[[bytes], bytes]:
    """Return a log with a pass for each of these samples of its first model."""

    def change(valid: bytes) -> bytes:
        head, line = valid.splitlines(keepends=True)
        return head + b"".join(_instead("[1.0, 2.0]", some)(line) for some in samples)

    return change


def _tar_of_link(kind: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("train/a/0.png")
        member.type, member.linkname = kind, "../../../escaped"
        archive.addfile(member)
    return file.getvalue()


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


_DEEP = "[" * 5000 + "]" * 5000
_TAR = tar_of({"train/a/0.png": image_bytes()})
_STEM = "first_conv.conv.weight"
_HEX = "0x" + "f" * 5000

_CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("metrics", "metrics.jsonl", b'{"loss": 1}\n'),
    ("metrics", "metrics.jsonl", b'{"step": "a"}\n[]\n3\n'),
    ("metrics", "metrics.jsonl", b'\xff\n{"step": 1}\n'),
    ("metrics", "metrics.jsonl", f"{_DEEP}\n".encode()),
    ("metrics", "metrics.jsonl", b'{"step": ' + b"9" * 5000 + b"}\n"),
    ("metrics", "metrics.jsonl", _instead('"schema": 1', f'"schema": {"[" * 50}{"]" * 50}')),
    ("sample log", "log.jsonl", _passes("[1.0, 3e270]", "[1.0, 2.0]")),
    ("sample log", "log.jsonl", _passes("[5e-324, 5e-324]", "[3e270, 3e270]")),
    ("coco", "detofa_splits.json", _instead('["a.png"]', '[["a.png"]]')),
    ("coco", "annotations.json", _instead('"a.png"', f'"{"x" * 300}"')),
    ("voc", "Annotations/a.xml", b'<?xml version="1.0" encoding="no-such"?><a/>'),
    ("voc", "Annotations/a.xml", _instead("<width>16", "<width>1e999")),
    ("voc", "ImageSets/Main/train.txt", b"x" * 300 + b"\n"),
    ("yolo", "list.txt", b"/\n"),
    ("yolo", "list.txt", b"a\0b\n"),
    ("yolo", "list.txt", b"x" * 5000 + b"\n"),
    ("yolo", "data.yaml", _instead("train: images/train", f"train: {'x' * 300}")),
    ("yolo", "data.yaml", _with("x: 2020-99-99\n")),
    ("yolo", "data.yaml", _with("x: !!int ''\n")),
    ("yolo", "data.yaml", _with("x: !!timestamp x\n")),
    ("yolo", "data.yaml", _with(f"x: {'[' * 2000}\n")),
    ("yolo", "data.yaml", _instead("  0: cat", "  .inf: cat")),
    ("yolo", "data.yaml", _with("? " + "1" * 60_000 + "x\n: y\n")),
    ("run config", "config.toml", _with(f"[x]\na = {'9' * 5000}\n")),
    ("run config", "config.toml", _with(f"[x]\na = {_DEEP}\n")),
    ("run config", "config.toml", _with(f"[x{'.a' * 20_000}]\n")),
    ("run config", "config.toml", b"steps = 3\n"),
    ("run config", "config.toml", _instead("clip_norm = 10.0", f"clip_norm = {'9' * 400}")),
    ("latency table", "table.json", _instead('"verification": null', '"verification": 1e999')),
    ("kit results", "kit.json", _instead('"detofa_version": ', '"state": 1e999, "a": ')),
    ("manifest", "a.manifest.json", _instead('{"onnx": "1.18"}', '["abc"]')),
    ("manifest", "a.manifest.json", _instead('"a.onnx"', f'"{"x" * 300}"')),
    ("engine record", "a.engine.json", _instead('"num_compared"', '"compared"')),
    ("engine record", "a.engine.json", _instead('"driver_cuda": "13.0"', '"driver_cuda": 13')),
    ("engine record", "a.engine.json", _instead('"13.0"', f'"{"1" * 5000}"')),
    ("engine record", "a.engine.json", _instead('"spread": 0.01', '"spread": "x"')),
    ("image tar", "set.tar", lzma.compress(_TAR)[:-40]),
    ("image tar", "set.tar", b"\x1f\x8b\x08" + bytes(range(200))),
    ("onnx", "a.onnx", lambda valid: valid.replace(b"images", b"ima\xffes")),
    ("onnx", "a.onnx", lambda valid: valid.replace(b"detofa.subnet", b"detofa.s\xffbnet")),
    ("checkpoint", "a.pth", b""),
    ("checkpoint", "a.pth", _saved({1: torch.zeros(1)})),
    ("checkpoint", "a.pth", _saved({_STEM: torch.tensor(1.0)})),
    ("packed detector", "detector.zip", lambda valid: valid[:-30]),
    ("packed kit", "kit.zip", lambda valid: valid[:100] + b"\xff" + valid[101:]),
    ("quantity", "typed.txt", b"1" + b" " * 100_000 + b"!"),
)  # fmt: skip


def regressions(name: str, reader: Reader) -> Iterator[Files]:
    """Yield what a reader once failed at."""
    for owner, file, change in _CHANGES:
        if owner == name:
            yield {file: change if isinstance(change, bytes) else change(reader.files[file])}
