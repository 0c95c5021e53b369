"""What several sections are made of."""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

EMPTY: Mapping[str, Any] = MappingProxyType({})


class PriorityClass(enum.IntEnum):
    """Priority classes; a higher value is more urgent."""

    batch = 0
    standard = 1
    interactive = 2
