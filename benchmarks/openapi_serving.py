"""Requests that schemathesis makes of our own OpenAPI description: none is answered by a 5xx, and memory comes back.

    pip install schemathesis                 in an environment of its own
    zenspeed serve a=RUN b=RUN --port 8000 --requests-a-minute 0 &
    python benchmarks/openapi_serving.py http://127.0.0.1:8000 PATH/schemathesis 280

The description does not say which models there are, so their names are put into it; else hardly any request gets beyond that.
Arguments: address, the program, seconds, and a seed. As many as fit into the seconds are sent.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from fuzz_serving import worker_memory


def with_models(described: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The description in which `model` is one of `names`."""
    for shape in described["components"]["schemas"].values():
        model = shape.get("properties", {}).get("model", {})
        if model.get("type") == "string":
            model["enum"] = names
    return described


async def main(address: str, program: str, seconds: int, seed: int) -> int:
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        described = with_models((await client.get("/openapi.json")).json(), names)
        before = await worker_memory(client)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "openapi.json"
            path.write_text(json.dumps(described), encoding="utf-8")
            options = [
                "--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", "2000", "--no-shrink",
                "--max-time", str(seconds), "--seed", str(seed), "--continue-on-failure", "--request-timeout", "60",
                "--suppress-health-check", "all", "--workers", "2", "--no-color", "--output-truncate", "true",
            ]  # fmt: skip
            done = subprocess.run([program, "run", path, "--url", address, *options], cwd=folder)
        await asyncio.sleep(2)
        print(f"memory of the workers before {before / 2**20:.0f} MiB, after {await worker_memory(client) / 2**20:.0f} MiB")
    return done.returncode


if __name__ == "__main__":
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), seed)))
