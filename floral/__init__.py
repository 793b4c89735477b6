"""FLoRAL-Bench: from raw data to a report on personalised federated learning."""

__version__ = "0.1.0"
