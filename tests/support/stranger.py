"""What a host of a Ray cluster answers to who has no token: `ADDRESS HTTP-PORT...`; prints JSON.

A port that is closed or speaks no HTTP answers null, any other its status.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request


def status(address: str, port: str) -> int | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}:{port}/api/jobs/", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def main(address: str, *ports: str) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", f"{address}:6380"]
    guesses = ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    told = [
        subprocess.run(ray, env=os.environ | guess, capture_output=True, text=True, check=False) for guess in guesses
    ]
    answers = {
        "http": {port: status(address, port) for port in ports},
        "ray": [[done.returncode, done.stdout] for done in told],
    }
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
