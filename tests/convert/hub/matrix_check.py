"""Use a published artifact in an environment without lineahead: one line of JSON says what worked.

Run by `matrix.py` with the Python of a clean environment; argument: the repository's name.
"""

import importlib.util
import json
import sys
import tempfile
import traceback

REPO = sys.argv[1]
PROMPT = sys.argv[2]
FOUND = {"python": sys.version.split()[0], "lineahead": importlib.util.find_spec("lineahead") is not None}


def step(name):
    """Run a check at once; record what it returns, or the error it died of."""

    def run(check):
        try:
            FOUND[name] = check()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            lines = str(error).strip().splitlines() or [""]
            FOUND[name] = {"error": f"{type(error).__name__}: {lines[0][:160]} ({where.name}:{where.lineno})"}
        return FOUND[name]

    return run


import huggingface_hub  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed  # noqa: E402

FOUND.update(transformers=transformers.__version__, torch=torch.__version__, hub=huggingface_hub.__version__)
torch.set_num_threads(1)
STATE = {}
OPTIONS = {"max_new_tokens": 40, "do_sample": False}


def encode(*texts):
    tokenizer = STATE["tokenizer"]
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False)


def text_of(rows):
    return STATE["tokenizer"].batch_decode(rows, skip_special_tokens=True)


def difference(model):
    """Largest difference from the manifest's logits, relative to the largest of them."""
    made = STATE["made"]
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([made["tokens"]]), use_cache=False).logits[0].float()
    worst = 0.0
    for at, ids, values in zip(made["positions"], made["ids"], made["values"], strict=True):
        worst = max(worst, float((found[at, ids] - torch.tensor(values)).abs().max()))
    return worst / max(abs(value) for values in made["values"] for value in values)


@step("load")
def load():
    STATE["tokenizer"] = AutoTokenizer.from_pretrained(REPO, trust_remote_code=True)
    config = AutoConfig.from_pretrained(REPO, trust_remote_code=True)
    for _ in range(2):  # the second call finds what the first one registered
        AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    STATE["model"] = AutoModelForCausalLM.from_pretrained(REPO, trust_remote_code=True).eval()
    return True


@step("logits")
def logits():
    with open(huggingface_hub.hf_hub_download(REPO, "lineahead.json"), encoding="utf-8") as file:
        STATE["made"] = json.load(file)["logits"]
    return difference(STATE["model"])


@step("generate")
def greedy():
    inputs = encode(PROMPT)
    STATE["plain"] = STATE["model"].generate(**inputs, **OPTIONS)
    uncached = STATE["model"].generate(**inputs, **OPTIONS, use_cache=False)
    assert torch.equal(STATE["plain"], uncached), "the cache changes the text"
    return text_of(STATE["plain"])[0]


@step("batch")
def padded():
    short = PROMPT.split(" ")[0]
    both = STATE["model"].generate(**encode(PROMPT, short), **OPTIONS)
    alone = STATE["model"].generate(**encode(short), **OPTIONS)
    assert torch.equal(both[0], STATE["plain"][0]), "the longer row differs"
    assert text_of(both)[1].strip() == text_of(alone)[0].strip(), "the padded row differs"
    return True


@step("sample")
def sampled():
    made = []
    for cached in (True, False):
        set_seed(0)
        made.append(
            STATE["model"].generate(**encode(PROMPT), max_new_tokens=20, do_sample=True, use_cache=cached)
        )
    assert torch.equal(*made), "the cache changes the text"
    return True


@step("pipeline")
def piped():
    made = pipeline("text-generation", model=REPO, trust_remote_code=True)(PROMPT, **OPTIONS)
    text = made[0]["generated_text"]
    # The pipeline decodes the continuation alone, which loses a leading space in some tokenizers.
    assert "".join(text.split()) == "".join(FOUND["generate"].split()), text
    return True


def drafted(**options):
    calls = []
    hook = STATE["model"].register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        made = STATE["model"].generate(**encode(PROMPT), **OPTIONS, **options)
    finally:
        hook.remove()
    assert torch.equal(made, STATE["plain"]), "drafts change the text"
    new = made.shape[1] - encode(PROMPT)["input_ids"].shape[1]
    return round(new / len(calls), 2)


@step("custom_generate")
def custom():
    return drafted(custom_generate=REPO, trust_remote_code=True)


@step("prompt_lookup")
def looked_up():
    return drafted(prompt_lookup_num_tokens=3)


@step("save")
def saved():
    with tempfile.TemporaryDirectory() as folder:
        STATE["model"].save_pretrained(folder)
        STATE["tokenizer"].save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        worst = difference(again)
    assert worst <= 1e-4, worst
    return worst


@step("bfloat16")
def half():
    model = AutoModelForCausalLM.from_pretrained(REPO, trust_remote_code=True, dtype=torch.bfloat16).eval()
    model.generate(**encode(PROMPT), max_new_tokens=5, do_sample=False)
    return difference(model)


print(json.dumps(FOUND))
