"""PyTorch's TCPStore as one side of `tests/torch.rs`.

python torch_store.py client libuv|legacy PORT   every query, to a store that is there
python torch_store.py server libuv|legacy        prints its port, and keeps a store until its input ends
"""

import sys
from datetime import timedelta

from torch.distributed import TCPStore

LIMIT = timedelta(seconds=60)


def client(port: int, libuv: bool) -> None:
    store = TCPStore("127.0.0.1", port, None, False, LIMIT, use_libuv=libuv)
    before = store.num_keys()
    store.set("k", "vv")
    assert store.get("k") == b"vv"
    assert store.add("n", 5) == 5
    assert store.add("n", -7) == -2
    assert store.get("n") == b"-2"
    assert store.check(["k", "n"])
    assert not store.check(["k", "no"])
    assert store.compare_set("c", "", "new") == b"new"
    assert store.compare_set("c", "", "other") == b"new"
    assert store.compare_set("c", "new", "third") == b"third"
    assert store.compare_set("none", "expected", "new") == b"expected"
    store.append("k", "ww")
    assert store.multi_get(["k", "n"]) == [b"vvww", b"-2"]
    store.multi_set(["a", "b"], ["1", "x" * (4 << 20)])
    assert store.get("b") == b"x" * (4 << 20)
    assert store.num_keys() == before + 5, store.num_keys()
    try:
        store.wait(["nope"], timedelta(milliseconds=100))
    except Exception as error:
        assert "timeout" in str(error), error
    else:
        raise AssertionError("a missing key was there")
    for key in "k", "n", "c", "a", "b":
        assert store.delete_key(key)
    assert not store.delete_key("k")
    assert store.num_keys() == before


def server(libuv: bool) -> None:
    store = TCPStore("127.0.0.1", 0, None, True, LIMIT, wait_for_workers=False, use_libuv=libuv)
    print(store.port, flush=True)
    sys.stdin.read()


role, backend = sys.argv[1:3]
if role == "client":
    client(int(sys.argv[3]), backend == "libuv")
else:
    server(backend == "libuv")
