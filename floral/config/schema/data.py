"""Define the YAML keys of data: synthetic data, the user's own files, and the entries of config/data.lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from floral.config.schema.base import Frozen, is_none


class Synthetic(Frozen):
    """Synthetic regression data. A random model for each cluster, the teacher, computes the targets of its samples.

    From an input x, the teacher of cluster c computes h = x (W + scale·u_c v_cᵀ) + b. With `kind: linear`, the targets
    are the first `outputs` coordinates of h. With `kind: mlp`, they are a linear map of ReLU(h). All clusters have the
    same random matrix W and bias b. Each cluster has its own random matrices u_c and v_c, which have `rank` columns.
    The factor `scale` sets how much the teachers of different clusters differ.

    Source: arXiv 2410.03497, synthetic tasks.
    """

    kind: Literal["linear", "mlp"] = Field(description="Kind of teacher: linear, or mlp with one hidden ReLU layer.")
    dimension: int = Field(default=10, ge=1, description="Number of input features, d.")
    outputs: int = Field(default=3, ge=1, description="Number of regression targets of a sample.")
    samples_per_client: int = Field(
        ge=2, description="Number of samples of each client, of which a fifth are test samples."
    )
    rank: int = Field(default=1, ge=1, description="Rank of u_c v_cᵀ, the difference between cluster c and W.")
    scale: float = Field(default=2.0, description="Factor of u_c v_cᵀ, the difference between cluster c and W.")
    simple: bool = Field(
        default=False,
        exclude_if=lambda simple: not simple,
        description="Whether W is the identity, b is 0, and each cluster multiplies `rank` coordinates by 1 + scale.",
    )
    normalised: bool = Field(
        default=False,
        exclude_if=lambda normalised: not normalised,
        description="For mlp: whether ReLU(h) is normalised to mean 0 and variance 1 within each client.",
    )
    label_noise: float = Field(
        default=0.0, ge=0, description="Standard deviation of Gaussian noise added to training and test targets."
    )
    population: int = Field(
        default=4096, ge=1, description="Number of noise-free samples in the global test set of each cluster."
    )

    @model_validator(mode="after")
    def _only_hidden_outputs_are_normalised(self) -> Synthetic:
        if self.normalised and self.kind != "mlp":
            raise ValueError(
                f"`data.normalised` needs `kind: mlp`, but `kind` is {self.kind}; remove the key `normalised`"
            )
        return self


KEYS_OF_KIND = {
    "folder": ("resize",),
    "table": (
        "label", "features", "drop", "client", "separator", "decimal", "missing", "text", "tokenizer", "tokens",
        "resize",
    ),
    "arrays": ("channels",),
    "pflib": ("channels",),
    "clients": ("each",),
    "domains": ("each",),
}  # fmt: skip
"""Kind of custom data → keys that only some kinds have. With a kind in GROUPED, those of the kind in `each` come in."""

GROUPED = {"clients": "client", "domains": "domain"}
"""Kind of custom data with one file or folder for each client or domain → the word for this client or domain."""
CUSTOM_KINDS = ("folder", "table", "arrays", "clients", "domains", "pflib")
"""Formats of custom data."""
MAX_SIDE = 4096
"""Largest side of a resized image in pixels."""


def _as_word(value: Any) -> Any:
    """Return a number as text, because YAML reads -999 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_size(value: Any) -> Any:
    """Return height and width in pixels for a side length, or for a list of both."""
    sides = [value, value] if isinstance(value, int) else value
    if not (isinstance(sides, list | tuple) and len(sides) == 2) or not all(
        type(side) is int and 1 <= side <= MAX_SIDE for side in sides
    ):
        raise ValueError(
            f"must be a side length in pixels from 1 to {MAX_SIDE}, such as 64, or [height, width], such as [48, 64]"
        )
    return tuple(sides)


