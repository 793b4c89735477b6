"""A pretrained model in a folder, as the library transformers of Hugging Face writes it. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from floral.config import paths, pretrained
from floral.core.errors import first_line
from floral.core.spec import Refused
from floral.io.tensor_files import defect
from floral.models import module
from floral.nn.model import Model
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.wrap import wrap

VERSION = 1
"""Increase it when the same run gives other numbers."""

AUTO = {"sequence_classification": "AutoModelForSequenceClassification"}
"""Value of `auto` → class of transformers."""
LAYERS = module.LAYERS
"""Layers that a module may have. Their adaptors belong to the code of its runs."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    path: str,
    auto: str = "sequence_classification",
    labels: int = 0,
    width: float = 1.0,
) -> Model:
    """Build the model of a folder with config.json and weights in the format safetensors.

    The samples are token ids, which the tokenizer of the same folder gave. `auto` is the task of the model. The head
    has random initial values if the folder has no head, or a head for another number of classes. `labels`, if it is
    set, is the number of classes that the data must have.

    Raises:
        Refused: the folder is incomplete, or the model does not fit the data.
    """
    folder = paths.in_study(path)
    if width != 1.0:
        raise Refused(
            "the method needs a wider or narrower model, but a pretrained model has one size; use another method, or "
            "`kind: module` with a function `build` that has an argument `width`"
        )
    if auto not in AUTO:
        raise Refused(f"`auto: {auto}` is unknown; write one of {', '.join(AUTO)}")
    if labels not in (0, outputs):
        raise Refused(f"`labels: {labels}` is set, but the data have {outputs} classes; correct or remove `labels`")
    if not (folder / pretrained.CONFIG).is_file() or not pretrained.weights(folder):
        raise Refused(
            f"`path: {path}`: the folder {folder} must have {pretrained.CONFIG} and weights in *.safetensors; download "
            "the model there, or correct `path`"
        )
    padding = pretrained.padding_id(folder / pretrained.CONFIG)
    if len(shape) != 1:
        raise Refused(
            f"the model needs token ids, but samples have the shape {list(shape)}; name `text` and `tokenizer` in "
            "`data`"
        )
    check_weights(folder)
    config, auto_class = loaded(folder, AUTO[auto], outputs)
    limit = getattr(config, "max_position_embeddings", None) or shape[0]
    if shape[0] > limit:
        raise Refused(
            f"samples have {shape[0]} tokens, but the model takes {limit}; set `data.tokens` to at most {limit}"
        )
    inputs = Inputs(shape, {"input_ids": "ids", "attention_mask": f"ids != {padding}"})
    model = wrap(lambda: read(folder, auto_class, config), inputs, outputs)
    return replace(model, vocabulary=getattr(config, "vocab_size", None))


def loaded(folder: Path, name: str, outputs: int) -> tuple[Any, Any]:
    """Return the configuration in the folder, and the class of transformers with this name.

    Raises:
        Refused: transformers is not installed, or does not know the model.
    """
    try:
        import transformers  # pyright: ignore[reportMissingImports] - of the extra `hf`
    except ImportError:
        raise Refused(f"`kind: huggingface` needs the package transformers; {pretrained.INSTALL}") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=outputs)
    except (OSError, ValueError, KeyError) as error:
        raise Refused(
            f"{folder / pretrained.CONFIG}: transformers cannot read it: {first_line(error)}; correct it"
        ) from None
    return config, getattr(transformers, name)


def check_weights(folder: Path) -> None:
    """Raise Refused if a file of weights in the folder cannot be read as safetensors."""
    for path in pretrained.weights(folder):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise Refused(f"{path} cannot be read as safetensors: {defect(path, error)}") from None


def read(folder: Path, auto_class: Any, config: Any) -> nn.Module:
    """Return the model of the folder. The values that the folder lacks are drawn from PyTorch's generator.

    Raises:
        Refused: values below the head are missing, or have another shape.
    """
    try:
        model, info = auto_class.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise Refused(f"{folder}: transformers cannot read it: {first_line(error)}; correct it") from None
    drawn = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    if lacking := sorted(name for name in drawn if name.startswith(f"{model.base_model_prefix}.")):
        raise Refused(
            f"{folder}: the weights have no {lacking[0]} of the shape that {pretrained.CONFIG} says; download the "
            "model again"
        )
    return model
