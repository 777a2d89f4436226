"""`tqn`: output for people and scripts, one-line errors, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from turboquant_native import Llama, _core
from turboquant_native.commands.cli import main
from turboquant_native.convert import synthetic, synthetic_shapes

PROMPT = "The quick brown fox"
SAMPLING = ["-n", "12", "--temp", "0", "--ctx", "128"]


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def expected(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=128) as llm:
        return llm(PROMPT, max_tokens=12, temperature=0)["choices"][0]["text"]


def test_run_raw_streams_the_text_then_the_speed(tiny_tqn, expected, capsys):
    code, out, err = call(capsys, "run", tiny_tqn, "--raw", "-p", PROMPT, *SAMPLING)
    assert (code, out) == (0, expected + "\n")
    assert "prompt: " in err and "generation: " in err and err.count("tokens/s") == 2 and "cut after 12 tokens" in err
    assert call(capsys, "run", tiny_tqn, "--raw", "--echo", "-p", PROMPT, *SAMPLING)[1] == PROMPT + expected + "\n"


def test_run_reads_standard_input(tiny_tqn, expected, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert call(capsys, "run", tiny_tqn, "--raw", *SAMPLING)[1] == expected + "\n"


def test_run_json(tiny_tqn, expected, capsys):
    _, out, _ = call(capsys, "run", tiny_tqn, "--raw", "-p", PROMPT, "--json", *SAMPLING)
    answer = json.loads(out)
    assert answer["choices"][0]["text"] == expected and answer["timings"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert answer["timings"]["generation_tokens_per_second"] > 0


@pytest.mark.parametrize("words", [["fox jumps"], ["fox", "jumps"], ["-p", "fox jumps"]])
def test_run_answers_through_the_template(tiny_tqn, capsys, words):
    code, out, _ = call(capsys, "run", tiny_tqn, "--chat-format", "chatml", "--system", "Be kind.", *SAMPLING, *words)
    with Llama(str(tiny_tqn), n_ctx=128, chat_format="chatml") as llm:
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "fox jumps"}]
        expected = llm.create_chat_completion(messages, temperature=0, max_tokens=12)["choices"][0]["message"]["content"]
    assert (code, out) == (0, expected + "\n")


def test_words_and_a_pipe_are_one_prompt(tiny_tqn):
    def ask(*words, given):
        command = [sys.executable, "-m", "turboquant_native", "run", str(tiny_tqn), *words, *SAMPLING]
        return subprocess.run(command, input=given, capture_output=True, check=True).stdout

    together = ask(given=b"The fox:\n\nquick brown")
    assert ask("The fox:", given=b"quick brown") == together != ask("The fox:", given=b"")
    assert ask("-p", "The fox:", given=b"quick brown") == ask("The fox:", given=b"")  # -p: standard input is left alone


def test_characters_that_the_locale_lacks(tiny_tqn):
    command = [sys.executable, "-m", "turboquant_native", "run", str(tiny_tqn), "--raw", "--echo", *SAMPLING]
    for encoding in ("ascii", "latin-1"):
        environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        ran = subprocess.run(command, input="Café 我".encode(), capture_output=True, env=environment)
        assert ran.returncode == 0 and ran.stdout.startswith("Café 我".encode(encoding, "replace")), ran.stderr
    broken = subprocess.run(command, input=b"fox \xff", capture_output=True)
    assert broken.returncode == 1 and b"standard input is no UTF-8 text: byte 0xff at position 4" in broken.stderr


def test_info(tiny_tqn, capsys):
    _, out, _ = call(capsys, "info", tiny_tqn, "--metadata")
    assert "blk.0.attn_q.weight" in out and "TQN6" in out and "bits per weight" in out and "llama.block_count = 2" in out
    _, out, _ = call(capsys, "info", tiny_tqn, "--json")
    described = json.loads(out)
    assert described["architecture"] == "llama" and described["file_bytes"] == os.path.getsize(tiny_tqn)
    assert described["tensor_bytes"] == sum(tensor["bytes"] for tensor in described["tensors"])


def test_verify_and_info_count_the_same(tiny_tqn, capsys):
    """Both count tensors as the model has them; verify says how many planes they are stored as."""
    described = json.loads(call(capsys, "info", tiny_tqn, "--json")[1])
    checked = json.loads(call(capsys, "verify", tiny_tqn, "--json")[1])
    assert checked["tensors"] == len(described["tensors"]) < checked["planes"] == checked["checksummed"]
    assert f"{checked['tensors']} tensors stored as {checked['planes']} planes" in call(capsys, "verify", tiny_tqn)[1]
    assert f"tensors            {checked['tensors']} " in call(capsys, "info", tiny_tqn)[1]


def test_verify(tiny_tqn, tmp_path, capsys):
    assert call(capsys, "verify", tiny_tqn)[0] == 0
    data = bytearray(tiny_tqn.read_bytes())
    data[-5000] ^= 1
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    code, out, err = call(capsys, "verify", damaged)
    assert code == 1 and out == "" and "damaged" in err
    damaged.write_bytes(b"text")
    assert call(capsys, "verify", damaged)[2].count("damaged.gguf") == 1
    damaged.write_bytes(data)
    code, out, _ = call(capsys, "verify", damaged, "--json")
    assert code == 1 and json.loads(out)["ok"] is False and len(json.loads(out)["problems"]) == 1


def test_doctor(capsys):
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["extension"] == "loaded" and found["isa"] in found["available_isas"]
    assert found["backends"]["cpu"].startswith("available") and set(found["backends"]) == {"cpu", "cuda", "metal"}
    assert "backends.cuda" in call(capsys, "doctor")[1]


def test_bench(tiny_tqn, capsys):
    options = ["-p", 16, "-n", 4, "-r", 1]
    code, out, _ = call(capsys, "bench", tiny_tqn, "-t", "1,2", "--batch", "2", "--json", *options)
    result = json.loads(out)
    assert code == 0 and [row["threads"] for row in result["rows"]] == [1, 2] and result["batch"]["2"] > 0
    row = result["rows"][0]
    assert row["gigabytes_per_second"] == pytest.approx(row["weight_bytes"] * row["tg"] / 1e9)
    _, out, _ = call(capsys, "bench", tiny_tqn, "--profile", *options)
    assert "pp16 t/s" in out and "tg4 t/s" in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(kind in out for kind in ("linear", "attention", "norms", "rotation", "sampler", "barrier", "rest"))


def assert_runs(path):
    """A model of 128 tokens gives logits that differ."""
    model = _core.Model(str(path))
    context = _core.Context(model, n_ctx=32)
    logits = context.eval(np.arange(20, dtype=np.int32), 0)
    assert logits.shape == (128,) and np.isfinite(logits).all() and logits.std() > 0.01
    context.close()
    model.close()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_synthetic_models_run(tmp_path, bits):
    shape = synthetic.Shape(2, 64, 96, 4, 2, 16, 128, architecture="qwen2", tied=False, qkv_bias=True)
    synthetic.write(tmp_path / "model.gguf", shape, bits)
    assert_runs(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "shape",
    [
        synthetic_shapes.RecurrentShape(4, 64, 96, 4, 2, 16, 128, rope_dims=8, n_key_heads=2, n_value_heads=4, state_dim=16),
        synthetic_shapes.RecurrentShape(
            2, 64, 96, 4, 2, 16, 128, interval=0, rope_dims=8, tied=False, n_key_heads=1, n_value_heads=1, state_dim=40
        ),
        synthetic_shapes.GptOssShape(2, 64, 64, 4, 2, 16, 128, n_experts=4, n_used=2),
    ],
    ids=["delta nets and attention", "delta nets alone", "mixture"],
)
def test_synthetic_models_of_other_kinds_run(tmp_path, shape):
    synthetic.write(tmp_path / "model.gguf", shape, 4, 4)
    assert_runs(tmp_path / "model.gguf")


def test_synthetic_shapes_have_the_known_sizes():
    millions = {name: sum(n_out * n_in for _, n_out, n_in in shape.matrices()) / 1e6 for name, shape in synthetic.SHAPES.items()}
    published = {"smollm2-135m": 134.5, "qwen2.5-0.5b": 494, "llama-3.2-1b": 1236, "llama-3.2-3b": 3213, "llama-3.1-8b": 8030}
    published |= {"qwen3.5-0.8b": 752, "qwen3.5-9b": 8950, "gpt-oss-20b": 20910}  # those of Qwen by transformers' model of the shape
    assert millions == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "/nowhere.gguf", "-p", "x"], "/nowhere.gguf"),
        (["info", "/nowhere.gguf"], "/nowhere.gguf"),
        (["verify", "/nowhere.gguf"], "/nowhere.gguf"),
        (["run", "{model}", "-p", "x", "--top-p", "3"], "top_p"),
        (["run", "{model}", "-p", "x", "--threads", "-3"], "--threads -3"),
        (["eval", "{model}", "--text", "{model}"], "{model}: 'utf-8'"),
        (["eval", "{model}", "--text", "/dev/null"], "/dev/null: the text has 0 tokens"),
        (["eval", "{model}", "--text", "{model}", "--windows", "0"], "--windows 0"),
        (["run", "{model}", "-p", "x", "--chat", "--chat-format", "alpaca"], "alpaca"),
        (["run", "{model}", "-p", "x", "--ctx", "-1"], "--ctx -1"),
        (["run", "{model}", "-p", "x", "--raw", "--system", "y"], "--raw"),
        (["run", "{model}", "-p", "x", "y"], "once"),
        (["run", "{model}", "-p", "word " * 20, "--ctx", "32"], "--ctx 256 is the model's limit"),
        (["run", "{model}", "-p", "word " * 600], "the model's limit is 256"),
        (["run", "/dev/null", "-p", "x"], "/dev/null: is no regular file"),
        (["run", "nowhere", "-p", "x"], "nowhere: no such file or folder"),
        (["bench"], "--synthetic"),
        (["bench", "--synthetic", "gpt-5"], "gpt-5"),
        (["bench", "{model}", "-t", "many"], "many"),
    ],
)
def test_errors_are_one_line(tiny_tqn, capsys, arguments, message):
    code, out, err = call(capsys, *(argument.format(model=tiny_tqn) for argument in arguments))
    assert code == 1 and message.format(model=tiny_tqn) in err and err.count("\n") == 1
    assert out == ""


def test_wrong_usage(capsys):
    for arguments in ([], ["walk"], ["run"], ["run", "x", "--no-such-option"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0 and "--synthetic" in capsys.readouterr().out


def test_ctrl_c_is_clean(tiny_tqn):
    code = f"from turboquant_native.commands.cli import main; raise SystemExit(main(['bench', {str(tiny_tqn)!r}, '-r', '100000']))"

    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err


def test_importing_is_light():
    heavy = ("numpy", "tokenizers", "jinja2", "turboquant_native._core")
    code = f"import sys, turboquant_native; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- the real model


def test_smollm2_knows_the_capital_of_france(smollm2_tqn8, capsys):
    _, out, _ = call(capsys, "run", smollm2_tqn8, "--raw", "-p", "The capital of France is", "-n", 8, "--temp", 0)
    assert "Paris" in out


def test_smollm2_repeats_with_prompt_lookup(smollm2_tqn8):
    from turboquant_native import LlamaPromptLookupDecoding

    prompt = "Repeat this list: apples, pears, plums, cherries.\nThe list: apples, pears,"
    with Llama(str(smollm2_tqn8), n_ctx=256) as llm:
        plain = llm(prompt, max_tokens=24, temperature=0)["choices"]
        llm.draft_model = LlamaPromptLookupDecoding()
        assert llm(prompt, max_tokens=24, temperature=0)["choices"] == plain
