"""Use an artifact as its card says, in a process without this package, and see what comes out."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lineahead.errors import HubError
from lineahead.recipes.manifest import Logits

# Largest change of a logit between versions of torch and transformers, relative to the largest logit
# (measured: docs/notes/hub.md); 16-bit weights round differently on every machine.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 2e-2}
TOKENS = 24
PROGRAM = """
import json, sys
sys.modules["lineahead"] = None  # importing it fails
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
given = json.loads(sys.stdin.read())
tokenizer = AutoTokenizer.from_pretrained(given["folder"], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(given["folder"], trust_remote_code=True).eval()
inputs = tokenizer(given["prompt"], return_tensors="pt", return_token_type_ids=False)
plain = model.generate(**inputs, max_new_tokens=given["tokens"], do_sample=False)
drafted = plain
if given["drafts"]:
    drafted = model.generate(**inputs, max_new_tokens=given["tokens"], do_sample=False,
                             custom_generate=given["folder"], trust_remote_code=True)
found = None
if given["text"]:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([given["text"]]), use_cache=False).logits[0].float()
    found = [logits[at, ids].tolist() for at, ids in zip(given["positions"], given["ids"])]
print(json.dumps({
    "text": tokenizer.decode(plain[0], skip_special_tokens=True), "same": torch.equal(plain, drafted),
    "logits": found, "torch": torch.__version__, "transformers": transformers.__version__}))
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was seen.

    Attributes:
        prompt: what was asked.
        text: prompt and greedy continuation.
        difference: largest from the manifest's logits, relative to the largest of them; None without.
        drafted: whether ``custom_generate`` was tried, too; its text was the same.
        torch: version.
        transformers: version.
    """

    prompt: str
    text: str
    difference: float | None
    drafted: bool
    torch: str
    transformers: str


def try_out(folder: Path, logits: Logits | None, *, prompt: str) -> Trial:
    """Load, compare with the manifest's logits, generate, plain and drafted.

    The artifact's own code runs: this is for artifacts made here.

    Raises:
        HubError: when it does not load, says something else than when it was made, or drafts change the text.
    """
    drafts = (folder / "custom_generate" / "generate.py").is_file()
    given = {
        "folder": str(folder.resolve()),
        "prompt": prompt,
        "tokens": TOKENS,
        "drafts": drafts,
        "text": None if logits is None else logits.tokens,
        "positions": None if logits is None else logits.positions,
        "ids": None if logits is None else logits.ids,
    }
    with tempfile.TemporaryDirectory() as modules:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        env.pop("HF_TOKEN", None)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps(given),
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise HubError(
            f"{folder}: does not load in plain transformers: {lines[-1][:300]}",
            hint="Convert the model again.",
        )
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    if not seen["same"]:
        raise HubError(
            f"{folder}: custom_generate gives another text than generate",
            hint="Report it; use --no-trial to publish.",
        )
    difference = None if logits is None else relative(logits, seen["logits"])
    if logits is not None and difference is not None and difference > TOLERANCE[logits.dtype]:
        raise HubError(
            f"{folder}: logits differ from the manifest's by {difference:.1e} of the largest,"
            f" more than {TOLERANCE[logits.dtype]:.0e}",
            hint="Convert again: weights or code are not those that were made.",
        )
    versions = {name: seen[name] for name in ("torch", "transformers")}
    return Trial(prompt=prompt, text=seen["text"], difference=difference, drafted=drafts, **versions)


def relative(made: Logits, found: list[list[float]]) -> float:
    """Largest difference of logits, relative to the largest."""
    pairs = [(a, b) for x, y in zip(made.values, found, strict=True) for a, b in zip(x, y, strict=True)]
    return max(abs(a - b) for a, b in pairs) / max(abs(a) for a, _ in pairs)
