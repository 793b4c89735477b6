"""FLoRAL-Bench: from raw data to a report on personalised federated learning.

For notebooks and scripts: `floral.run` trains one run, `floral.load` reads the results of many.
"""

from importlib import import_module

__version__ = "0.1.0"

_PLACES = {
    "run": "floral.api.training",
    "load": "floral.api.results",
    "Results": "floral.api.results",
    "TrainedModel": "floral.api.trained",
    "ConfigError": "floral.config.reading",
}
"""Public name → the module that has it. It is imported when the name is used, so `import floral` takes no time."""


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'floral' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
