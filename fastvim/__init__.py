"""fastvim: ablations of Fast Vision Mamba (arXiv 2502.00594)."""

__version__ = "0.1.0"
