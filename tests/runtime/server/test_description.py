"""schemathesis: requests made from the OpenAPI description, valid and not, never break the server."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = shutil.which("st", path=str(Path(sys.executable).parent))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)

FLAGS = [
    "--max-examples",
    "40",
    "--phases",
    "examples,coverage,fuzzing",
    "--seed",
    "1",
    "--continue-on-failure",
    "--no-color",
]
# A request may give itself too little time.
CONFIG = """[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


@pytest.mark.slow
@pytest.mark.skipif(TOOL is None, reason="schemathesis is not installed")
def test_generated_requests_get_what_the_description_says(start_server, tmp_path):
    server = start_server(settings={"max_tokens": 48})
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    run = subprocess.run(
        [TOOL, "run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), *FLAGS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert server.engine.alive
    assert server.engine.statistics().submitted > 0
