"""GBNF as llama.cpp reads it: context-free down to the character, held against a recognizer that is written here."""

import json
import random
import re

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

llguidance = pytest.importorskip("llguidance")

from tiny_models import train_bpe  # noqa: E402
from turboquant_native import LlamaGrammar  # noqa: E402
from turboquant_native.engine.gbnf import to_lark  # noqa: E402
from turboquant_native.engine.vocabulary import Vocabulary  # noqa: E402


class Bytes:
    """A vocabulary of bytes, and one control token."""

    eos_token_id, bos_token_id = 256, None
    tokens = [*(bytes([i]) for i in range(256)), b"<eos>", b"<tool_call>"]  # noqa: RUF012
    special_token_ids = [256, 257]  # noqa: RUF012

    def __call__(self, text):
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def accepts(gbnf: str, text: str | list[int]) -> bool:
    """Whether a grammar lets exactly this text (or these tokens) be written, and lets it end there."""
    matcher = llguidance.LLMatcher(TOKENIZER, LlamaGrammar.from_string(gbnf)._compiled, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode()) if isinstance(text, str) else text
    return all(not matcher.is_stopped() and matcher.consume_token(token) for token in tokens) and matcher.is_accepting()


def accepted(gbnf: str, texts: list[str]) -> list[str]:
    return [text for text in texts if accepts(gbnf, text)]


def test_a_repeated_rule_may_end_where_white_space_may_go_on():
    lines = 'root ::= (num "\\n")+\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*\n'
    assert accepted(lines, ["1\n", "12 \n3\n", "1 \t\n\n", "1", "\n", "1 "]) == ["1\n", "12 \n3\n", "1 \t\n\n"]


def test_ambiguity_loses_nothing():
    assert accepted('root ::= ("ab" | "a") ("b" | "bc")', ["abb", "abbc", "ab", "abc", "a", "abbb"]) == ["abb", "abbc", "ab", "abc"]
    # the same in a grammar that is recursive, and so cannot be one regular expression
    nested = 'root ::= "(" root ")" | ("ab" | "a") ("b" | "bc")'
    assert accepted(nested, ["(abb)", "(abbc)", "(ab)", "((abc))", "(a)"]) == ["(abb)", "(abbc)", "(ab)", "((abc))"]


def test_keywords_and_names():
    grammar = 'root ::= stmt+\nstmt ::= "if" name stmt | name "=" name ";"\nname ::= [a-z]+ ws\nws ::= " "*\n'
    assert accepted(grammar, ["ifx=y;", "ifif=if;", "ifx y=z;", "a=b;c=d;", "if=x;", "if;"]) == [
        "ifx=y;",
        "ifif=if;",
        "ifx y=z;",
        "a=b;c=d;",
        "if=x;",
    ]


def test_escapes():
    grammar = r'root ::= "\U0001F600" "\u00e9\xe9" "\t\r\n\\\"" [\[\]\\] [\U0001F600-\U0001F64F-]'
    assert accepts(grammar, '😀éé\t\r\n\\"[🙂') and accepts(grammar, '😀éé\t\r\n\\"\\-') and not accepts(grammar, '😀éé\t\r\n\\"x🙂')


def test_names_of_rules():
    grammar = 'root ::= start Start START-1 r0 R0\nstart ::= "a"\nStart ::= "b"\nSTART-1 ::= "c"?\nr0 ::= "d"\nR0 ::= "e"'
    assert accepted(grammar, ["abcde", "abde", "aacde"]) == ["abcde", "abde"]


def test_repetition_and_the_empty_text():
    grammar = 'root ::= ("ab" | ) {2,3} ""\n   | "x"{2} [yz]{1,}'
    assert accepted(grammar, ["", "ab", "ababab", "abababab", "xxy", "xxyzzy", "xx"]) == ["", "ab", "ababab", "xxy", "xxyzzy"]
    assert accepted('root ::= "a" "b"{0} "c"*', ["a", "ac", "ab"]) == ["a", "ac"]


def test_any_character_and_negation():
    assert accepted("root ::= . [^a-c] [^]", ["\n\nx", "éd🚀", "xaa", "x"]) == ["\n\nx", "éd🚀"]


def test_comments_and_lines():
    grammar = '# a grammar\nroot ::= # first\n  "a" # x\n  | ( # y\n "b"\n  "c" )\n\n# end'
    assert accepted(grammar, ["a", "bc", "b"]) == ["a", "bc"]


def test_left_recursion_and_nesting():
    assert accepted('root ::= root "+" [0-9]+ | [0-9]+', ["1+22+3", "1+"]) == ["1+22+3"]
    assert accepts("root ::= " + "(" * 150 + '"a"' + ")" * 150, "a")


JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def test_json():
    good = ['{"a": [1, -2.5e3, "x\\u00e9\\n", true, null, {}]}', "{}", '{\n  "a":\n\t[ ]}\n']
    assert accepted(JSON, [*good, '{"a": 01}', '{"a" "b"}', "[1]", '{"a": 1']) == good


