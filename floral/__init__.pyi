from floral.api.results import Results as Results
from floral.api.results import load as load
from floral.api.trained import TrainedModel as TrainedModel
from floral.api.training import run as run
from floral.config.reading import ConfigError as ConfigError

__version__: str
