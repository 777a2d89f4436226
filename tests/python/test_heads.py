"""Heads that score, against transformers: classifiers, reward models, process reward models, rerankers; hostile files of theirs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import convert
from tiny_models import gguf_tokenizer_keys, train_bpe, write_gguf
from turboquant_native import Llama, _core
from turboquant_native.commands import convert as command
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.container import ContainerWriter
from turboquant_native.convert.sources import open_source
from turboquant_native.engine.head import read_head
from turboquant_native.engine.steps import StepConvention

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
TEXTS = ["The quick brown fox", "def f(x):\n\treturn x ** 2\n", "12345 times! Naïve café."]
STEPS = ["The quick", "brown fox 123", "jumps over"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "vocab_size": 324, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 2, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip


def half(parameter: Any) -> None:
    """Weights that float16 holds exactly, so that a head kept in it is the reference's."""
    parameter.copy_((torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.3)).half().float())


def randomize(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            half(parameter)
            if parameter.dim() == 1 and "bias" not in name:
                parameter += 1
    return model.eval()


def save(folder: Path, model: Any, extra: dict[str, Any] | None = None, **config: Any) -> Path:
    """A folder of the model, further tensors in its safetensors file, with the tokenizer of the tests and a token between steps."""
    model.save_pretrained(folder)
    tensors = {name: w for name, w in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, **{name: w.detach().numpy() for name, w in (extra or {}).items()}}, folder / "model.safetensors")
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**entries, **config}))
    tokenizer = train_bpe(320)
    tokenizer.add_special_tokens(["<extra_0>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHAT}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Kind of head -> (folder, function of (1, n) tokens -> (n, labels) scores)."""
    torch.manual_seed(5)
    root, found = tmp_path_factory.mktemp("heads"), {}
    config = transformers.Qwen2Config(**CONFIG, num_labels=3, id2label={0: "no", 1: "maybe", 2: "yes"}, tie_word_embeddings=True)
    model = randomize(transformers.Qwen2ForSequenceClassification(config))
    found["sequence"] = save(root / "sequence", model), lambda ids, m=model: m.score(m.model(ids).last_hidden_state)[0]
    found["sequence"][1].pooled = lambda ids, m=model: m(ids).logits[0]
    config = transformers.LlamaConfig(**CONFIG, num_labels=1)
    model = randomize(transformers.LlamaForSequenceClassification(config))
    found["reward"] = save(root / "reward", model), lambda ids, m=model: m.score(m.model(ids).last_hidden_state)[0]
    config = transformers.Qwen2Config(**CONFIG, num_labels=2)
    model = randomize(transformers.Qwen2ForTokenClassification(config))
    found["token"] = save(root / "token", model), lambda ids, m=model: m(ids).logits[0]
    base = randomize(transformers.Qwen2Model(transformers.Qwen2Config(**CONFIG)))
    prm = torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.ReLU(), torch.nn.Linear(48, 2))
    randomize(prm)
    lm = transformers.Qwen2ForCausalLM(base.config)
    lm.model = base
    extra = {f"score.{name}": w for name, w in prm.state_dict().items()}
    folder = save(root / "prm", randomize(lm), extra, architectures=["Qwen2ForProcessRewardModel"])
    found["prm"] = folder, lambda ids, m=lm, h=prm: h(m.model(ids).last_hidden_state)[0]
    lm = randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)))
    value = randomize(torch.nn.Linear(48, 1))
    folder = save(root / "value", lm, {f"v_head.summary.{name}": w for name, w in value.state_dict().items()})
    found["value"] = folder, lambda ids, m=lm, h=value: h(m.model(ids).last_hidden_state)[0]
    found["two tokens"] = folder, lambda ids, m=lm: m(ids).logits[0]
    return found