def test_long_pieces_of_a_recursive_grammar_stay_whole():
    """Single characters would be exact too, but exceed llguidance's limits with a large vocabulary."""
    lark = to_lark(JSON)
    string = next(line for line in lark.splitlines() if "C1 " in line or "C1*" in line)
    assert re.match(r"[RG]\d+: ", string), lark  # a terminal: upper case


# --- random grammars, against the definition of what a context-free grammar accepts


def random_body(random_: random.Random, names: list[str], depth: int = 0):
    """("alt", ...) | ("seq", ...) | ("rep", body, least, most) | ("text", t) | ("rule", name)"""
    kind = random_.choice(["alt", "seq", "seq", "rep", "text", "text", "rule"] if depth < 3 else ["text", "rule"])
    if kind in ("alt", "seq"):
        return (kind, *(random_body(random_, names, depth + 1) for _ in range(random_.randint(1, 3))))
    if kind == "rep":
        least = random_.randint(0, 2)
        return ("rep", random_body(random_, names, depth + 1), least, random_.choice([None, least, least + 1]))
    return ("text", random_.choice(["a", "b", "ab", "ba", "aab", ""])) if kind == "text" else ("rule", random_.choice(names))


def written(body) -> str:
    kind, *rest = body
    if kind == "alt":
        return "(" + " | ".join(written(part) for part in rest) + ")"
    if kind == "seq":
        return "(" + " ".join(written(part) for part in rest) + ")"
    if kind == "rep":
        return f"{written(rest[0])}{{{rest[1]},{'' if rest[2] is None else rest[2]}}}"
    return f'"{rest[0]}"' if kind == "text" else rest[0]


class Recognizer:
    """Least fixed point of the ends that each rule reaches from each start."""

    def __init__(self, rules: dict, text: str) -> None:
        self.rules, self.text = rules, text
        self.ends: dict = {(name, i): set() for name in rules for i in range(len(text) + 1)}
        before = -1
        while (size := sum(map(len, self.ends.values()))) != before:
            before = size
            for name, i in self.ends:
                self.ends[name, i] |= self.reach(rules[name], i)

    def reach(self, body, i: int) -> set[int]:
        kind, *rest = body
        if kind == "alt":
            return set().union(*(self.reach(part, i) for part in rest))
        if kind == "seq":
            places = {i}
            for part in rest:
                places = set().union(*(self.reach(part, j) for j in places))
            return places
        if kind == "rep":
            return self.repeat(*rest, i)
        if kind == "text":
            return {i + len(rest[0])} if self.text.startswith(rest[0], i) else set()
        return set(self.ends[rest[0], i])

    def repeat(self, body, least: int, most: int | None, i: int) -> set[int]:
        places, found = {i}, {i} if least == 0 else set()
        for count in range(1, (most if most is not None else least + len(self.text) + 1) + 1):
            places = set().union(*(self.reach(body, j) for j in places))
            found |= places if count >= least else set()
        return found

    def accepts(self) -> bool:
        return len(self.text) in self.ends["root", 0]


TEXTS = [""] + [format(n, "b")[1:].replace("0", "a").replace("1", "b") for n in range(2, 64)]


@pytest.mark.parametrize("seed", range(60))
def test_random_grammars(seed):
    random_ = random.Random(seed)
    names = ["root", "x", "y"][: random_.randint(1, 3)]
    rules = {name: random_body(random_, names) for name in names}
    gbnf = "\n".join(f"{name} ::= {written(body)}" for name, body in rules.items())
    expected = [text for text in TEXTS if Recognizer(rules, text).accepts()]
    if not expected:
        return  # llguidance refuses grammars that accept nothing, and some that accept nothing so short
    assert accepted(gbnf, TEXTS) == expected, gbnf


# --- faults


@pytest.mark.parametrize(
    ("gbnf", "message"),
    [
        ('root ::= "a', r"ends within a literal.*line 1, column 12"),
        ("root ::= [a-", "ends within"),
        ('x ::= "a"', "the rule 'root' is not defined"),
        ('root ::= "a"\n  b', r"the rule 'b'|expected '::='"),
        ("root ::= y", r"the rule 'y' is not defined \(line 1, column 10\)"),
        ('root ::= "\\q"', r"unknown escape \\q"),
        ('root ::= "\\U00110000"', "unknown escape"),
        ('root ::= "\\uD800"', "unknown escape"),
        ('root ::= ("a"', r"expected '\)', found the end"),
        ("root ::= [z-a]", "whose end comes before its start"),
        ("root ::= []", "empty character class"),
        ('root ::= "a"{3,1}', "at least 3 and at most 1"),
        ('root ::= "a" )', r"unexpected '\)'"),
        ('root ::= !<x> "a"', "not supported"),
        ("root ::= " + "(" * 100000, "nested too deeply"),
        ('root ::= "a"{99999999999999999999}', "the grammar cannot be used"),
        ("root ::= r0\n" + "\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(5000)) + '\nr5000 ::= "b"', "more than 1000 deep"),
    ],
)
def test_faults_are_named(gbnf, message):
    with pytest.raises(ValueError, match=message) as caught:
        LlamaGrammar.from_string(gbnf)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "body", ['"a"{1000000000}', '"" {1000000000}', '(root "b"){1000000} | "c"', '"(" root ")" | ("" | "a"){1000000000}']
)
def test_large_repetitions_are_read_or_refused(body):
    try:
        LlamaGrammar.from_string(f"root ::= {body}")
    except ValueError as error:
        assert len(str(error)) < 1000


