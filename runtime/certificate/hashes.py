"""Which files a certificate speaks of: weights, graphs, tokenizer and the code that ran."""

import hashlib
from pathlib import Path

import lineahead
from lineahead.recipes.files import sha256

FILES = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*.json", "*.py", "onnx/*")
CODE = ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh")
OUTSIDE = {"tests", "build", "dist", "artifacts", "docs"}


def artifact_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that decide what an artifact says, by path in the folder."""
    found = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found}


def code_hash() -> str:
    """SHA-256 over names and contents of this package's sources."""
    root = Path(lineahead.__file__).parent
    total = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in root.rglob(pattern)}):
        parts = path.relative_to(root).parts
        if parts[0] in OUTSIDE or any(part.startswith(".") for part in parts):
            continue
        total.update("/".join(parts).encode())
        total.update(path.read_bytes())
    return total.hexdigest()