def opened(folder: Path, *options: str, **arguments: Any) -> Llama:
    target = folder.parent / f"{folder.name}{'-'.join(options).replace('/', '')[:40]}.gguf"
    if not target.exists():
        convert(folder, target, *(options or ("--outtype", "f16")))
    return Llama(str(target), n_ctx=256, n_threads=1, verbose=False, **{"precision": "f32", **arguments})


def reference(score: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return score(torch.tensor([tokens])).numpy()


@pytest.mark.parametrize("kind", ["sequence", "reward", "token", "prm", "value"])
def test_scores_equal_transformers(kind: str, folders: Any) -> None:
    """Float weights, so that only the arithmetic differs; alone, in lists, and from tokens."""
    folder, score = folders[kind]
    with opened(folder, "--outtype", "f32") as llm:
        per_token = kind in ("token", "prm", "value")
        tokens = [llm.vocabulary.encode_document(text) for text in TEXTS]
        together = llm.score(TEXTS)
        for text, ids, found in zip(TEXTS, tokens, together, strict=True):
            expected = reference(score, ids)
            expected = expected if per_token else expected[-1]
            assert found.dtype == np.float32 and found.shape == expected.shape and np.isfinite(found).all()
            for ours in (found, llm.score(text), llm.score([ids])[0]):
                assert np.abs(ours - expected).max() <= TOLERANCE
        if kind == "sequence":
            with torch.no_grad():
                assert np.abs(together[0] - score.pooled(torch.tensor([tokens[0]])).numpy()).max() <= TOLERANCE
        assert np.abs(llm.score(TEXTS[0], activation="sigmoid") - 1 / (1 + np.exp(-together[0]))).max() < 1e-6
        assert np.abs(llm.score(TEXTS[0], activation="softmax").sum(-1) - 1).max() < 1e-6
    assert llm.labels == {"sequence": ("no", "maybe", "yes"), "reward": ("LABEL_0",), "value": ("LABEL_0",)}.get(
        kind, ("LABEL_0", "LABEL_1")
    )


@pytest.mark.parametrize("kind", ["sequence", "prm"])
def test_quantized_models_keep_their_head(kind: str, folders: Any) -> None:
    folder, score = folders[kind]
    with opened(folder, "--bits", "8", "--effort", "none", precision="int8") as llm:
        kinds = {name: number for name, number, _ in _core.GgufFile(llm.model_path).tensors()}
        assert kinds["cls.output.weight"] == 1  # F16
        file = _core.GgufFile(llm.model_path)
        source = open_source(str(folder))
        for name in ("cls.output.weight", *(["cls.weight"] if kind == "prm" else [])):
            np.testing.assert_array_equal(file.dequantize(name), source.read(name))
        ids = llm.vocabulary.encode_document(TEXTS[0])
        expected, found = reference(score, ids), llm.score(TEXTS[0])
        expected = expected if kind == "prm" else expected[-1]
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max() + 0.05


def test_a_conversation_is_scored_as_it_stands(folders: Any) -> None:
    folder, score = folders["reward"]
    messages = [{"role": "user", "content": "The lazy dog"}, {"role": "assistant", "content": "jumps"}]
    with opened(folder, "--outtype", "f32") as llm:
        text = "<|im_start|>user\nThe lazy dog<|im_end|>\n<|im_start|>assistant\njumps<|im_end|>\n"
        ids = llm.vocabulary.encode(text, special=True)
        assert np.abs(llm.score(messages) - reference(score, ids)[-1]).max() <= TOLERANCE
        assert len(llm.score([messages, messages])) == 2


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def test_steps_of_a_process_reward_model(folders: Any) -> None:
    """The convention is known from the architecture's name: a chat, <extra_0> behind each step, softmax of its two scores."""
    folder, score = folders["prm"]
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    with opened(folder, "--outtype", "f32") as llm:
        ids = llm.vocabulary.encode(text + "".join(step + "<extra_0>" for step in STEPS), special=True)
        places = [i for i, token in enumerate(ids) if token == llm.vocabulary.id_of("<extra_0>")]
        expected = softmax(reference(score, ids))[places, 1]
        found = llm.score_steps("How many?", STEPS)
        assert len(found) == 3 and np.abs(np.array(found) - expected).max() <= TOLERANCE
        assert llm.score_steps("How many?", STEPS, convention=llm.metadata["turboquant.steps"]) == pytest.approx(found, abs=1e-6)
        several = llm.score_solutions([("How many?", STEPS), ("How many?", STEPS[:1]), ("Why?", []), ("How many?", STEPS[:2])])
        assert [len(steps) for steps in several] == [3, 1, 0, 2]
        assert several[0] == pytest.approx(found, abs=1e-5) and several[3] == pytest.approx(found[:2], abs=1e-5)
        other = llm.score_steps("How many?", STEPS, convention={"separator": "<extra_0>", "label": 0, "system": system})
        assert np.abs(np.array(other) - (1 - expected)).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["token", "value", "reward"])
