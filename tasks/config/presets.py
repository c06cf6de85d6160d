"""Presets: whole experiments in conf/preset, composed by Hydra into one complete set of params.

The result depends on the preset, the overrides and the code alone, never on what params.yaml held
before. DVC composes the same way: `dvc exp run -S preset=tiny -S student.steps=8`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from tasks.config.extensions import extension_digest, load_extensions
from tasks.config.overrides import apply_override, parse_override, read_mapping, tags_in, validated
from tasks.config.schema import Params, params_model

DEFAULT = "mnist-sigdeg"
CONF = "conf"


def presets(root: Path) -> dict[str, str]:
    """What each preset of the project is for, one line each, by name."""
    return {path.stem: _about(path) for path in sorted((root / CONF / "preset").glob("*.yaml"))}


def compose(root: Path, preset: str = DEFAULT, overrides: Sequence[str] = ()) -> Params:
    """The params of a preset after `key.sub=value` overrides (values are YAML).

    An override that picks a variant (`method.kind=swd`) brings the variant's own defaults, and the
    training settings of conf/student that suit it. Raises InputError, one line that names the key,
    what came and what is allowed.
    """
    _known(root, preset)
    parsed = [parse_override(text) for text in overrides]
    named: Any = []
    for file in (root / CONF / "preset" / f"{preset}.yaml", root / CONF / "config.yaml"):
        named = read_mapping(file).get("extensions", named)  # as Hydra does: the last one counts
    for keys, value in parsed:
        named = value if keys == ["extensions"] else named
    load_extensions(named, root)
    model = params_model()
    chosen = [choice for keys, value in parsed for choice in tags_in(model, keys, value)]
    data = _composed(root, preset, chosen)
    # variants first, so that their own keys may come in any order on the command line
    for keys, value in sorted(parsed, key=lambda item: not list(tags_in(model, *item))):
        apply_override(model, data, keys, value)
    if named:
        data["extensions_digest"] = extension_digest(named, root)
    return validated(model, data, source=f"preset {preset}")


def _composed(root: Path, preset: str, chosen: Sequence[tuple[str, str]]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from tasks.config.defaults import store_defaults

    groups = store_defaults(params_model())
    choices = [f"{group}={option}" for group, option in chosen if group in groups]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str((root / CONF).resolve()), version_base=None):
            composed = hydra_compose("config", overrides=[f"preset={preset}", *choices])
        data = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"preset {preset}: Hydra cannot compose it: {reason}") from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _known(root: Path, preset: str) -> None:
    names = list(presets(root))
    if preset in names:
        return
    if not names:
        raise InputError(
            f"{root / CONF / 'preset'}: no presets here: expected the project's root folder"
        )
    close = difflib.get_close_matches(preset, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
    raise InputError(f"preset = {preset}: no such preset, {hint}")


def _about(path: Path) -> str:
    """The first comment of the file that is not Hydra's `@package`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""
