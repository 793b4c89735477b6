"""Write the adaptor of one client as an adapter of the package peft, which is not needed for this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from floral.api.trained import TrainedModel
from floral.config import pretrained
from floral.config.reading import ConfigError
from floral.core.spec import Params
from floral.io.files import atomic
from floral.nn.layers import Embedding, Linear
from floral.nn.model import Model
from floral.toolkit.parts import head_name

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model"
TASKS = {"bert": "FEATURE_EXTRACTION", "huggingface": "SEQ_CLS"}
"""Kind of a model → its `task_type` in the package peft."""


def export_peft(trained: TrainedModel, client: int, folder: Path) -> list[Path]:
    """Write the adaptor with which a client predicts to a folder, and return the paths of the files.

    `peft.PeftModel.from_pretrained` reads the folder. A mixture of C adaptors of rank r is written as one adapter of
    rank C·r, which gives the same outputs: its B holds the mixture weights and the scales alpha/r.

    For `kind: huggingface`, the adapter contains the trained head. For `kind: bert`, the network of peft is a
    `transformers.BertModel` without a head, so the head is a file of its own, with `weight` and `bias`.

    Raises:
        ConfigError: the folder is not empty, there is no such client, the model is no pretrained encoder, its base was
            trained, or the client does not predict with low-rank adaptors of linear layers and embeddings.
    """
    run = trained.run
    if run.task.model.kind not in TASKS:
        raise ConfigError(
            f"the model of the task {run.task.name} has `kind: {run.task.model.kind}`, but an adapter of peft "
            f"needs a pretrained encoder; choose a run with `kind: {'` or `kind: '.join(TASKS)}`"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; name a new folder")
    view, adapted = trained.view(client), trained.method.adapted
    if adapted is None:
        raise ConfigError(
            f"clients of the variant {run.variant.name} have no adaptors, or weigh them for each sample, which "
            "an adapter of peft cannot; choose a run of another variant, such as fedit or floral_1"
        )
    model = trained.build_model()
    head = head_name(model)
    with torch.no_grad():
        base, layers = adapted(view)
    require_frozen_base(base, model, head, run.task.model.kind)
    head_values = {key: base.get(f"{head}.{key}", model.constants.get(f"{head}.{key}")) for key in ("weight", "bias")}
    of_head = {key: value for key, value in head_values.items() if value is not None}
    below = {name: params for name, params in layers.items() if name != head}
    if head in layers:
        added = layers[head]
        of_head["weight"] = of_head["weight"] + added["B"] @ added["A"]
        if "bias" in added:
            of_head["bias"] = of_head["bias"] + added["bias"]
    modules = {name: module_name(name, model) for name in (head, *below)}
    for name in below:
        require_lora(name, model, modules[name])
    tensors = adapter_tensors(below, modules, model)
    settings = adapter_config(below, modules, trained)
    files = {}
    if run.task.model.kind == "huggingface":
        settings["modules_to_save"] = [modules[head]]
        tensors |= {f"{PREFIX}.{modules[head]}.{key}": value for key, value in of_head.items()}
    else:
        files[HEAD] = of_head
    files[WEIGHTS] = tensors
    if bad := [name for values in files.values() for name, tensor in values.items() if not tensor.isfinite().all()]:
        raise ConfigError(f"{bad[0]} is not finite, because the run has diverged; choose another run")
    folder.mkdir(parents=True, exist_ok=True)
    for file, values in files.items():
        content = {name: tensor.detach().contiguous().clone() for name, tensor in values.items()}
        atomic(folder / file, save(content, metadata={"format": "pt"}))
    atomic(folder / CONFIG, json.dumps(settings, indent=2).encode())
    return [folder / name for name in (CONFIG, *reversed(files))]


def require_frozen_base(base: Params, model: Model, head: str, kind: str) -> None:
    """Check that all values of the model below the head are those of the pretrained network.

    Raises:
        ConfigError: some are trained, or were drawn because the network's folder has no values for them.
    """
    trained = [name for name in base if name.rpartition(".")[0] != head]
    if trained:
        more = f" and {len(trained) - 1} more" if len(trained) > 1 else ""
        raise ConfigError(
            f"the base was trained or changed ({trained[0]}{more}), but an adapter of peft fits the published "
            "base only; train with `base: frozen`"
        )
    if kind == "huggingface":
        below = {name: in_file for name, (in_file, _) in model.names.items() if name.rpartition(".")[0] != head}
        stored = names_in(model)
        for in_file in below.values():
            if not any(in_file == name or in_file.endswith(f".{name}") for name in stored):
                raise ConfigError(
                    f"the folder of the network has no values for {in_file}, which were drawn for this seed "
                    "and are not part of an adapter; choose a run of a network with all values below the head"
                )


def names_in(model: Model) -> set[str]:
    """Return the names of all tensors in the folder from which a wrapped module of Hugging Face was read."""
    module: Any = model.forward
    folder = Path(module.module.config.name_or_path)
    names: set[str] = set()
    for path in pretrained.weights(folder):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def module_name(layer: str, model: Model) -> str:
    """Return the name that a layer has in the network of transformers."""
    return model.names.get(f"{layer}.weight", (f"{layer}.weight", ()))[0].removesuffix(".weight")


def require_lora(layer: str, model: Model, module: str) -> None:
    """Check that peft can adapt a layer in the same way.

    Raises:
        ConfigError: the layer is neither a linear layer nor an embedding of its own.
    """
    declared, network = model.layers[layer], getattr(model.forward, "module", None)
    fits = isinstance(declared, Linear | Embedding)
    if fits and isinstance(network, nn.Module):
        fits = isinstance(network.get_submodule(module), nn.Linear | nn.Embedding)
    if not fits:
        raise ConfigError(
            f"the adaptor of {layer} ({type(declared).__name__}) is no LoRA of a linear layer or an embedding; "
            "choose a run whose `adapt` names only such layers, with `norm: none`"
        )


def adapter_tensors(layers: Mapping[str, Params], modules: Mapping[str, str], model: Model) -> dict[str, Tensor]:
    """Return the tensors of an adapter, by their names in peft.

    Raises:
        ConfigError: there is no adaptor, or the adaptors have biases and belong to embeddings too.
    """
    if not layers:
        raise ConfigError("no layer below the head has an adaptor; name layers in `adapt` of the model")
    embeddings = [name for name in layers if isinstance(model.layers[name], Embedding)]
    biased = has_biases(layers)
    if biased and embeddings:
        raise ConfigError(
            f"the adaptors have biases, which peft does not allow together with the embedding {embeddings[0]}; "
            "train with `bias: false`, or remove embeddings from `adapt`"
        )
    tensors: dict[str, Tensor] = {}
    for name, params in layers.items():
        place = f"{PREFIX}.{modules[name]}"
        if name in embeddings:
            tensors |= {f"{place}.lora_embedding_{key}": params[key] for key in "AB"}
            continue
        tensors |= {f"{place}.lora_{key}.weight": params[key] for key in "AB"}
        if biased:
            tensors[f"{place}.lora_B.bias"] = params.get("bias", params["B"].new_zeros(len(params["B"])))
    return tensors


def has_biases(layers: Mapping[str, Params]) -> bool:
    """Return whether the bias of an adaptor is not zero."""
    return any(bool(params["bias"].any()) for params in layers.values() if "bias" in params)


def adapter_config(layers: Mapping[str, Params], modules: Mapping[str, str], trained: TrainedModel) -> dict[str, Any]:
    """Return the content of adapter_config.json. The scale of every layer is 1: `lora_alpha` is the rank."""
    ranks = {modules[name]: len(params["A"]) for name, params in layers.items()}
    most = max(ranks.values())
    unequal_ranks = {name: rank for name, rank in ranks.items() if rank != most}
    model = trained.run.task.model
    return {
        "peft_type": "LORA",
        "task_type": TASKS[model.kind],
        "base_model_name_or_path": str(model.arguments["path"]),
        "r": most,
        "lora_alpha": most,
        "rank_pattern": unequal_ranks,
        "alpha_pattern": unequal_ranks,
        "lora_dropout": float(trained.run.variant.params.get("dropout", 0.0)),
        "lora_bias": has_biases(layers),
        "target_modules": list(ranks),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