def test_steps_with_a_separator_of_text(kind: str, folders: Any) -> None:
    """As trl trains token classifiers and as scalar heads are read: prompt, steps and separators are tokens of their own."""
    folder, score = folders[kind]
    convention = {"separator": "\n\n", "prompt": "{prompt}\n"}
    with opened(folder, "--outtype", "f32") as llm:
        ids, places = llm.vocabulary.encode("How many?\n"), []
        for step in STEPS:
            ids += llm.vocabulary.encode(step) + llm.vocabulary.encode("\n\n")
            places.append(len(ids) - 1)
        rows = reference(score, ids)[places]
        expected = softmax(rows)[:, 1] if kind == "token" else 1 / (1 + np.exp(-rows[:, 0]))
        assert np.abs(np.array(llm.score_steps("How many?", STEPS, convention=convention)) - expected).max() <= TOLERANCE
        raw = llm.score_steps("How many?", STEPS, convention={**convention, "activation": "none", "label": 0})
        assert np.abs(np.array(raw) - rows[:, 0]).max() <= TOLERANCE


@pytest.mark.parametrize("whole", [False, True])
def test_steps_by_two_tokens_probabilities(whole: bool, folders: Any) -> None:
    folder, score = folders["two tokens"]
    convention = StepConvention("<extra_0>", prompt="{prompt} ", tokens=("!", "?"), whole=whole)
    with opened(folder, "--outtype", "f32") as llm:
        ids = llm.vocabulary.encode("How many? " + "".join(step + "<extra_0>" for step in STEPS), special=True)
        places = [i for i, token in enumerate(ids) if token == llm.vocabulary.id_of("<extra_0>")]
        pair = [llm.vocabulary.id_of("!"), llm.vocabulary.id_of("?")]
        assert min(pair) >= 0
        expected = softmax(reference(score, ids)[places][:, pair])[:, 0]
        found = llm.score_steps("How many?", STEPS, convention=convention)
        assert np.abs(np.array(found) - expected).max() <= TOLERANCE
        if whole:
            with pytest.raises(ValueError, match=r"'<extra_0>' stands 2 times in the text of 1 steps"):
                llm.score_steps("How many?", ["a<extra_0>b"], convention=convention)
        with pytest.raises(ValueError, match=r"'The quick' is \d tokens of this model, expected one"):
            llm.score_steps("a", ["b"], convention={"separator": "\n", "tokens": ["The quick", "!"]})


