"""Search spaces: one file each, with a preset's name, objectives, first points and a sampler."""

import importlib
import pkgutil

SPACES = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
}
