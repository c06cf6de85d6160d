"""For Hydra inside of DVC (`dvc exp run -S ...`): makes the sections' defaults known to it.

.dvc/config names the folder above as `hydra.plugins_path`; this project's own programs call
`store_defaults` themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SectionDefaults(SearchPathPlugin):
    """Stores the defaults before every composition; the search path stays as it is."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        project = str(Path(__file__).resolve().parents[3])
        if project not in sys.path:  # `dvc` as a program does not start in the project's folder
            sys.path.insert(0, project)
        from tasks.config.defaults import store_defaults
        from tasks.config.schema import params_model

        store_defaults(params_model())
