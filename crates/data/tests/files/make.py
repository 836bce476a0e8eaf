"""Makes the Parquet files of the tests with Hugging Face's own library.

    pip install datasets
    python make.py
"""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

messages = Dataset.from_list(
    [
        {
            "id": 7,
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "B", "name": "bot"},
            ],
            "score": 0.5,
        },
        {"id": None, "messages": [{"role": "user", "content": "é\n"}], "score": None},
        {"id": 9, "messages": [], "score": 1.0},
    ]
)
pq.write_table(messages.data.table, "messages.parquet", compression="snappy")
table = Dataset.from_dict({"instruction": ["a", "b"] * 3, "output": ["c", ""] * 3})
pq.write_table(table.data.table, "alpaca.parquet", compression="zstd", row_group_size=2)


# Columns that JSON has no types for, inside the turns of a conversation too; some hold raw bytes.
UTC = datetime.timezone.utc
turn = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("digest", pa.binary(4)),
    ]
)
when = datetime.datetime(2023, 4, 9, 0, 2, 53, 120000, tzinfo=UTC)
types = pa.table(
    {
        "messages": pa.array(
            [
                [
                    {"role": "user", "content": "Hi", "timestamp": when, "digest": b"abcd"},
                    {"role": "assistant", "content": "B", "timestamp": None, "digest": None},
                ]
            ],
            pa.list_(turn),
        ),
        "nanos": pa.array([1681000000123456789], pa.timestamp("ns")),
        "seconds": pa.array([datetime.datetime(2023, 4, 9)], pa.timestamp("s")),
        "day": pa.array([datetime.date(1969, 12, 31)]),
        "time": pa.array([datetime.time(1, 2, 3, 4)], pa.time64("us")),
        "price": pa.array([decimal.Decimal("-12.50")], pa.decimal128(9, 2)),
        "large": pa.array([decimal.Decimal("1" + "0" * 39)], pa.decimal256(50, 0)),
        "half": pa.array(np.array([0.5], np.float16)),
        "words": pa.array([b"caf\xc3\xa9"], pa.binary()),
        "image": pa.array([{"bytes": b"\x89PNG", "path": "a.png"}]),
        "raw": pa.array([b"abc"], pa.binary(3)),
        "scores": pa.array([[("a", 1.5)]], pa.map_(pa.string(), pa.float32())),
        "sums": pa.array([[("a", b"ab")]], pa.map_(pa.string(), pa.binary(2))),
    }
)
pq.write_table(types, "types.parquet")
