"""Cross-modal learning for image classification: how text helps to tell pictures apart."""

__version__ = "0.1.0"
