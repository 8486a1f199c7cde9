"""`bench serve` on the real server: every request is answered, with the server's own counts."""

import json


def test_the_real_server_is_measured(run, server, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\nwhat now\nand then\n")
    result = run(
        "bench", "serve", server.url, "--prompts", prompts, "--concurrency", 4, "--rate", 50,
        "--requests", 8, "--max-tokens", 5, "--warmup", 1, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (found,) = report["servers"].values()
    assert found["model"] == "tiny"
    for point in found["points"]:
        assert (point["requests"], point["errors"], point["tokens_counted_by"]) == (8, {}, "server")
        assert 1 <= point["tokens_mean"] <= 5