def test_steps_as_turns(folders: Any, tmp_path: Path) -> None:
    """Each step a user's turn, each answered by the right token; the score is read where that answer begins, as transformers writes it."""
    folder, score = folders["two tokens"]
    given = {"separator": " ", "prompt": "turns", "tokens": ["!", "?"]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected, messages = [], []
    for step in ["How many? " + STEPS[0], *STEPS[1:]]:
        messages += [{"role": "user", "content": step}, {"role": "assistant", "content": "!"}]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        assert tokenizer.convert_ids_to_tokens(ids[-3:-1]) == ["!", "<|im_end|>"]
        pair = tokenizer.convert_tokens_to_ids(["!", "?"])
        expected.append(softmax(reference(score, ids)[-4][pair])[0])
    with opened(folder, "--outtype", "f32", "--steps", json.dumps(given)) as llm:
        assert np.abs(np.array(llm.score_steps("How many?", STEPS)) - expected).max() <= TOLERANCE
        assert llm.score_steps("How many? ", [" " + step + "\n" for step in STEPS]) == llm.score_steps("How many?", STEPS)
        assert llm.score_steps("How many?", []) == []
        # what looks like markup in a step is text, and so are our own marks
        for text in ("<|im_end|>", "\ue0001\ue001"):
            assert len(llm.score_steps(text, [text, "b"])) == 2
        best = llm.best_of_n("The", 2, prm=llm, problem="How many?", max_tokens=4, seed=1)
        assert len(best["candidates"]) == 2
        llm.session.chat_format = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
        with pytest.raises(ValueError, match="does not write each turn of a conversation once"):
            llm.score_steps("a", ["b"])


def test_a_step_cannot_write_separators(folders: Any) -> None:
    """A control token's name in a step is text."""
    folder, _ = folders["prm"]
    with opened(folder, "--outtype", "f32") as llm:
        assert len(llm.score_steps("How many?", ["one <extra_0> two"])) == 1


def test_the_convention_is_stored_and_checked(folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = folders["value"]
    given = {"separator": "\n", "prompt": "{prompt}\n"}
    with opened(folder, "--outtype", "f16", "--steps", json.dumps(given)) as llm:
        assert StepConvention.of(llm.metadata["turboquant.steps"]) == StepConvention(**given)
        assert llm.score_steps("a", STEPS) == llm.score_steps("a", STEPS, convention=given)
    with opened(folder, "--outtype", "f32") as llm, pytest.raises(ValueError, match="does not say how it reads steps"):
        llm.score_steps("a", STEPS)
    for text, message in (
        ("{", "--steps: convention of steps: not JSON"),
        ('{"prompt": "chat"}', "--steps: convention of steps: has no field 'separator'"),
        ('{"separator": "x", "tag": 1}', "has no field 'tag' (fields: separator, prompt,"),
    ):
        assert command.main([str(folder), str(tmp_path / "o.gguf"), "--outtype", "f16", "--steps", text]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"separator": ""}, "separator is '', expected a text behind each step"),
        ({"separator": 3}, "separator is '3', expected a text of up to"),
        ({"separator": "x", "prompt": "none"}, "prompt is 'none', expected 'chat', 'turns', or a text with one {prompt}"),
        ({"separator": " ", "prompt": "turns"}, "tokens is .* expected two texts, where steps are turns"),
        (
            {"separator": " ", "prompt": "turns", "tokens": ["+", "-"], "whole": True},
            "whole is 'True', expected false where steps are turns",
        ),
        ({"separator": "x", "tokens": ["+"]}, "tokens is .* expected two different texts"),
        ({"separator": "x", "tokens": ["+", "+"]}, "expected two different texts"),
        ({"separator": "x", "label": -2}, "label is '-2'"),
        ({"separator": "x", "label": True}, "label is 'True'"),
        ({"separator": "x", "activation": "tanh"}, "activation is 'tanh', expected one of none, softmax, sigmoid"),
        ({"separator": "x", "whole": 1}, "whole is '1', expected true or false"),
        ([], "itself is '\\[\\]', expected an object"),
    ],
)
def test_conventions_that_make_no_sense(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepConvention.of(fields)
    with pytest.raises(ValueError, match=message):
        StepConvention.of(json.dumps(fields))


# --- rerankers


def test_rerank_by_a_head(folders: Any) -> None:
    folder, score = folders["sequence"]
    documents = ["lazy dog", "The quick brown", "12345"]
    with opened(folder, "--outtype", "f32") as llm:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        expected = [softmax(reference(score, tokenizer("fox", text).input_ids)[-1])[2] for text in documents]
        answer = llm.rerank("fox", documents)
        found = {entry["index"]: entry["relevance_score"] for entry in answer["results"]}
        assert np.abs(np.array([found[i] for i in range(3)]) - expected).max() <= TOLERANCE
        assert [entry["index"] for entry in answer["results"]] == sorted(range(3), key=lambda i: -expected[i])
        assert answer["usage"]["prompt_tokens"] == sum(len(tokenizer("fox", text).input_ids) for text in documents)
        assert [entry["index"] for entry in llm.rerank("fox", documents, top_n=1)["results"]] == [answer["results"][0]["index"]]
        assert llm.rerank("fox", [])["results"] == []
        with pytest.raises(ValueError, match="top_n is 0"):
            llm.rerank("fox", documents, top_n=0)
        with pytest.raises(TypeError, match="documents must be a list"):
            llm.rerank("fox", "dog")
        with pytest.raises(ValueError, match="query and document 1 have"):
            llm.rerank("fox", ["a", "fox " * 300])


def test_the_server_ranks_by_the_head(folders: Any) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from turboquant_native.server import Settings, create_app

    documents = ["lazy dog", "The quick brown", "12345"]
    with opened(folders["sequence"][0], "--outtype", "f32") as llm, testclient.TestClient(create_app(llm, Settings(n_slots=1))) as client:
        answer = client.post("/v1/rerank", json={"query": "fox", "documents": documents, "top_n": 2}).json()
        expected = llm.rerank("fox", documents, top_n=2)
        assert len(expected["results"]) == 2 and answer["results"] == expected["results"] and answer["usage"] == expected["usage"]


def test_rerank_by_two_tokens_and_a_template(folders: Any) -> None:
    folder, score = folders["two tokens"]
    template, documents = "Q: {query} ({instruction})\nD: {document}\n", ["dog {query}", "fox"]
    stored = json.dumps({"template": template, "tokens": ["!", "?"]})
    with opened(folder, "--outtype", "f32", "--rerank", stored) as llm:
        pair, expected = [llm.vocabulary.id_of("!"), llm.vocabulary.id_of("?")], []
        for text in documents:
            ids = llm.vocabulary.encode(f"Q: a {{document}} (why)\nD: {text}\n", special=True)
            expected.append(softmax(reference(score, ids)[-1][pair])[0])
        found = {e["index"]: e["relevance_score"] for e in llm.rerank("a {document}", documents, instruction="why")["results"]}
        assert np.abs(np.array([found[0], found[1]]) - expected).max() <= TOLERANCE
        with pytest.raises(ValueError, match=r"the template has no {document}"):
            llm.rerank("a", documents, template="{query}")
        with pytest.raises(ValueError, match=r"tokens is .* expected two texts"):
            llm.rerank("a", documents, tokens=["!"])


# --- sources and files


def test_a_model_without_a_head_says_so(llm: Llama) -> None:
    assert llm.labels == ()
    for call in (
        lambda: llm.score("a"),
        lambda: llm.rerank("a", ["b"]),
        lambda: llm.score_steps("a", ["b"], convention={"separator": "\n"}),
    ):
        with pytest.raises(ValueError, match="has no head that scores"):
            call()
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        llm.score("a", activation="tanh")


def test_a_reranker_of_llama_cpp_converts(folders: Any, tmp_path: Path) -> None:
    """Two rows of the output matrix as `cls.output.weight`, their names, and pooling by rank."""
    folder, _ = folders["value"]
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: w for name, w in load_file(folder / "model.safetensors").items() if not name.startswith("v_head")}
    rows = tensors["lm_head.weight"][[5, 9]]
    keys = {"classifier.output_labels": ["yes", "no"], "pooling_type": 4, **gguf_tokenizer_keys(train_bpe(324), "smollm")}
    path = write_gguf(tmp_path / "source.gguf", "llama", config, tensors, keys, {"cls.output.weight": rows})
    convert(path, tmp_path / "out.gguf", "--outtype", "f32")
    with Llama(str(tmp_path / "out.gguf"), n_ctx=64, precision="f32", verbose=False) as llm:
        assert llm.labels == ("yes", "no")
        logits = llm.engine.evaluate(llm.vocabulary.encode_document("The fox"))[-1]
        assert np.abs(llm.score("The fox") - logits[[5, 9]]).max() <= TOLERANCE
        assert "llama.pooling_type" not in llm.metadata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, c: t.update({"score.weight": t["score.weight"][:, :40]}),
            r"cls.output.weight has the shape \(3, 40\), expected \(any, 48",
        ),
        (lambda t, c: t.update({"score.bias": np.zeros(2, np.float32)}), r"cls.output.bias has the shape \(2,\), expected \(3,\)"),
        (lambda t, c: t.update({"score.0.bias": np.zeros(2, np.float32)}), "tensor cls.bias stands there without cls.weight"),
        (lambda t, c: c.update(id2label={"0": "a", "1": "b"}), "id2label is 'of 2 entries', expected a name for each of 0 to 2"),
        (lambda t, c: c.update(id2label={"0": "a", "1": "b", "2": 3}), "id2label is .* expected texts"),
        (lambda t, c: c.update(id2label=[1]), "id2label is list, expected an object"),
    ],
)
def test_damaged_folders_are_refused(change: Any, message: str, folders: Any, tmp_path: Path) -> None:
    folder, _ = folders["sequence"]
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConvertError, match=message):
        open_source(str(tmp_path), needs_tokenizer=False)


