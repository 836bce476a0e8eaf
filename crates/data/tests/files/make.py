"""Makes the Parquet files of the tests with Hugging Face's own library.

    pip install datasets
    python make.py
"""

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
