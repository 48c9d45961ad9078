"""fastvim: ablations of Fast Vision Mamba (arXiv 2502.00594).

After `import fastvim`, `timm.create_model("fastvim_tiny_patch16_224")` knows the models. torch
and timm are not imported here (that takes seconds): registration waits until timm is.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"


class _RegisterAfterTimm(importlib.abc.MetaPathFinder):
    """Registers the models as soon as timm has been imported."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                importlib.import_module("fastvim.models.timm_models")

            spec.loader.exec_module = execute_and_register
        return spec


if "timm" in sys.modules:
    importlib.import_module("fastvim.models.timm_models")
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
