"""Prompts of text-to-image teachers: read from files of every kind, one by one."""

from __future__ import annotations

from tasks.data.prompts.collect import Collected, collect
from tasks.data.prompts.sources import PromptSource, open_prompts

__all__ = ["Collected", "PromptSource", "collect", "open_prompts"]
