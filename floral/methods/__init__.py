"""All methods: those of floral, and those in the folder `methods` of the study."""

from floral.config.plugins import folders

__path__ = [str(folder.absolute()) for folder in folders("methods")]
