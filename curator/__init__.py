"""Lake Curator: what every domain and every row of a lake is worth for a target.

    import curator

    with curator.open_lake("s3://bucket/corpus/", text="text", domain="source") as lake:
        run = lake.learn("s3://bucket/target.parquet", steps=300)
        lake.publish(run)
        print(lake.sql("SELECT domain, avg(sample_weight) FROM samples GROUP BY ALL"))

Importing this package is cheap: neither torch nor transformers nor polars is loaded before it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator.compare import ComparisonPlan
    from curator.comparison import Comparison
    from curator.config import CompareConfig, Config, LakeConfig, LearnConfig, RefreshConfig, TargetConfig, load_config
    from curator.errors import CuratorError
    from curator.garbage import Removal
    from curator.lake import Lake, open_lake
    from curator.memory import write_corpus
    from curator.publish import Publication
    from curator.refresh import Refresh
    from curator.run import Run, Version
    from curator.score import Scores
    from curator.status import Status
    from curator.verify import Finding, Verification
    from curator.versions import Rollback

__version__ = "0.1.0"

_HOMES = {
    "CompareConfig": "curator.config",
    "Comparison": "curator.comparison",
    "ComparisonPlan": "curator.compare",
    "Config": "curator.config",
    "CuratorError": "curator.errors",
    "Finding": "curator.verify",
    "Lake": "curator.lake",
    "LakeConfig": "curator.config",
    "LearnConfig": "curator.config",
    "Publication": "curator.publish",
    "Refresh": "curator.refresh",
    "RefreshConfig": "curator.config",
    "Removal": "curator.garbage",
    "Rollback": "curator.versions",
    "Run": "curator.run",
    "Scores": "curator.score",
    "Status": "curator.status",
    "TargetConfig": "curator.config",
    "Verification": "curator.verify",
    "Version": "curator.run",
    "load_config": "curator.config",
    "open_lake": "curator.lake",
    "write_corpus": "curator.memory",
}

__all__ = [
    "CompareConfig",
    "Comparison",
    "ComparisonPlan",
    "Config",
    "CuratorError",
    "Finding",
    "Lake",
    "LakeConfig",
    "LearnConfig",
    "Publication",
    "Refresh",
    "RefreshConfig",
    "Removal",
    "Rollback",
    "Run",
    "Scores",
    "Status",
    "TargetConfig",
    "Verification",
    "Version",
    "load_config",
    "open_lake",
    "write_corpus",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
