"""fsseg: few-shot segmentation experiments that can be trusted."""

__version__ = "0.1.0"
