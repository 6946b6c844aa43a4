"""The tasks: every `Task` that a module of this folder defines. Nothing else lists them."""

import importlib
import pkgutil

from rc3_jax.tasks.base import Task

_names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
_values = [value for name in _names for value in vars(importlib.import_module(name)).values()]
_tasks = sorted((v for v in _values if isinstance(v, Task)), key=lambda task: task.order)
TASKS: dict[str, Task] = {task.name: task for task in _tasks}
"""Name → task, in the order of tables."""
