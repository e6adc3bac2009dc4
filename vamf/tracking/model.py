"""Saves an exported network as an MLflow model, for ``mlflow models serve`` and the registry.

MLflow loads this module and calls ``_load_pyfunc``: a model holds no pickled code.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vamf.data.source import LatentSource
from vamf.inference import serving
from vamf.training.checkpoints.exported_file import read_export

EXAMPLE = {"count": [4], "seed": [0]}


def save_model(exported: Path, out: Path) -> None:
    """Writes a folder that MLflow serves: the exported file, this package, and the signature.

    The folder carries vamf's own code, so that a server needs only vamf's dependencies. Raises
    ValueError if the folder is not empty.
    """
    import pandas
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model as save
    from mlflow.types import ColSpec, Schema

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"a folder for an MLflow model must be empty; got files in {out}")
    columns = [
        ColSpec(kind, name, required=name == "count") for name, kind in serving.COLUMNS.items()
    ]
    needed = ["torch", "numpy", "pillow", "safetensors", "pydantic", "jaxtyping"]
    data = read_export(exported)[0].original
    needed += data.decoder_packages if isinstance(data, LatentSource) else []
    with _without_lock_file():
        save(
            str(out),
            loader_module=__name__,
            data_path=str(exported),
            code_paths=[str(Path(serving.__file__).parents[1])],
            signature=ModelSignature(inputs=Schema(columns)),
            input_example=pandas.DataFrame(EXAMPLE),
            pip_requirements=needed,
        )


@contextmanager
def _without_lock_file() -> Iterator[None]:
    """Within the block, MLflow copies no uv.lock and pyproject.toml of the working folder.

    They may be another project's, and name private package registries. A user's own setting stays.
    """
    name = "MLFLOW_UV_AUTO_DETECT"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]


class Model:
    """The model that MLflow calls: errors of a request are returned to its sender."""

    def __init__(self, served: serving.Served) -> None:
        self.served = served

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The images of the rows of a table, as ``Served.images`` says.

        Raises MlflowException, which a server answers with status 400, for an invalid request.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self.served.images(model_input.to_dict("records"))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def _load_pyfunc(data_path: str) -> Model:
    """Loads the model; MLflow calls it with the exported file."""
    return Model(serving.Served.load(Path(data_path)))
