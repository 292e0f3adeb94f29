"""The manifest beside an exported model: what the file is, and the proof that it was checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detofa.errors import UserError
from detofa.files import check_companion, read_json, write_json
from detofa.subnet import Subnet

KIND = "export_manifest"
_REMAKE = "`detofa export`"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What lies beside an exported model.

    Attributes:
        model_file: Name of the model in the same folder.
        model_sha256: Hash of that file.
        runtime: What runs it, e.g. `onnxruntime` or `tensorrt`.
        precision: Number format of the weights, e.g. `fp32`.
        opset: The ONNX opset that was read back from the graph.
        convolutions: Multiply-accumulates of each convolution on one image, by its node's name.
        inputs: Shape of each input; a text stands for a size that is free.
        outputs: Shape of each output.
        subnet: The content of subnet.json.
        parity: The report of the comparison with PyTorch.
        versions: Versions of the libraries that made it.
    """

    model_file: str
    model_sha256: str
    runtime: str
    precision: str
    opset: int
    convolutions: Mapping[str, int]
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    subnet: Subnet
    parity: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return record | {
            "convolutions": dict(self.convolutions),
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "subnet": self.subnet.to_json(),
            "parity": dict(self.parity),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, record: Any) -> "Manifest":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing, unknown or of the wrong kind.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(record, Mapping):
            raise UserError(f"a manifest should be a JSON object, got {type(record).__name__}")
        found = set(record) - {"schema", "kind"}
        if found != names:
            raise UserError(
                f"missing fields {sorted(names - found)}, unknown fields {sorted(found - names)}; "
                f"make it again with {_REMAKE}"
            )
        fields = {name: record[name] for name in names}
        for name in ("convolutions", "inputs", "outputs", "parity", "versions"):
            if not isinstance(fields[name], Mapping):
                raise UserError(f"{name} should be values by name, got {fields[name]!r}")
        for name in ("inputs", "outputs"):
            fields[name] = {key: _shape(shape, name) for key, shape in fields[name].items()}
        fields["subnet"] = Subnet.from_json(record["subnet"])
        for name in ("model_file", "model_sha256", "runtime", "precision"):
            if not isinstance(fields[name], str):
                raise UserError(f"{name} should be a text, got {fields[name]!r}")
        if type(fields["opset"]) is not int:
            raise UserError(f"opset should be a whole number, got {fields['opset']!r}")
        if not all(type(count) is int for count in fields["convolutions"].values()):
            raise UserError("convolutions should be whole numbers by name")
        if Path(fields["model_file"]).name != fields["model_file"]:
            raise UserError(
                f"model_file should be a name in the same folder, got {fields['model_file']!r}"
            )
        return cls(**fields)

    def save(self, path: Path) -> None:
        """Write the manifest atomically; the model must already lie beside it."""
        write_json(path, KIND, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest, and check that the model beside it is the one it describes.

        Raises:
            UserError: see `from_json`; or the model is missing or has another hash.
        """
        record = read_json(path, KIND, remake=_REMAKE)
        try:
            manifest = cls.from_json(record)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        model = path.parent / manifest.model_file
        check_companion(path, model, manifest.model_sha256, remake=_REMAKE)
        return manifest

    @classmethod
    def of(cls, model: Path) -> "Manifest":
        """Read the manifest of a model that lies beside it; see `load`.

        Raises:
            UserError: it describes another model, too.
        """
        path = manifest_path(model)
        manifest = cls.load(path)
        if manifest.model_file != model.name:
            raise UserError(
                f"{path} describes {manifest.model_file}, not {model.name}; remove it or export "
                "again"
            )
        return manifest


def manifest_path(model: Path) -> Path:
    """Return where the manifest of a model lies: NAME.onnx to NAME.manifest.json."""
    return model.with_name(f"{model.stem}.manifest.json")


def _shape(shape: Any, name: str) -> tuple[int | str, ...]:
    if not isinstance(shape, list | tuple) or not all(type(size) in (int, str) for size in shape):
        raise UserError(f"{name} should be shapes of whole numbers or texts, got {shape!r}")
    return tuple(shape)