def test_a_head_with_nan_does_not_convert(folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = folders["sequence"]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"][1, 7] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    assert command.main([str(tmp_path), str(tmp_path / "o.gguf"), "--outtype", "f32"]) == 1
    assert "cls.output.weight[1, 7] is nan" in capsys.readouterr().err


W, B = np.ones((2, 48), np.float32), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ({"cls.output.weight": W[:, :3]}, {}, r"cls.output.weight has the shape \(2, 3\), expected \(any, 48\)"),
        ({"cls.output.weight": W, "cls.output.bias": B[:1]}, {}, r"cls.output.bias has the shape \(1,\), expected \(2,\)"),
        ({"cls.output.bias": B}, {}, "cls.output.weight is missing"),
        ({"cls.weight": W, "cls.output.weight": B[None]}, {}, "turboquant.head.activation is 'None', expected 'relu'"),
        ({"cls.output.weight": W * np.nan}, {}, r"cls.output.weight is nan at \(0, 0\)"),
        ({"cls.output.weight": np.ones((2, 48), np.int8)}, {}, "cls.output.weight"),
        ({"cls.output.weight": np.ones((5000, 48), np.float32)}, {}, "has 5000 outputs, expected 1 to 4096"),
        ({"cls.output.weight": W}, {"turboquant.head.kind": "pooled"}, "turboquant.head.kind is 'pooled', expected one of sequence, token"),
        ({"cls.output.weight": W}, {"turboquant.head.kind": 3}, "turboquant.head.kind is '3'"),
        ({"cls.output.weight": W}, {"llama.classifier.output_labels": ["a"]}, "output_labels is 1 entries, expected 2 texts"),
        ({"cls.output.weight": W}, {"llama.classifier.output_labels": "ab"}, "output_labels is 'ab', expected 2 texts"),
    ],
)
def test_hostile_files_are_refused(tensors: dict[str, np.ndarray], keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with ContainerWriter(path, "llama") as out:
        out.add_metadata("general.architecture", "llama")
        for key, value in keys.items():
            out.add_metadata(key, value)
        for name, array in tensors.items():
            out.add_tensor(name, array)
        out.finish()
    with pytest.raises(_core.FormatError, match=message) as caught:
        read_head(_core.GgufFile(str(path)), 48)
    assert str(path) in str(caught.value)
