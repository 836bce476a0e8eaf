#!/usr/bin/env python3
"""Trains with a tracker against the real servers of MLflow and Trackio on this machine, and asks them what they have.

    python -m venv venv && venv/bin/pip install mlflow trackio
    venv/bin/python scripts/trackers.py target/release/backdraft model train.jsonl eval.jsonl

Each run loses its last checkpoint, is resumed from the one before, and is then found on the server as one run with the losses of
`metrics.jsonl`. Servers listen on loopback, and their files lie in a temporary folder. Nothing else is asked for.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

STEPS = 6


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, seconds=120):
    until = time.time() + seconds
    while time.time() < until:
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{url} does not answer")


def losses(out):
    found = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        if line["event"] == "step":
            found[line["step"]] = line["loss"]
    return found


def train(program, folder, kind, url, inputs, environment):
    model, rows, held = inputs
    recipe = folder / f"{kind}.toml"
    out = folder / f"out-{kind}"
    recipe.write_text(
        f"""model = {json.dumps(str(model))}
output_dir = {json.dumps(str(out))}
max_seq_length = 64
[data]
train = {json.dumps(str(rows))}
eval = {json.dumps(str(held))}
[train]
max_steps = {STEPS}
eval_steps = 3
save_steps = 4
sample_rows = 0
[tracker]
kind = "{kind}"
url = "{url}"
experiment = "loopback"
run_name = "first try"
"""
    )
    run = [program, "train", str(recipe), "--plain"]
    subprocess.run(run, check=True, env=environment)
    first = json.loads((out / "tracker.json").read_text())
    # As if the run had been killed after its first checkpoint.
    last = out / "checkpoints" / f"step-{STEPS:06}"
    subprocess.run(["rm", "-r", str(last)], check=True)
    subprocess.run([program, "train", "--resume", str(out), "--plain"], check=True, env=environment)
    assert json.loads((out / "tracker.json").read_text()) == first, "a resumed run is the same run"
    return out


def check(kind, expected, found):
    assert found.keys() == expected.keys(), (kind, found, expected)
    for step, loss in expected.items():
        assert abs(found[step] - loss) <= 1e-12 * abs(loss), (kind, step, found[step], loss)
    print(f"{kind}: {len(found)} steps as in metrics.jsonl, in one run")


def mlflow(program, folder, inputs):
    import mlflow as package
    from mlflow.tracking import MlflowClient

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", str(folder / "artifacts"),
         "--workers", "1"],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(f"{url}/health", server)
        out = train(program, folder, "mlflow", url, inputs, dict(os.environ))
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("loopback")
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 1, [run.info.run_name for run in runs]
        run = runs[0]
        assert (run.info.run_name, run.info.status) == ("first try", "FINISHED"), run.info
        assert run.data.params["lora.rank"] == "16", run.data.params
        assert "eval/loss" in run.data.metrics, run.data.metrics
        history = client.get_metric_history(run.info.run_id, "train/loss")
        check(f"MLflow {package.__version__}", losses(out), {point.step: point.value for point in history})
    finally:
        server.terminate()
        server.wait()


def trackio(program, folder, inputs):
    # Read when the package is.
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio as package

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = dict(os.environ, TRACKIO_WRITE_TOKEN="a-token-for-loopback")
    environment.pop("SPACE_ID", None)
    server = subprocess.Popen(
        [sys.executable, "-u", "-c",
         f"import trackio; trackio.show(open_browser=False, block_thread=True, host='127.0.0.1', server_port={port})"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(f"{url}/version", server)
        out = train(program, folder, "trackio", url, inputs, environment)
        from trackio.sqlite_storage import SQLiteStorage

        runs = SQLiteStorage.get_runs("loopback")
        assert len(runs) == 1, runs
        logs = SQLiteStorage.get_logs("loopback", "first try")
        found = [(log["step"], log["train/loss"]) for log in logs if "train/loss" in log]
        assert len(found) == len(dict(found)), "a step that is told twice is taken once"
        assert any("eval/loss" in log for log in logs), logs
        check(f"Trackio {package.__version__}", losses(out), dict(found))
        written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
        assert environment["TRACKIO_WRITE_TOKEN"].encode() not in written, "a secret is on the disk"
    finally:
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the backdraft program")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("held", type=pathlib.Path)
    args = parser.parse_args()
    inputs = [path.absolute() for path in (args.model, args.rows, args.held)]
    program = os.path.abspath(args.program)
    with tempfile.TemporaryDirectory() as folder:
        for server in (mlflow, trackio):
            server(program, pathlib.Path(folder), inputs)


if __name__ == "__main__":
    main()
