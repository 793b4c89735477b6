"""Values of data: synthetic data, the user's own files, and the entries of config/data.lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from floral.config.schema.base import Frozen


class Synthetic(Frozen):
    """Data drawn from the task's seed: h = x (W + scale u_c v_cᵀ) + b (arXiv 2410.03497, synthetic tasks)."""

    kind: Literal["linear", "mlp"]
    dimension: int = Field(default=10, ge=1)
    outputs: int = Field(default=3, ge=1)
    samples_per_client: int = Field(ge=2)
    rank: int = Field(default=1, ge=1)
    scale: float = 2.0
    simple: bool = Field(
        default=False, exclude_if=lambda simple: not simple, description="the plainest teachers, see synthetic.generate"
    )
    normalised: bool = Field(
        default=False,
        exclude_if=lambda normalised: not normalised,
        description="of mlp: hidden outputs have mean 0 and variance 1 within each client",
    )
    label_noise: float = Field(default=0.0, ge=0)
    population: int = Field(
        default=4096, ge=1, description="fresh rows per cluster on which the population risk is measured"
    )

    @model_validator(mode="after")
    def _only_hidden_outputs_are_normalised(self) -> Synthetic:
        if self.normalised and self.kind != "mlp":
            raise ValueError(f"data.normalised: kind: {self.kind} has no hidden outputs; leave it out")
        return self


class CustomData(Frozen):
    """Your own data, split where they are in two parts (train and test), else by `test_share`.

    folder: images, one folder per class, or folders train and test of such. table: a parquet or CSV file with a row per
    sample, or a folder of two, train.* and test.*. arrays: x and y (and client), or train_x, train_y, test_x and test_y
    (and train_client and test_client), in an .npz file or a folder of .npy files.
    """

    kind: Literal["folder", "table", "arrays"]
    path: str = Field(description="the file or folder, from where commands are typed; ~ is your home")
    label: str | None = Field(default=None, description="of a table: the column of classes, integers 0, 1, … or words")
    features: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="of a table: the columns of numbers; all others by default"
    )
    client: str | None = Field(default=None, description="of a table: the column that says whose each row is")
    test_share: float = Field(default=0.2, gt=0, lt=1, description="share of test rows, of every client's if there are")

    @model_validator(mode="after")
    def _columns_are_of_tables(self) -> CustomData:
        if self.kind == "table" and self.label is None:
            raise ValueError("data.label: a table needs the name of the column that holds the classes")
        for key in () if self.kind == "table" else ("label", "features", "client"):
            if getattr(self, key) is not None:
                raise ValueError(f"data.{key}: is of kind: table alone; leave it out")
        return self

    @model_validator(mode="after")
    def _a_column_has_one_use(self) -> CustomData:
        used = [name for name in (self.label, self.client, *(self.features or ())) if name is not None]
        if twice := [name for name in used if used.count(name) > 1]:
            raise ValueError(f"data: column {twice[0]!r} stands twice in label, client and features; name it once")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What its reader is told."""
        keys = {"test_share"} | ({"label", "features", "client"} if self.kind == "table" else set())
        return self.model_dump(mode="json", include=keys)


def _kind_of_data(data: Any) -> str | None:
    kind = data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", None)
    known = {"linear": "drawn", "mlp": "drawn", "folder": "own", "table": "own", "arrays": "own"}
    return "named" if isinstance(data, str) else known.get(str(kind))


Data = Annotated[
    Annotated[str, Tag("named")] | Annotated[Synthetic, Tag("drawn")] | Annotated[CustomData, Tag("own")],
    Discriminator(
        _kind_of_data,
        custom_error_type="data",
        custom_error_message="expected a name in config/data.lock, or a kind: linear or mlp (drawn), "
        "folder, table or arrays (your own)",
    ),
]
NOTHING = "nothing"
"""The `data` of a task whose runs read and train nothing: what they take is what the pipeline costs."""


class DataFile(Frozen):
    """One raw file of a data set: where it comes from and the hash of its unpacked content."""

    path: str = Field(description="path below the data folder (FLORAL_DATA or data_dir), absolute of your own data")
    urls: tuple[str, ...] = ()
    sha256: str | None = Field(
        default=None, description="of the unpacked content; none: recorded at first, marked unverified"
    )


class DataSet(Frozen):
    """One entry of config/data.lock, or a task's own data."""

    title: str
    reader: str
    exact: bool = Field(default=True, description="false: a lossy or partial copy, marked so in the report")
    note: str = ""
    files: tuple[DataFile, ...] = ()
    classes: int | None = Field(default=None, ge=1, description="how many; none: only known once the data are read")
    options: Mapping[str, Any] = Field(default_factory=dict, description="keyword arguments of the reader")
    own: bool = Field(default=False, description="declared in a task: not in data.lock, and known to nobody else")
