"""A published version as a Croissant description: JSON-LD of its files, their columns and what the weights mean.

Croissant has no term for weights, so that they are fields with a description. Files are named one by one, as the
version's manifest has them, relative to the destination. Columns of nested types are left out, which Croissant could
only take apart. Source: docs.mlcommons.org/croissant/docs/croissant-spec.html, version 1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connectors.commit import Version
from connectors.manifest import Manifest
from connectors.parquet import logical_type, read_parquet_info
from connectors.store import ObjectInfo, redact_url
from curator.catalog import WEIGHT_COLUMNS, check_published_files
from curator.files import write_result
from curator.versions import find_version

if TYPE_CHECKING:
    from curator.lake import Lake

_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The specification's own, word for word."""
_MEANING = {
    "sample_weight": "How much the row counts in training: mean 1 over the rows of the version that have a weight.",
    "domain_weight": "Share of training tokens that the row's domain should have; the domains' shares sum to 1.",
    "weight_run_id": "The run of Lake Curator that learned the weights.",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What was written, or would be: of which version, and the columns that it leaves out."""

    version: int
    run_id: str
    path: str
    columns: list[str]
    left_out: list[str]
    text: str


def describe(
    lake: Lake,
    path: str | Path,
    *,
    version: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Description:
    """Write the Croissant description of a published version.

    Args:
        lake: has published versions.
        path: a local file; its folder must exist.
        version: its number; by default the newest.
        overwrite: whether a file that is there may be replaced.
        dry_run: write nothing.

    Raises:
        NotFoundError: nothing was published, or no such version.
        ConfigError: a file that is there already, or that cannot be written.
        StorageError: a published file is gone.
    """
    found = find_version(lake, version)
    manifest = lake.connector.read_manifest(found)
    check_published_files(lake.connector.data, manifest)
    types = _columns(lake, manifest)
    kept = {name: kind for name, kind in types.items() if kind}
    text = json.dumps(_described(lake, found, manifest, kept), indent=2, ensure_ascii=False) + "\n"
    write_result(Path(path), text, overwrite=overwrite, dry_run=dry_run)
    return Description(
        version=found.number,
        run_id=manifest.run_id,
        path=str(path),
        columns=list(kept),
        left_out=sorted(types.keys() - kept.keys()),
        text=text,
    )


def _columns(lake: Lake, manifest: Manifest) -> dict[str, str]:
    """Columns of the published files and their types in Croissant, "" for those that have none."""
    found: dict[str, str] = {}
    for file in manifest.files:
        info = read_parquet_info(lake.connector.data, ObjectInfo(file.published_path, file.size_bytes, ""))
        for column in info.schema:
            found.setdefault(column.name, _type(column.type))
    return found


def _type(of: pa.DataType) -> str:
    plain = logical_type(of)
    kinds = {
        "sc:Text": pa.types.is_string,
        "sc:Boolean": pa.types.is_boolean,
        "sc:Integer": pa.types.is_integer,
        "sc:Float": lambda each: pa.types.is_floating(each) or pa.types.is_decimal(each),
        "sc:Date": lambda each: pa.types.is_date(each) or pa.types.is_timestamp(each),
    }
    return next((name for name, is_one in kinds.items() if is_one(plain)), "")


def _described(lake: Lake, version: Version, manifest: Manifest, types: Mapping[str, str]) -> dict[str, Any]:
    place = redact_url(lake.connector.data.url)
    name = re.sub(r"/_curator[^/]*$", "", place.rstrip("/")).rpartition("/")[2] or "lake"
    num_rows = sum(file.num_rows for file in manifest.files)
    domains = manifest.extra.get("domains") or []
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": (
            f"Version {version.number} of {redact_url(lake.config.url)}: {num_rows:,} rows of {len(domains):,} domains "
            f"with the training weights that run {manifest.run_id} of Lake Curator learned for them."
        ),
        "url": place,
        "version": f"{version.number}.0.0",
        "datePublished": version.committed_at,
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "parquet-files",
                "name": "parquet-files",
                "description": f"The files of the version, below {place}.",
                "encodingFormat": "application/x-parquet",
                "includes": [file.published_path for file in manifest.files],
            }
        ],
        "recordSet": [_samples(types), *([_domain_weights(domains)] if domains else [])],
    }


def _samples(types: Mapping[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "The rows with their weights.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"samples/{name}",
                "name": f"samples/{name}",
                "description": _MEANING.get(name, "") if name in WEIGHT_COLUMNS else "A column of the lake.",
                "dataType": kind,
                "source": {"fileSet": {"@id": "parquet-files"}, "extract": {"column": name}},
            }
            for name, kind in types.items()
        ],
    }


def _domain_weights(domains: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of domains itself, since it is small."""
    fields = {
        "domain": ("sc:Text", "Name of the domain."),
        "domain_weight": ("sc:Float", _MEANING["domain_weight"]),
        "natural_share": ("sc:Float", "Share of the tokens that the domain has by nature."),
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "domain_weights",
        "name": "domain_weights",
        "description": "What each domain is worth.",
        "key": {"@id": "domain_weights/domain"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"domain_weights/{name}",
                "name": f"domain_weights/{name}",
                "description": said,
                "dataType": kind,
            }
            for name, (kind, said) in fields.items()
        ],
        "data": [{f"domain_weights/{name}": row[name] for name in fields} for row in domains],
    }
