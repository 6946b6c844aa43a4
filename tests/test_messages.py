"""Messages name settings that there are."""

from __future__ import annotations

import ast
import re

from rc3_jax.config import CCLMSettings, RC3Settings
from rc3_jax.settings import RENAMED, all_settings
from rc3_jax.stored_config import REMOVED
from rc3_jax.tasks.config import FinetuneSettings
from tests.tiny import ROOT

GROUPS = "data|model|optimizer|evaluation|objective|batch_mix|checkpoint|mesh|train|test|select"
NAME = re.compile(rf"(?<![\w./-])(?:{GROUPS})(?:\.[a-z_]\w*)+(?![\w/(])")
FILE = re.compile(r".*\.(gz|txt|safetensors|json)")
ADVICE = re.compile(r"\bset ([a-z]+_[a-z_]+)\b")
FORMER = {*RENAMED, *REMOVED}
OF_OTHERS = {"model.encode_text", "model.get_text_features", "model.get_image_features"}
"""What a model card tells to call."""


def literals(path):
    """Texts that a program may show: all but docstrings, each part of a formatted one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation:
            yield node.lineno, node.value


def test_messages_name_settings_that_there_are():
    known = {n for c in (RC3Settings, CCLMSettings, FinetuneSettings) for n, _ in all_settings(c)}
    last = {name.rpartition(".")[2] for name in known}
    allowed = known | FORMER | OF_OTHERS
    found, wrong = set(), []
    for folder in ("rc3_jax", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            for line, text in literals(path):
                for name in NAME.findall(text):
                    found.add(name)
                    if name not in allowed and not FILE.fullmatch(name):
                        wrong.append(f"{path}:{line}: {name}")
                wrong += [f"{path}:{line}: {n}" for n in ADVICE.findall(text) if n not in last]
    assert {"data.max_length", "optimizer.lr", "model.text.max_positions"} <= found
    assert not wrong, "\n".join(wrong)
