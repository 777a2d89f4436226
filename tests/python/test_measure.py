"""Perplexity, KL divergence and multiple choice of real (tiny) models; lm-evaluation-harness; the command line around them."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from turboquant_native import Llama, _core
from turboquant_native.commands.cli import main
from turboquant_native.engine.engine import Engine
from turboquant_native.evaluate import evaluation as evaluate
from turboquant_native.evaluate import multiple_choice
from turboquant_native.evaluate.loglikelihood import Likelihoods

TEXT = "The quick brown fox jumps over the lazy dog, 12345 times! Naïve café.\r\n" * 12
CTX = 32


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def reference_scores(path, windows):
    """Log-probabilities (windows, rows, n_vocab) by evaluating each window token by token."""
    rows = []
    with Llama(str(path), n_ctx=CTX, logits_all=True, precision="f32") as llm:
        for window in windows:
            llm.reset()
            for token in window:
                llm.eval([int(token)])
            logits = llm.scores[CTX // 2 : CTX - 1].astype(np.float64)
            rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.array(rows)


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_eval_agrees_with_the_definitions(tiny_f32, tiny_tqn, text_file, capsys):
    options = ["--text", text_file, "--ctx", CTX, "--windows", 3, "--precision", "f32", "--json"]
    code, out, _ = call(capsys, "eval", tiny_tqn, "--reference", tiny_f32, *options)
    result = json.loads(out)
    with Llama(str(tiny_f32), n_ctx=CTX) as llm:
        windows = evaluate.text_windows(llm.vocabulary, TEXT, CTX, 3)
    p, q = reference_scores(tiny_f32, windows), reference_scores(tiny_tqn, windows)
    targets = windows[:, CTX // 2 + 1 :]
    nll = -np.take_along_axis(q, targets[..., None], axis=2)
    kld = (np.exp(p) * (p - q)).sum(axis=2)
    assert code == 0 and result["windows"] == 3 and result["scored"] == targets.size
    assert result["ppl"] == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert result["kld_mean"] == pytest.approx(kld.mean(), rel=1e-3, abs=1e-6)
    assert result["kld_max"] == pytest.approx(kld.max(), rel=1e-3, abs=1e-6)
    assert result["same_top"] == pytest.approx((p.argmax(2) == q.argmax(2)).mean())
    keys = {"ppl", "ppl_reference", "kld_mean", "kld_median", "kld_p99", "kld_p999", "kld_max", "same_top", "bpw"}
    packed, plain = _core.GgufFile(str(tiny_tqn)), _core.GgufFile(str(tiny_f32))
    parameters = sum(plain.data(name).size for name, _, _ in plain.tensors())
    tensor_bytes = sum(packed.data(name).nbytes for name, _, _ in packed.tensors())
    assert keys <= set(result) and result["bpw"] == 8 * tensor_bytes / parameters


def test_a_model_has_no_divergence_from_itself(tiny_f32, text_file, capsys):
    _, out, _ = call(capsys, "eval", tiny_f32, "--reference", tiny_f32, "--text", text_file, "--ctx", CTX, "--json")
    result = json.loads(out)
    assert abs(result["kld_mean"]) < 1e-6 and result["same_top"] == 1 and result["ppl"] == result["ppl_reference"] and result["bpw"] == 32


def test_base_file_gives_the_same_figures(tiny_f32, tiny_tqn, text_file, tmp_path, capsys):
    base = tmp_path / "base"
    options = ["--ctx", CTX, "--precision", "f32"]
    assert call(capsys, "eval", tiny_f32, "--text", text_file, "--write-kl-divergence-base", base, *options)[0] == 0
    _, direct, _ = call(capsys, "eval", tiny_tqn, "--reference", tiny_f32, "--text", text_file, "--json", *options)
    _, read, _ = call(capsys, "eval", tiny_tqn, "--kl-divergence-base", base, "--json", *options)
    direct, read = json.loads(direct), json.loads(read)
    assert read["ppl"] == direct["ppl"] and read["scored"] == direct["scored"]
    assert read["kld_mean"] == pytest.approx(direct["kld_mean"], abs=2 * 16 / 65535)


def test_bos_takes_the_place_of_the_first_token(tiny_f32, monkeypatch):
    model = _core.Model(str(tiny_f32))
    scorer = evaluate.Scorer(model, CTX)
    window = np.arange(40, 40 + CTX, dtype=np.int32)
    plain = scorer.logits(window)
    with_bos = np.array([scorer.vocabulary.bos, *window[1:]], np.int32)
    expected = scorer.logits(with_bos)
    monkeypatch.setattr(scorer.vocabulary, "add_bos", True)
    np.testing.assert_array_equal(scorer.logits(window), expected)
    assert np.abs(plain - expected).max() > 1e-3
    scorer.close()
    model.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "{text}", "--ctx", "100000"], "less than a window"),
        ([], "--text"),
        (["--text", "/nowhere.txt"], "/nowhere.txt"),
        (["--kl-divergence-base", "{text}"], "no file of log-probabilities"),
    ],
)
def test_eval_errors_are_one_line(tiny_f32, text_file, capsys, arguments, message):
    code, out, err = call(capsys, "eval", tiny_f32, *(argument.format(text=text_file) for argument in arguments))
    assert code == 1 and out == "" and message in err and err.count("\n") == 1


# --- multiple choice

HELLASWAG = {"ctx": "The quick brown", "endings": ["fox jumps", "dog sleeps all day"], "label": 1, "activity_label": "Running"}
ARC = {"question": "Who jumps?", "choices": {"text": ["fox", "dog"], "label": ["A", "B"]}, "answerKey": "A"}
ARC_OLD = {"question": {"stem": "Who jumps?", "choices": [{"text": "fox", "label": "1"}, {"text": "dog", "label": "2"}]}, "answerKey": "2"}


def test_questions_are_read_in_all_forms(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, (HELLASWAG, ARC, ARC_OLD))))
    hellaswag, arc, old = multiple_choice.read(tmp_path / "q.jsonl")
    assert (hellaswag.context, hellaswag.endings[0], hellaswag.label) == ("Running: The quick brown", " fox jumps", 1)
    assert (arc.context, list(arc.endings), arc.label) == ("Question: Who jumps?\nAnswer:", [" fox", " dog"], 0)
    assert (old.context, list(old.endings), old.label) == (arc.context, list(arc.endings), 1)
    (tmp_path / "bad.jsonl").write_text(json.dumps(ARC) + "\n{}")
    with pytest.raises(ValueError, match="line 2"):
        multiple_choice.read(tmp_path / "bad.jsonl")


def test_accuracy_counts_the_models_choices(tiny_f32, tmp_path, capsys):
    """Labels are set to what the model prefers by total, so the total is always right; per character it depends on the lengths."""
    engine = Engine(str(tiny_f32), n_ctx=128)
    likelihoods = Likelihoods(engine)
    questions, normalized = [], []
    for endings in (["fox jumps", "dog"], ["lazy", "quick brown fox"], ["12345", "times! café"]):
        totals = [likelihoods.score(*likelihoods.encode_pair("The", " " + ending))[0] for ending in endings]
        label = int(np.argmax(totals))
        questions.append({"ctx": "The", "endings": endings, "label": label})
        normalized.append(int(np.argmax([total / (len(e) + 1) for total, e in zip(totals, endings, strict=True)])) == label)
    engine.close()
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    _, out, _ = call(capsys, "eval", tiny_f32, "--multiple-choice", tmp_path / "q.jsonl", "--json")
    result = json.loads(out)
    assert (result["questions"], result["accuracy"], result["accuracy_norm"]) == (3, 1.0, pytest.approx(np.mean(normalized)))


def test_likelihood_is_the_sum_over_the_continuation(tiny_f32):
    engine = Engine(str(tiny_f32), n_ctx=64)
    likelihoods = Likelihoods(engine)
    context, continuation = likelihoods.encode_pair("The quick ", "brown fox")
    assert likelihoods.vocabulary.decode(continuation) == b" brown fox"
    total, greedy = likelihoods.score(context, continuation)
    with Llama(str(tiny_f32), n_ctx=64, logits_all=True) as llm:
        llm.eval(context + continuation)
        logprobs = evaluate.normalize(llm.scores.copy())
    rows = logprobs[len(context) - 1 : -1]
    assert total == pytest.approx(float(rows[np.arange(len(continuation)), continuation].sum()), abs=1e-4)
    assert greedy == bool((rows.argmax(axis=1) == continuation).all())
    long = list(range(3, 103))
    truncated = likelihoods.score(long[-64:], [7])
    # The beginning is dropped; one run evaluates rows together that the other reuses, so sums may round differently.
    assert likelihoods.score(long, [7]) == (pytest.approx(truncated[0], abs=1e-4), truncated[1])
    engine.close()


def test_lm_evaluation_harness_runs_a_local_task(tiny_f32, tmp_path):
    pytest.importorskip("lm_eval")
    documents = [{"q": "The quick", "choices": ["fox", "dog"], "answer": i % 2} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "foxes.yaml").write_text(
        textwrap.dedent(f"""
        task: foxes
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {tmp_path / "data.jsonl"}}}}}
        test_split: test
        output_type: multiple_choice
        doc_to_text: "{{{{q}}}}"
        doc_to_choice: "{{{{choices}}}}"
        doc_to_target: "{{{{answer}}}}"
        metric_list: [{{metric: acc}}]
        """)
    )
    command = ["--model", tiny_f32, "--tasks", "foxes", "--include-path", tmp_path, "--ctx", 128, "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "turboquant_native.evaluate", *map(str, command)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["foxes"]["acc,none"] == 0.5  # the same question with either answer


def test_harness_requests(tiny_f32):
    lm_eval = pytest.importorskip("lm_eval.api.instance")
    from turboquant_native.evaluate.harness import TurboquantLM

    def requests(kind, *arguments):
        return [lm_eval.Instance(kind, {}, given, 0) for given in arguments]

    model = TurboquantLM(str(tiny_f32), n_ctx=128)
    try:
        whole = model.loglikelihood_rolling(requests("loglikelihood_rolling", ("The quick brown fox",)))[0]
        parts = model.loglikelihood(requests("loglikelihood", ("", "The quick brown fox")))[0][0]
        assert whole == pytest.approx(parts, abs=1e-4)
        until = {"until": ["\n"], "max_gen_toks": 8}
        text = model.generate_until(requests("generate_until", ("The quick", until)))[0]
        with Llama(str(tiny_f32), n_ctx=128) as llm:
            assert text == llm("The quick", max_tokens=8, temperature=0.0, stop=["\n"])["choices"][0]["text"]
    finally:
        model.close()