class CustomData(Frozen):
    """Custom data: the user's own files. The key `kind` is the format of the files.

    The data may already be split into training and test samples. If not, floral splits them, and `test_share` is the
    share of the test samples.

    - folder: one folder of images for each class. Split data have a folder train and a folder test, and both contain
      one folder for each class.

    - table: a parquet or CSV file with one sample per line. Split data are a folder with two such files, train.* and
      test.*. A parquet file may hold one encoded image per line instead of numbers. A table may also hold one text per
      line, which the tokenizer of a pretrained model turns into token ids.

    - arrays: an .npz file or a folder of .npy files, with the arrays x (inputs), y (classes) and optionally client (for
      example the writer of each sample). Split data have the arrays train_x, train_y, test_x, test_y, and optionally
      train_client and test_client.

    - clients: a folder with one file or folder for each client, which has its name. `each` is the format of all of
      them: folder, table or arrays.

    - domains: a folder with one file or folder for each domain, such as the source of the samples. It has the name of
      the domain, and `each` is as above. The partition kind `domains` gives each cluster one of them.

    - pflib: a folder as the scripts of PFLlib write it, with train/<k>.npz and test/<k>.npz for each client k.
    """

    kind: Literal["folder", "table", "arrays", "clients", "domains", "pflib"] = Field(
        description="Format: a folder of images with one folder per class, a parquet or CSV table, NumPy arrays, one "
        "file or folder per client or per domain, or the files of PFLlib."
    )
    each: Literal["folder", "table", "arrays"] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For clients and domains: format of the file or folder of each.",
    )
    path: str = Field(
        description="File or folder, absolute or relative to the folder of the study; ~ is your home directory."
    )
    label: str | None = Field(
        default=None, description="For a table: name of the column with the class, as integers 0, 1, … or words."
    )
    features: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="For a table: names of the numeric input columns; by default all remaining columns.",
    )
    drop: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        exclude_if=is_none,
        description="For a table without `features`: names of columns that are no features, such as the row numbers.",
    )
    client: str | None = Field(
        default=None, description="For a table: name of the column with the natural client of each sample."
    )
    separator: str | None = Field(
        default=None,
        pattern=r"^[^\w\s\"'.+-]$|^[\t ]$",
        exclude_if=is_none,
        description='For a CSV table: the character between cells, such as ";" or "\\t" (tab); by default a comma.',
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, exclude_if=is_none, description="For a CSV table: decimal sign of numbers; by default a point."
    )
    missing: tuple[Annotated[str, BeforeValidator(_as_word)], ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description='For a table: words for "no value", "" for an empty cell; rows with one in a used column are left '
        "out. By default, such rows are refused.",
    )
    text: str | None = Field(
        default=None, exclude_if=is_none, description="For a table: name of the column with the texts to be classified."
    )
    tokenizer: str | None = Field(
        default=None,
        exclude_if=is_none,
        description="For a table with `text`: folder of the pretrained model that has the tokenizer (tokenizer.json).",
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        exclude_if=is_none,
        description="For a table with `text`: number of token ids of a sample; longer texts are cut, shorter ones are "
        "filled up with the padding id. By default 128, and texts that are too long for the model are refused.",
    )
    channels: Literal["first", "last"] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For arrays: axis of the colour channels, [N, C, H, W] or [N, H, W, C]; by default last, if that "
        "is certain. For pflib: by default first.",
    )
    resize: Annotated[tuple[int, int], BeforeValidator(_as_size)] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For images in folders or tables: side length in pixels, or [height, width]. Each image is resized "
        "to it by Pillow's bilinear filter, whatever its aspect ratio.",
    )
    test_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of test samples in each client (without clients: in each class), if the data have one part.",
    )

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> CustomData:
        if self.kind in GROUPED and self.each is None:
            raise ValueError(
                f"`data.each` is missing; set it to the format of one {GROUPED[self.kind]}: folder, table or arrays"
            )
        form = self.each if self.kind in GROUPED else self.kind
        if form == "table" and self.label is None:
            raise ValueError("`data.label` is missing; set it to the name of the table's column with the classes")
        if self.kind == "clients" and self.client is not None:
            raise ValueError(
                "`data.client` is not for `kind: clients`, whose files have the names of clients; remove it"
            )
        for key in {key for keys in KEYS_OF_KIND.values() for key in keys} - {*self.format_keys}:
            if getattr(self, key) is not None:
                kinds = " and ".join(f"`kind: {kind}`" for kind, keys in KEYS_OF_KIND.items() if key in keys)
                raise ValueError(f"`data.{key}` is for {kinds} only; remove the key `{key}`")
        return self

    @model_validator(mode="after")
    def _a_column_has_one_use(self) -> CustomData:
        if self.features and self.drop:
            raise ValueError("`data.drop` and `data.features` exclude each other; remove one of these keys")
        if self.text is not None and (self.features or self.drop):
            raise ValueError("`data.text` excludes `data.features` and `data.drop`; remove these keys")
        named = (self.label, self.client, self.text, *(self.features or ()), *(self.drop or ()))
        used = [name for name in named if name is not None]
        if repeated := [name for name in used if used.count(name) > 1]:
            raise ValueError(
                f"column {repeated[0]!r} is named twice in `label`, `client`, `text`, `features` and `drop`; name it "
                "once"
            )
        return self

    @model_validator(mode="after")
    def _texts_have_a_tokenizer(self) -> CustomData:
        if self.text is not None and self.tokenizer is None:
            raise ValueError(
                "`data.tokenizer` is missing; name the folder of the pretrained model whose tokenizer to use"
            )
        if self.text is None and (self.tokenizer, self.tokens) != (None, None):
            raise ValueError("`data.tokenizer` and `data.tokens` need `data.text`; name the column with the texts")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the function that reads the files, such as `test_share`."""
        return self.model_dump(mode="json", include={"test_share", *self.format_keys} - {"tokenizer"})

    @property
    def format_keys(self) -> tuple[str, ...]:
        """The keys that belong to the format of the files, without those of other formats."""
        if self.kind not in GROUPED:
            return KEYS_OF_KIND.get(self.kind, ())
        of_each = (key for key in KEYS_OF_KIND.get(str(self.each), ()) if (self.kind, key) != ("clients", "client"))
        return (*KEYS_OF_KIND[self.kind], *of_each)


def _kind_of_data(data: Any) -> str | None:
    kind = data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", None)
    tags = {"linear": "synthetic", "mlp": "synthetic", **dict.fromkeys(CUSTOM_KINDS, "custom")}
    return "named" if isinstance(data, str) else tags.get(str(kind))


Data = Annotated[
    Annotated[str, Tag("named")] | Annotated[Synthetic, Tag("synthetic")] | Annotated[CustomData, Tag("custom")],
    Discriminator(
        _kind_of_data,
        custom_error_type="data",
        custom_error_message="expected a name in config/data.lock, or a mapping whose `kind` is linear or mlp "
        "(synthetic data), folder, table, arrays, clients, domains or pflib (custom data)",
    ),
]
NOTHING = "nothing"
"""Value of `data` in a task whose runs read no data and train no model. Their time is the overhead of the pipeline."""


class DataFile(Frozen):
    """A raw file of a data set: its path, the addresses of its copies, and the hash of its unpacked content."""

    path: str = Field(
        description="Path relative to the data folder (FLORAL_DATA, --data-dir or data_dir); absolute for custom data."
    )
    urls: tuple[str, ...] = Field(
        default=(), description="Sources, tried in order: https URLs, or package:<package>/<path> for installed files."
    )
    sha256: str | None = Field(
        default=None,
        description="SHA-256 of the unpacked content; if null, the first fetch records it as unverified.",
    )


class DataSet(Frozen):
    """A data set: an entry of config/data.lock, or custom data (the user's own files)."""

    title: str = Field(description="Title of the data set in reports.")
    reader: str = Field(description="Name of the function in floral/data that reads the files.")
    exact: bool = Field(
        default=True,
        description="Whether the data are the original; if not (a lossy or partial copy), the report says so.",
    )
    note: str = Field(default="", description="Remark on the data, printed in the report.")
    files: tuple[DataFile, ...] = Field(
        default=(), description="Raw files, in the order in which the reader expects them."
    )
    version: int = Field(
        default=1,
        ge=1,
        description="Version of the reader. Increase it when the reader gives other samples: runs get new names.",
    )
    classes: int | None = Field(
        default=None, ge=1, description="Number of classes; null if the number is known only after the data are read."
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="Keyword arguments of the function `reader`.")
    own: bool = Field(
        default=False, description="Whether these are custom data, declared in a task and not in data.lock."
    )
