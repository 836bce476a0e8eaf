"""Unpacks the chat templates of Python wheels, as PACKAGE.NAME.jinja.

    pip download --no-deps --dest wheels trl==1.16.0 axolotl==0.19.0       # both Apache-2.0
    python unpack_templates.py wheels templates
"""

import sys
import zipfile
from pathlib import Path


def unpack(wheels, folder):
    """Every template of the wheels."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.glob("*.whl")):
        package = wheel.name.split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".jinja"):
                    (folder / f"{package}.{Path(name).name}").write_bytes(archive.read(name))


if __name__ == "__main__":
    unpack(*map(Path, sys.argv[1:]))
