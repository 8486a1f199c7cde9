"""Greedy texts of the original checkpoint by ``transformers.generate``, as a process of its own.

``python -m lineahead.runtime.bench.original_process CHECKPOINT REQUEST.json`` prints one JSON object.
Nothing of lineahead's own is run: CHECKPOINT is the softmax model that a conversion began with.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the request ``{prompts, tokens, threads}`` and print ``{version, texts}``."""
    import torch
    import transformers

    checkpoint, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(request["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    # A fresh one: a checkpoint's own may sample, penalise or stop.
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    texts = []
    for prompt in request["prompts"]:
        given = torch.tensor([prompt])
        written = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=request["tokens"]
        )
        texts.append(written[0, len(prompt) :].tolist())
    print(json.dumps({"version": transformers.__version__, "texts": texts}))


if __name__ == "__main__":
    main()