def test_many_rules_work():
    grammar = "root ::= " + " | ".join(f"r{i}" for i in range(8000)) + "\n" + "\n".join(f'r{i} ::= "{i:05}"' for i in range(8000))
    try:
        LlamaGrammar.from_string(grammar)
    except ValueError as error:
        assert "too large" in str(error) and len(str(error)) < 1000


# --- control tokens: quoted text is text; <name> outside quotes is the token


def test_quoted_text_is_text_and_angle_brackets_are_the_token():
    text = 'root ::= "<tool_call>x"'
    assert accepts(text, "<tool_call>x") and not accepts(text, [257, ord("x")])
    token = 'root ::= <tool_call> "x" | "(" root ")"'
    assert accepts(token, [257, ord("x")]) and not accepts(token, "<tool_call>x")
    assert accepts("root ::= <[257]>+", [257, 257])


QUOTED = {
    "gbnf": lambda text: LlamaGrammar.from_string(f'root ::= "{text}"'),
    "recursive gbnf": lambda text: LlamaGrammar.from_string(f'root ::= "{text}" | "(" root ")"'),
    "lark": lambda text: LlamaGrammar.from_string(f'start: "{text}"'),
    "regex": lambda text: LlamaGrammar.from_regex(re.escape(text)),
    "schema": lambda text: LlamaGrammar.from_json_schema({"const": text}),
}


@pytest.mark.parametrize("kind", QUOTED)
@pytest.mark.parametrize("special", [True, False])
def test_names_of_tokens_in_a_models_text(tmp_path, kind, special):
    """Of control tokens the text is written by other tokens; a token that is not special (Qwen's <tool_call>) is text itself."""
    tokenizer = train_bpe()
    added = AddedToken("<tool_call>", special=special, normalized=False)
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    vocabulary = Vocabulary({"tokenizer.huggingface.json": tokenizer.to_str(), "tokenizer.ggml.eos_token_id": 1}, 321)
    text = "<tool_call>x"
    processor = QUOTED[kind](text).processor(vocabulary, 0)
    written: list[int] = []
    for _ in range(40):
        logits = processor(np.array(written, np.intc), np.zeros(321, np.float32))
        if special:
            assert logits[320] == -np.inf
        written.append(int(np.argmax(logits)))  # the first that is allowed
        if written[-1] in vocabulary.end_tokens:
            break
    found = vocabulary.decode(written[:-1], special=True).decode()
    assert found.strip("()") == (json.dumps(text) if kind == "schema" else text) or kind == "recursive gbnf"
    token = LlamaGrammar.from_string('root ::= <tool_call> "x"').processor(vocabulary, 0)
    assert np.flatnonzero(np.isfinite(token(np.array([], np.intc), np.zeros(321, np.float32)))).tolist() == [320]


def sentencepiece(name: str) -> Vocabulary:
    """A tokenizer that puts a space before a text, and falls back to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "\u2581a", "ab", "\u2581ab", "aba"]
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581a", "b"), ("ab", "a")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prepend, spaces = normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([prepend, spaces] if name == "prefix" else [spaces])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return Vocabulary({"tokenizer.huggingface.json": tokenizer.to_str(), "tokenizer.ggml.eos_token_id": 2}, len(pieces))


@pytest.mark.parametrize("name", ["prefix", "none"])
@pytest.mark.parametrize("text", ["ab", "aba é ab", " ab", "🚀\n", "</s>"])
def test_text_without_a_choice_is_written_as_it_is(name, text):
    vocabulary = sentencepiece(name)
    processor = LlamaGrammar.from_string(f"root ::= {json.dumps(text, ensure_ascii=False)}").processor(vocabulary, 0)
    written: list[int] = []
    while not written or written[-1] not in vocabulary.end_tokens:
        logits = processor(np.array(written, np.intc), np.zeros(vocabulary.n_vocab, np.float32))
        written.append(int(np.argmax(logits)))
    assert b"".join(vocabulary.piece(token) for token in written[:-1]).decode() == text


def test_a_control_token_that_the_model_has_not_is_named():
    vocabulary = Vocabulary({"tokenizer.huggingface.json": train_bpe().to_str(), "tokenizer.ggml.eos_token_id": 1}, 320)
    with pytest.raises(ValueError, match="<tool_call>"):
        LlamaGrammar.from_string('root ::= <tool_call> "x"').processor(vocabulary, 0)
