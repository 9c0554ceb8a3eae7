"""Preferences on their way out: JSONL or Parquet, one preference pair a row, streamed."""

import io
import json
from collections.abc import Iterator

from sqlalchemy.orm import Session

from app.campaigns.models import Campaign
from app.preferences.pairs import pairs
from app.preferences.snapshot import answers

ROWS_PER_GROUP = 5000


def jsonl(session: Session, campaign: Campaign) -> Iterator[str]:
    for _answer, row in pairs(answers(session, campaign)):
        yield json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def parquet(session: Session, campaign: Campaign) -> bytes:
    """A Parquet file with the columns of the JSONL; messages are lists of {role, content}."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    strings = ("comparison_id", "annotation_id", "annotator", "chosen_id", "rejected_id", "batch_id")
    schema = pa.schema(
        [(name, messages) for name in ("prompt", "chosen", "rejected")]
        + [(name, pa.float64()) for name in ("margin", "weight")]
        + [(name, pa.string()) for name in strings]
        + [("guidelines_version", pa.int64())]
    )
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema) as writer:
        group: list[dict[str, object]] = []
        for _answer, row in pairs(answers(session, campaign)):
            group.append(row)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group.clear()
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return out.getvalue()
